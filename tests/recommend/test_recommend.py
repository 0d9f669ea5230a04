"""Recommending from a checkpoint alone: known and new histories, unknown items, uncertainty, long streams."""

from __future__ import annotations

import csv
import io
import json
import shutil
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.quick_start import run_recbole
from recbole.utils.case_study import full_sort_topk

from recbole_diffusion import MODELS
from recbole_diffusion.quick_start import load_data_and_model, run
from recbole_diffusion.recommend import Recommender, recommend
from recbole_diffusion.recommend.__main__ import main
from recbole_diffusion.recommend.lines import CSV_COLUMNS, recommend_lines

from ..conftest import ROOT, TINY

SHORT = {"state": "ERROR", "show_progress": False, "epochs": 1, "limit_train_batches": 1, "num_steps": 6}


def train(folder, model: str = "DiffuRec", **overrides) -> str:
    """A checkpoint of a tiny model on a copy of markov-toy in ``folder``."""
    shutil.copytree(ROOT / "dataset" / "markov-toy", folder / "data" / "markov-toy", dirs_exist_ok=True)
    paths = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return run(model, "markov-toy", config_dict={**TINY, **SHORT, **paths, **overrides})["model_file"]


def histories(left_out: int = 1) -> dict[str, list[str]]:
    """Each user's items in time, without the last one: what RecBole's test split reads."""
    rows = [line.split("\t") for line in (ROOT / "dataset/markov-toy/markov-toy.inter").read_text().splitlines()[1:]]
    users: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: float(row[2])):
        users.setdefault(user, []).append(item)
    return {user: items[: len(items) - left_out] for user, items in users.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A DiffuRec with two seeds, whose dataset is gone."""
    folder = tmp_path_factory.mktemp("recommend")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        file = train(folder, inference_seeds=[3, 4], lambda_uncertainty=0.3)  # seeds that differ visibly
    shutil.rmtree(folder / "data")
    return file


@pytest.fixture
def recommender(checkpoint):
    return Recommender(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, overrides",
    [(name, {"sampling_steps": None} if name == "PreferDiff" else {}) for name in MODELS]
    + [
        ("DiffuRec", {"inference_seeds": 2, "item_loss": "sampled", "n_sampled_items": 8}),
        ("SASRec", {}),
        ("NARM", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_known_users_get_the_top_of_full_sort_topk_without_their_data(tmp_path, model, overrides):
    # Histories have 7 to 13 items: most are longer than the model reads.
    file = train(tmp_path, model, MAX_ITEM_LIST_LENGTH=8, **overrides)
    _, network, dataset, _, _, test = load_data_and_model(file, {"data_path": str(tmp_path / "data")})
    users = list(histories())[:20]
    scores, items = full_sort_topk(dataset.token2id(dataset.uid_field, users), network, test, k=10)
    if len(getattr(network, "inference_seeds", [0])) > 1:  # ranked by the logarithms of what is shown
        scores = scores.exp()
    shutil.rmtree(tmp_path / "data")

    found = recommend(file, [histories()[user] for user in users], k=10, batch_size=7)
    assert [row.items for row in found] == dataset.id2token(dataset.iid_field, items).tolist()
    np.testing.assert_allclose([row.scores for row in found], scores, rtol=2e-4, atol=1e-6)
    assert not any(row.unknown for row in found)


def test_a_new_history_takes_numbers_as_tokens_and_reports_what_is_unknown(recommender):
    first, second = recommender.tokens[5], recommender.tokens[9]
    clean, marked = recommender.stream([[first, second], ["?", np.int64(first), 10**9, second]], k=5)
    assert marked.unknown == ["?", "1000000000"] and clean.unknown == []
    assert marked.items == clean.items and len(set(clean.items)) == 5
    assert clean.scores == sorted(clean.scores, reverse=True)


def test_the_order_of_a_history_counts_and_its_company_does_not(recommender):
    rows = list(histories().values())[:9]
    together = list(recommender.stream(rows, k=6, batch_size=4))
    alone = [next(recommender.stream([row], k=6)) for row in rows]
    assert [row.items for row in together] == [row.items for row in alone]
    assert next(recommender.stream([rows[0][::-1]])).scores != next(recommender.stream([rows[0]])).scores


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_excluded_items_never_come_back_however_many_are_asked_for(recommender, k):
    catalogue = set(recommender.tokens[1:])
    # The second is longer than the model reads: what it does not read is excluded as well.
    rows = [recommender.tokens[1:4], recommender.tokens[1:] * 2, recommender.tokens[1:-2] + recommender.tokens[1:]]
    rows[1] = rows[1][: len(catalogue) - 3]
    found = list(recommender.stream(rows[:2], k, exclude_seen=True))
    assert [len(row.items) for row in found] == [min(k, len(catalogue) - 3), min(k, 3)]
    for row, history in zip(found, rows, strict=False):
        assert not set(row.items) & set(history) and np.isfinite(row.scores).all()
        assert len(row.items) == len(row.scores) == len(row.spread)
    [everything] = recommender.stream([recommender.tokens[1:]], k, exclude_seen=True)
    assert everything.items == []
    [plain] = recommender.stream([rows[0]], k)
    assert len(plain.items) == min(k, len(catalogue)) and "[PAD]" not in plain.items


def test_the_spread_is_the_deviation_over_the_seeds(checkpoint, recommender):
    [row] = recommender.stream([recommender.tokens[2:6]], k=4)
    ids = [recommender.ids[item] for item in row.items]
    seq = torch.zeros(1, recommender.model.max_seq_length, dtype=torch.long)
    seq[0, :4] = torch.arange(2, 6)
    interaction = {recommender.model.ITEM_SEQ: seq, recommender.model.ITEM_SEQ_LEN: torch.tensor([4])}
    with torch.no_grad():
        seeds = recommender.model.inference_seeds
        x_start = recommender.model.sample_start(interaction, seeds)
        p = recommender.model.item_scores(x_start).softmax(-1)
        scores, std = p.mean(0), p.std(0, correction=0)
    np.testing.assert_allclose(row.scores, scores[0, ids], rtol=1e-5)
    np.testing.assert_allclose(row.spread, std[0, ids], rtol=2e-3)
    assert min(row.spread) > 0

    [single] = recommend(checkpoint, [recommender.tokens[2:6]], inference_seeds=[3])
    [many] = recommend(checkpoint, [recommender.tokens[2:6]], k=4, inference_seeds=[3, 4])
    assert single.spread is None and many == row


@pytest.mark.parametrize(
    "history, message",
    [
        ([], "history 1 .*empty"),
        (["?", "!"], "history 1 .*known: [?], !"),
        ("1193", "history 1 .*no list"),
        ([["1"]], "history 1 .*no item token"),
        ([True], "history 1 .*True"),
        (["[PAD]"], "history 1 .*PAD"),
    ],
)
def test_a_history_without_items_is_named(recommender, history, message):
    good = recommender.tokens[1:3]
    with pytest.raises(ValueError, match=message):
        list(recommender.stream([good, history, good]))


def test_a_stream_without_end_is_read_batch_by_batch(recommender):
    read = 0

    def endless():
        nonlocal read
        for item in cycle(recommender.tokens[1:]):
            read += 1
            yield [item]

    found = list(islice(recommender.stream(endless(), k=1, batch_size=8), 20))
    assert len(found) == 20 and read == 24


def test_bad_arguments_are_named(tmp_path, checkpoint, recommender):
    with pytest.raises(ValueError, match=r"k \[0\]"):
        recommend(checkpoint, [recommender.tokens[1:3]], k=0)
    with pytest.raises(ValueError, match="inference_seeds"):
        recommend(checkpoint, [recommender.tokens[1:3]], inference_seeds=0)
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        recommend("nothing.pth", [])
    with pytest.raises(ValueError, match="Pop.*no histories"):
        Recommender(train(tmp_path, "Pop"))


@pytest.mark.slow
def test_checkpoints_without_tokens_and_models_that_read_the_data_take_the_dataset(tmp_path):
    folder = str(ROOT / "dataset")
    own = {"state": "ERROR", "epochs": 1, "train_neg_sample_args": None, "data_path": folder, "hidden_size": 16}
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    torch.manual_seed(0)
    run_recbole("GRU4Rec", "markov-toy", config_dict={**own, **columns, "checkpoint_dir": str(tmp_path / "gru")})
    [file] = (tmp_path / "gru").glob("*.pth")
    known = list(histories().values())[0]
    data = {"config_dict": {"data_path": folder}}
    [found] = recommend(file, [known], k=3, **data)
    assert len(found.items) == 3 and found.spread is None
    [unseen] = recommend(file, [found.items], k=100, exclude_seen=True, **data)
    assert len(unseen.items) == 78 and not set(unseen.items) & set(found.items)  # of 81
    with pytest.raises(ValueError, match="inference_seeds .*GRU4Rec"):
        Recommender(file, inference_seeds=2, **data)

    file = train(tmp_path, "HGN")
    with pytest.raises(ValueError, match="HGN.*history alone.*user_id"):
        recommend(file, [known], config_dict={"data_path": str(tmp_path / "data")})
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="markov-toy"):
        recommend(file, [known])


# ------------------------------------------------------------------ the command line


def call(checkpoint, *args) -> None:
    main(["--model_file", checkpoint, *args])


def test_one_history_on_the_command_line(checkpoint, recommender, capsys):
    first, second = recommender.tokens[3:5]
    call(checkpoint, "--history", f"{first}, ?,{second}", "--topk", "4", "--exclude_seen")
    out = json.loads(capsys.readouterr().out)
    [row] = recommender.stream([[first, second]], k=4, exclude_seen=True)
    assert out["items"] == row.items and out["unknown"] == ["?"]
    assert out["scores"] == pytest.approx(row.scores, rel=1e-5) and out["spread"] == pytest.approx(row.spread, rel=1e-5)


def test_a_file_of_histories_keeps_its_order_and_its_keys(tmp_path, checkpoint, recommender, capsys):
    rows = list(histories().values())[:11]
    lines = [json.dumps({"user": n, "history": row}) if n % 2 else json.dumps(row) for n, row in enumerate(rows)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.jsonl"
    call(checkpoint, "--input", "in.jsonl", "--output", str(out), "--batch_size", "4", "--inference_seeds", "[3]")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    expected = recommend(checkpoint, rows, inference_seeds=[3])
    assert [row["items"] for row in found] == [row.items for row in expected]
    assert [row.get("user") for row in found] == [n if n % 2 else None for n in range(11)]
    assert all(row["spread"] is None and "history" not in row for row in found)
    assert capsys.readouterr().out.startswith("11 histories in ")


BAD_LINES = [("[]", "empty"), ("{", "no JSON"), ('"1193"', "neither a list"), ('{"items": []}', "neither a list")]


@pytest.mark.parametrize("line, message", BAD_LINES)
def test_a_bad_line_is_named_or_passed_over(tmp_path, checkpoint, recommender, line, message, capsys):
    good = json.dumps(recommender.tokens[1:4])
    (tmp_path / "in.jsonl").write_text("\n".join([good, good, line, good]) + "\n")
    with pytest.raises(SystemExit, match=f"line 3 .*{message}"):
        call(checkpoint, "--input", "in.jsonl")
    capsys.readouterr()
    call(checkpoint, "--input", "in.jsonl", "--keep_going", "--topk", "2", "--batch_size", "3")
    found = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [len(row.get("items", ())) for row in found] == [2, 2, 0, 2] and message in found[2]["error"]


def test_an_object_without_a_history_keeps_its_user(recommender):
    lines = [json.dumps({"user": "ann"}), json.dumps({"user": "bob", "history": recommender.tokens[1:4]})]
    first, second = recommend_lines(recommender, lines, k=2, keep_going=True)
    assert first["user"] == "ann" and "neither a list" in first["error"] and "items" not in first
    assert second["user"] == "bob" and len(second["items"]) == 2


def test_a_history_of_every_item_is_named_where_seen_items_are_excluded(tmp_path):
    it = Recommender(train(tmp_path, "SASRecPlus", MAX_ITEM_LIST_LENGTH=90, seen_items="excluded"))
    every = it.tokens[1:]
    rows = list(recommend_lines(it, map(json.dumps, [every[:3], every, every[1:]]), k=2, keep_going=True))
    assert len(rows[0]["items"]) == 2 and "it holds every item" in rows[1]["error"]
    assert rows[2]["items"] == every[:1]
    with pytest.raises(ValueError, match="line 2 cannot be used: it holds every item"):
        list(recommend_lines(it, map(json.dumps, [every[:3], every]), k=2))


def test_blank_lines_are_passed_over_and_the_input_is_not_written_over(tmp_path, checkpoint, recommender, capsys):
    good = json.dumps(recommender.tokens[1:4])
    (tmp_path / "in.jsonl").write_text(f"{good}\n\n{good}\n\n")
    call(checkpoint, "--input", "in.jsonl")
    assert len(capsys.readouterr().out.splitlines()) == 2
    before = (tmp_path / "in.jsonl").read_text()
    with pytest.raises(SystemExit, match="is the input"):
        call(checkpoint, "--input", "in.jsonl", "--output", "in.jsonl")
    assert (tmp_path / "in.jsonl").read_text() == before
    with pytest.raises(SystemExit, match="IsADirectoryError"):
        call(checkpoint, "--input", "in.jsonl", "--output", str(tmp_path))


def test_users_of_the_dataset_are_recommended_to_by_name(tmp_path, checkpoint, recommender, capsys):
    shutil.copytree(ROOT / "dataset" / "markov-toy", tmp_path / "data" / "markov-toy")
    whole = histories(left_out=0)["17"]
    call(checkpoint, "--user", "17", "--data_path", "data", "--mask_history", "--k", "3")
    out = json.loads(capsys.readouterr().out)
    [row] = recommender.stream([whole], k=3, exclude_seen=True)
    assert (out["user"], out["items"]) == ("17", row.items)
    call(checkpoint, "--all_users", "--data_path", "data", "--output", "out.csv", "--topk", "2")
    table = pd.read_csv("out.csv", dtype={"user": str, "item": str})
    assert list(table.columns) == ["user", "rank", "item", "score", "spread", "error"] and len(table) == 2 * 800
    [row] = recommender.stream([whole], k=2)
    own = table[table["user"] == "17"]
    assert own["item"].tolist() == row.items and own["rank"].tolist() == [1, 2]
    assert own["score"].tolist() == pytest.approx(row.scores, rel=1e-5)
    assert own["spread"].tolist() == pytest.approx(row.spread, rel=1e-4)
    with pytest.raises(SystemExit, match=r"user \[nobody\] is not known"):
        call(checkpoint, "--user", "nobody", "--data_path", "data")


def test_standard_input_is_read_and_names_are_written_as_they_are(checkpoint, recommender, monkeypatch, capsys):
    line = json.dumps({"user": "Zoë", "history": [recommender.tokens[3], "tea, 100 g ☕"]}, ensure_ascii=False)
    bad = json.dumps({"user": "Bo", "history": []})
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{line}\n{bad}\n".encode())))
    call(checkpoint, "--input", "-", "--keep_going")
    first, second = capsys.readouterr().out.splitlines()
    assert '"user": "Zoë"' in first and '"unknown": ["tea, 100 g ☕"]' in first
    assert json.loads(second) == {"user": "Bo", "error": "line 2: it is empty."}
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{line}\n{bad}\n".encode())))
    with pytest.raises(SystemExit, match=r"line 2 \(user Bo\) cannot be used: it is empty"):
        call(checkpoint, "--input", "-")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{line}\n{bad}\n".encode())))
    capsys.readouterr()
    call(checkpoint, "--input", "-", "--keep_going", "--format", "csv", "--k", "1")
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [row[0] for row in rows] == ["user", "Zoë", "Bo"] and rows[2][5] == "line 2: it is empty."


@pytest.mark.parametrize("output", [[], ["--output", "out.csv"]], ids=["screen", "file"])
def test_a_csv_has_its_header_whatever_comes_and_numbers_those_without_a_user(checkpoint, monkeypatch, capsys, output):
    for lines, users in ([[], []], [[{"user": None}, {}, {"user": "Bo"}], ["1", "2", "Bo"]]):
        text = "".join(json.dumps({**line, "history": ["3"]}) + "\n" for line in lines)
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        capsys.readouterr()
        call(checkpoint, "--input", "-", "--format", "csv", "--k", "1", *output)
        found = Path("out.csv").read_text() if output else capsys.readouterr().out
        rows = list(csv.reader(found.splitlines()))
        assert rows[0] == list(CSV_COLUMNS) and [row[0] for row in rows[1:]] == users


def test_a_history_of_names_with_commas_is_a_list_in_json(checkpoint, recommender, capsys):
    call(checkpoint, "--history", json.dumps([recommender.tokens[3], "green tea, 100 g"]))
    assert json.loads(capsys.readouterr().out)["unknown"] == ["green tea, 100 g"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["--input", "nothing.jsonl"], "nothing.jsonl"),
        (["--history", "?"], "known"),
        (["--history", "1", "--topk", "0"], "topk"),
        (["--history", "1", "--inference_seeds", "many"], "inference_seeds"),
    ],
)
def test_the_command_line_names_what_is_wrong(checkpoint, args, message):
    with pytest.raises(SystemExit, match=message):
        call(checkpoint, *args)
