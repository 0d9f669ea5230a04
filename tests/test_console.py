"""What a run shows: little on the screen, everything in the log file, and no warning of RecBole's own making."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import colorlog
import pandas as pd
import pytest

from recbole_diffusion.console import calm_screen, changed_settings, epoch_lines, metric_lines, show_run
from recbole_diffusion.quick_start import prepare_data

from .conftest import ROOT, toy_config

TOY = [f"--data_path={ROOT / 'dataset'}", "--hidden_size=16", "--inner_size=16", "--n_layers=1", "--n_heads=2"]


@pytest.fixture
def screen():
    """RecBole's handler for the screen, on a text of our own."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(colorlog.ColoredFormatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler.stream


def test_the_screen_shows_our_lines_and_warnings_unless_it_is_to_show_all(screen):
    for verbose, shown in ((False, ["ours", "WARNING: theirs too"]), (True, ["theirs", "ours", "theirs too"])):
        calm_screen({"verbose": verbose})
        logging.getLogger().info("theirs")
        logging.getLogger("recbole_diffusion").info("ours")
        logging.getLogger().warning("theirs too")
        lines = screen.getvalue().splitlines()
        assert len(lines) == len(shown) and all(line.endswith(end) for line, end in zip(lines, shown, strict=True))
        screen.truncate(screen.seek(0))


def test_the_numbers_are_those_of_the_file(screen):
    config = toy_config("DiffuRec", num_steps=3, n_layers=2, user_inter_num_interval="[12,inf)")
    calm_screen(config)
    dataset, train, _, _ = prepare_data(config)
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 1234, requires_grad=True)])
    show_run(config, dataset, model)
    raw = pd.read_csv(ROOT / "dataset/markov-toy/markov-toy.inter", sep="\t").set_axis(["user", "item", "time"], axis=1)
    kept = raw[raw.groupby("user")["item"].transform("size") >= 12]
    lines = screen.getvalue().splitlines()
    assert 0 < len(kept) < len(raw)
    assert lines[:2] == [
        f"  {kept['user'].nunique():,} users, {kept['item'].nunique():,} items, {len(kept):,} interactions of the "
        f"{len(raw):,} in the file",
        "  1,234 parameters, on cpu",
    ]
    text = " ".join(lines)
    assert "num_steps 3" in text and "user_inter_num_interval [12,inf)" in text and "n_heads 2" in text
    assert "data_path" not in text and "paper_protocol" not in text


def test_what_is_the_default_is_not_shown_as_different():
    config = toy_config("DiffuRec", topk=[5, 10, 20], hidden_size=128, epochs=7, gpu_id=3)
    changed = changed_settings(config)
    assert changed["epochs"] == 7 and not changed.keys() & {"topk", "hidden_size", "gpu_id", "model"}


def test_a_line_an_epoch_marks_the_best(screen):
    config = toy_config("DiffuRec")
    calm_screen(config)
    trainer = SimpleNamespace(config=config, best_valid_score=0.2, valid_metric_bigger=True, train_loss_dict={3: 1.5})
    told = []
    line = epoch_lines(trainer, lambda *point: told.append(point))
    for score in (0.1, 0.3, 0.25):
        line(3, score)
    lines = screen.getvalue().splitlines()
    assert [line.endswith("the best so far") for line in lines] == [False, True, False]
    assert lines[1].startswith("  epoch 4: NDCG@10 0.3000, loss 1.50, ") and told == [(3, 0.1), (3, 0.3), (3, 0.25)]


def test_the_table_has_both_protocols():
    result = {"model": "A", "dataset": "b", "epochs": 1, "test_result": {"hit@5": 0.25}}
    both = metric_lines({**result, "test_results": {"candidates": {"hit@5": 0.25}, "masked": {"hit@5": 0.5}}})
    assert both.splitlines() == [
        "Test metrics of A on b (1 epoch)",
        "  history  candidates      masked",
        "  hit@5        0.2500      0.5000",
    ]
    assert metric_lines({**result, "test_results": None}).splitlines()[1].split() == ["hit@5", "0.2500"]
    assert "leaves no test data" in metric_lines({**result, "test_result": None, "test_results": None})


def test_missing_values_and_lists_of_tokens_make_no_warning(tmp_path):
    rows = [f"{user}\t{(user + step) % 9}\t{step}\t{'' if step == 2 else step}\t{'' if step == 1 else 'a b'}"
            for user in range(12) for step in range(4)]  # fmt: skip
    (tmp_path / "shop").mkdir()
    head = "user_id:token\titem_id:token\ttimestamp:float\tprice:float\ttags:token_seq"
    (tmp_path / "shop" / "shop.inter").write_text("\n".join([head, *rows]) + "\n")
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp", "price", "tags"]}}
    config = toy_config("DiffuRec", dataset="shop", data_path=str(tmp_path), **columns)
    config["dataset"] = "shop"
    config["data_path"] = str(tmp_path / "shop")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        dataset, *_ = prepare_data(config)
    table = dataset.inter_feat.table
    assert table["price"][table["timestamp"] == 2].tolist() == pytest.approx([4 / 3] * 12)  # the mean of 0, 1 and 3
    assert (table["tags"] > 0).sum(1)[table["timestamp"] == 1].tolist() == [0] * 12
    assert (table["tags"] > 0).sum(1)[table["timestamp"] == 0].tolist() == [2] * 12


@pytest.mark.slow
def test_a_newcomer_sees_twenty_lines_and_the_log_has_the_rest(tmp_path):
    words = [sys.executable, str(ROOT / "run_recbole_diffusion.py"), "--model=DiffuRec", "--dataset=markov-toy", *TOY]
    words += ["--epochs=2", "--limit_train_batches=2", "--num_steps=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    lines = done.stderr.splitlines()
    assert lines[0] == "DiffuRec on markov-toy" and "800 users, 81 items, 9,643 interactions" in lines[1]
    assert len(lines) + len(done.stdout.splitlines()) <= 20 and "Warning" not in done.stderr
    assert [line.split(":")[0] for line in lines[-2:]] == ["  epoch 1", "  epoch 2"]
    log = (tmp_path / lines[-3].removeprefix("  log: ")).read_text()
    assert "inner_size = 16" in log and "Embedding(" in log and "test result: hit@5 : " in log and "float64" not in log

    done = subprocess.run([*words, "--verbose"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Embedding(" in done.stderr and "inner_size" in done.stderr
