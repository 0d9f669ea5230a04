"""A served model ranks as the trained one does, and says where it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from recbole_diffusion.quick_start import run
from recbole_diffusion.recommend import Recommender
from recbole_diffusion.serving import onnx_export
from recbole_diffusion.serving.__main__ import main

from ..conftest import ROOT, TINY

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SHORT = {**TINY, "state": "ERROR", "show_progress": False, "epochs": 1, "limit_train_batches": 2, "num_steps": 4,
         "n_layers": 1, "data_path": str(ROOT / "dataset")}  # fmt: skip


def train(model: str, **overrides) -> str:
    own = {key: value for key, value in SHORT.items() if model not in ("SASRecPlus", "SASRec") or key != "num_steps"}
    return run(model, "markov-toy", config_dict={**own, **overrides})["model_file"]


def served(folder, histories: list[list[str]], k: int) -> tuple[list[list[str]], np.ndarray]:
    """What a server does with the folder: no PyTorch."""
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    number = {token: place for place, token in enumerate(about["tokens"])}
    length = about["max_length"]
    rows = [[number[token] for token in history][-length:] for history in histories]
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    feed = {
        "item_seq": np.array([row + [0] * (length - len(row)) for row in rows], dtype=np.int64),
        "item_seq_len": np.array([len(row) for row in rows], dtype=np.int64),
    }
    scores = session.run(None, feed)[0] @ np.load(folder / "items.npy").T
    scores[:, 0] = -np.inf
    best = np.argsort(-scores, kind="stable")[:, :k]
    return [[about["tokens"][item] for item in row] for row in best], np.take_along_axis(scores, best, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, overrides",
    [
        ("SASRecPlus", {}),
        ("DiffuRec", {"sampling_steps": 2}),
        ("SeqDiffRec", {"inference_seeds": [3]}),
        ("DreamRec", {}),
        ("DreamRec", {"denoiser": "mlp2"}),
        ("CDDRec", {}),
        ("ADRec", {"enable_amp": True}),
        ("SASRec", {"emb_dropout_prob": 0.0}),
    ],  # fmt: skip
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_onnx_runtime_ranks_as_the_model(tmp_path, model, overrides, capsys):
    file = train(model, **overrides)
    main(["--model_file", file, "--output", "served"])
    assert "100.0% of the top 20 lists" in capsys.readouterr().out
    recommender = Recommender(file)
    recommender.model.enable_amp = False  # as the graph, in which there is no bf16
    histories = [recommender.tokens[place : place + 1 + place % 5] for place in range(1, 40)]
    expected = list(recommender.stream(histories, 10))
    items, scores = served(tmp_path / "served", histories, 10)
    assert items == [row.items for row in expected]
    np.testing.assert_allclose(scores, [row.scores for row in expected], rtol=1e-3, atol=1e-4)
    assert served(tmp_path / "served", histories[:1], 10)[0] == items[:1]


@pytest.mark.slow
def test_several_seeds_are_exported_as_their_mean_and_the_index_finds_what_search_finds(tmp_path, capsys):
    faiss = pytest.importorskip("faiss")
    file = train("DiffuRec")
    main(["--model_file", file, "--output", "served", "--inference_seeds=[3,4]", "--index=faiss"])
    out = capsys.readouterr().out
    assert "mean over 2 seeds" in out and "recall 1.000" in out
    model, items = Recommender(file, [3, 4]).model, np.load("served/items.npy")
    seq = torch.tensor([[1, 2, 3] + [0] * 17])
    session = onnxruntime.InferenceSession("served/encoder.onnx")
    [vector] = session.run(None, {"item_seq": seq.numpy(), "item_seq_len": np.array([3])})
    with torch.no_grad():
        expected = model.generate({model.ITEM_SEQ: seq, model.ITEM_SEQ_LEN: torch.tensor([3])})
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    found = faiss.read_index("served/items.faiss").search(vector, 5)[1][0]
    assert found.tolist() == (np.argsort(-(vector @ items[1:].T)[0])[:5] + 1).tolist()


def test_a_large_catalogue_gets_cells_and_the_recall_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    from recbole_diffusion.serving import item_index

    monkeypatch.setattr(item_index, "EXACT_BELOW", 1000)
    draw = np.random.default_rng(0)
    items = draw.normal(size=(4001, 16)).astype(np.float32)
    made = item_index.build_index(items, items[1:101] + 0.1, tmp_path / "items.faiss")
    assert "cells" in made["kind"] and made["recall"] >= 0.95 and made["users_per_second"] > 0
    assert item_index.build_index(items[:1001], items[1:101], tmp_path / "items.faiss")["kind"] == "exact"
    assert [path.name for path in tmp_path.glob("*.faiss")] == ["items.faiss"]
    monkeypatch.setattr(item_index, "WANTED_RECALL", 1.1)  # not even all cells have it
    made = item_index.build_index(items, draw.normal(size=(1000, 16)), tmp_path / "items.faiss")
    assert made["kind"] == "253 cells, 253 looked into" and made["recall"] == 1


def test_a_missing_faiss_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from recbole_diffusion.serving import item_index

    monkeypatch.setattr(item_index, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs faiss"):
        main(["--model_file", train("SASRecPlus"), "--output", "served", "--index=faiss"])
    assert not (tmp_path / "served").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["[3]", "[3,4]"])
def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch, seeds):
    file, write = train("DiffuRec", sampling_steps=2), onnx_export._write_graph

    def of_another(encoder, length, path):
        write(encoder, length, path)
        torch.manual_seed(0)
        for weight in encoder.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.1)

    monkeypatch.setattr(onnx_export, "_write_graph", of_another)
    with pytest.raises(SystemExit, match=r"model \[DiffuRec\] cannot be exported: its graph ranks otherwise"):
        main(["--model_file", file, "--output", "served", f"--inference_seeds={seeds}"])
    assert not list(tmp_path.glob("*served*"))


def test_what_onnx_runtime_cannot_do_is_said_in_one_line(tmp_path, monkeypatch):
    def broken(encoder, length, file):
        file.write_bytes(b"no graph")

    monkeypatch.setattr(onnx_export, "_write_graph", broken)
    with pytest.raises(SystemExit, match=r"model \[SASRecPlus\] cannot be exported: InvalidProtobuf: "):
        main(["--model_file", train("SASRecPlus"), "--output", "served"])
    assert not list(tmp_path.glob("*served*"))


def test_what_cannot_be_served_is_named_in_one_line(tmp_path):
    for model, overrides, message in [
        ("SASRecPlus", {"seen_items": "excluded"}, r"seen_items \[excluded\]"),
        ("SASRecPlus", {"seen_items": "learned"}, r"seen_items \[learned\]"),
        ("Pop", {}, "reads no histories"),
        ("HGN", {}, "no inner products"),
    ]:
        file = train(model, **overrides)
        with pytest.raises(SystemExit, match=message):
            main(["--model_file", file, "--output", "served", "--data_path", str(ROOT / "dataset")])
        assert not (tmp_path / "served").exists() and not list(tmp_path.glob(".served*"))
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match="FileExistsError"):
        main(["--model_file", file, "--output", "there"])
    with pytest.raises(SystemExit, match="nothing.pth"):
        main(["--model_file", "nothing.pth", "--output", "served"])
