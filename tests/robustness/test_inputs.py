"""What is said on the command line and in files of parameters: read, never run, and wrong in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recbole_diffusion import MODELS
from recbole_diffusion.analysis.report import _without_formulas
from recbole_diffusion.cli import parse_with_parameters
from recbole_diffusion.commands.run import main
from recbole_diffusion.compat.values import read_value
from recbole_diffusion.quick_start import build_config, run

from ..conftest import ROOT, toy_config

pytestmark = pytest.mark.slow

RUN = ["run", "--model=DiffuRec", "--dataset=markov-toy", f"--data_path={ROOT / 'dataset'}", "--state=ERROR"]


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [*RUN, *words])
    main()


CODE = [
    "__import__('os').system('touch trace')",
    "exit(0)",
    "open('trace','w')",
    "[].__class__",
    "(lambda: 1)()",
    "1/0",
]
CODE += [
    "__import__('pathlib').Path('trace').touch()",
    "9**9**9",
    "[x for x in ().__class__.__base__.__subclasses__()]",
]


@pytest.mark.parametrize("text", CODE)
@pytest.mark.parametrize("key", ["weight_decay", "epochs", "learner", "hidden_size", "lr_scheduler", "metrics", "seed"])
def test_code_on_the_command_line_is_not_run(monkeypatch, key, text):
    with pytest.raises(SystemExit, match=f"^ValueError: .*{key}") as error:
        call(monkeypatch, f"--{key}={text}")
    assert "\n" not in str(error.value) and not Path("trace").exists()


@pytest.mark.parametrize("text", CODE)
def test_code_in_a_dictionary_is_not_run(text):
    with pytest.raises(ValueError, match="weight_decay"):
        toy_config("DiffuRec", weight_decay=text)
    assert not Path("trace").exists()


@pytest.mark.parametrize(
    "text, value",
    [
        *[("1e-3", 0.001), ("-1", -1), ("0x10", 16), ("True", True), ("false", False), ("None", None), ("'a'", "a")],
        *[("[1,2]", [1, 2]), ("['a']", ["a"]), ("{'a': 1}", {"a": 1}), ("(1, 2)", (1, 2)), ("adam", "adam")],
        *[("2**3", "2**3"), ("[1,2", "[1,2"), ("", ""), ("1 2", "1 2"), ("{1, 2}", "{1, 2}"), ("b'a'", "b'a'")],
        *[("1+2j", "1+2j"), ("(0,1]", "(0,1]"), ("9" * 5000, "9" * 5000), ("(" * 5000, "(" * 5000), (5, 5), ([1], [1])],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_text_is_read_as_a_value(text, value):
    found = read_value(text)
    assert found == value and type(found) is type(value)


def test_a_search_in_recbole_lists_values_and_runs_none(tmp_path):
    from recbole.trainer import HyperTuning

    (tmp_path / "good.hyper").write_text("learning_rate choice [0.1, 0.2]\n")
    assert "learning_rate" in HyperTuning._build_space_from_file(str(tmp_path / "good.hyper"))
    (tmp_path / "bad.hyper").write_text("learning_rate choice [__import__('os').system('touch\ttrace')]\n")
    with pytest.raises(ValueError, match="no list of values"):
        HyperTuning._build_space_from_file(str(tmp_path / "bad.hyper"))
    assert not Path("trace").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--learning_rate=0.1=2"], "learning_rate"),
        (["--learning_rate=0.1", "--learning_rate=0.2"], "learning_rate is given 2 times"),
        (["--learning_rate"], "write parameters as --key=value"),
        (["learning_rate=0.1"], "write parameters as --key=value"),
        (["--nproc=0"], r"nproc \[0\]"),
        (["--nproc=-1"], r"nproc \[-1\]"),
        (["--config_files=nothing.yaml"], "nothing.yaml. does not exist"),
        (["--resume=nothing.pth"], "nothing.pth"),
    ],
)
def test_words_that_make_no_sense_are_named(monkeypatch, capsys, words, message):
    import re

    with pytest.raises(SystemExit) as error:
        call(monkeypatch, *words)
    assert re.search(message, f"{error.value} {capsys.readouterr().err}")


@pytest.mark.parametrize("nproc", [0, -1, -5])
def test_no_processes_are_too_few(nproc):
    with pytest.raises(ValueError, match=rf"nproc \[{nproc}\]"):
        run("DiffuRec", "markov-toy", nproc=nproc)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
FILES = {
    "empty": (b"", "must hold keys and values"),
    "comments": (b"# nothing\n", "must hold keys and values"),
    "a scalar": (b"5\n", "must hold keys and values"),
    "a text": (b"learning_rate 0.1\n", "must hold keys and values"),
    "a list": (b"- a\n- b\n", "must hold keys and values"),
    "a key that is a number": (b"5: 6\n", "must hold keys and values"),
    "broken": (b"learning_rate: [1, 2\n", "is no YAML.*line 2"),
    "tabs": (b"a:\n\tb: 1\n", "is no YAML.*line 2"),
    "two documents": (b"a: 1\n---\nb: 2\n", "is no YAML"),
    "no UTF-8": (b"learner: \xff\n", "is no YAML.*utf-8"),
    "NUL": (b"a: \0\n", "is no YAML"),
    "exploding": (LAUGHS.encode(), "holds more values than"),
    "deep": (b"a: " + b"[" * 200 + b"]" * 200, "too deep"),
    "very deep": (b"a: " + b"[" * 20_000 + b"]" * 20_000, "is no YAML|too deep"),
    "a name of Python": (b"learner: !!python/name:os.system\n", "is no YAML|must be a plain value"),
    "an object of Python": (b"learner: !!python/object/apply:os.system [touch trace]\n", "is no YAML"),
    "a module of Python": (b"learner: !!python/module:os\n", "is no YAML|must be a plain value"),
    "a set": (b"metrics: !!set {a, b}\n", "must be a plain value"),
    "bytes": (b"metrics: !!binary aGk=\n", "must be a plain value"),
    "a key nobody reads": (b"learning_rat: 0.1\n", "learning_rat .0.1. is unknown"),
    "a kind that is none": (b"learning_rate: [1]\n", r"learning_rate \[\[1\]\] must be a number"),
}


@pytest.mark.parametrize("text, message", FILES.values(), ids=FILES)
def test_a_file_of_parameters_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=message) as error:
        build_config("DiffuRec", "markov-toy", [str(tmp_path / "bad.yaml")])
    assert "\n" not in str(error.value) and not Path("trace").exists()


def test_cells_that_a_spreadsheet_would_run_become_texts():
    import pandas as pd

    table = pd.DataFrame({"=a": ["=1+1", "+1", "-1", "@x", "\tx", "x", ""], "n": [-1.5, 2, 3, 4, 5, 6, None]})
    found = _without_formulas(table)
    assert found.columns.tolist() == ["'=a", "n"]
    assert found["'=a"].tolist() == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "x", ""]
    assert found["n"].tolist()[:6] == [-1.5, 2, 3, 4, 5, 6]


def test_parameters_keep_what_stands_behind_the_first_equals_sign():
    import argparse

    args, parameters = parse_with_parameters(argparse.ArgumentParser(), ["--data_path=/a=b", "--epochs=1"])
    assert parameters == {"data_path": "/a=b", "epochs": "1"}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_says_no_to_a_text_for_a_number(model):
    for key in ("hidden_size", "learning_rate", "train_batch_size"):
        with pytest.raises(ValueError, match=rf"{key} \['x'\]"):
            toy_config(model, **{key: "x"})


@pytest.mark.parametrize("mode", ["uni0", "pop", "uni-5", "x", 5, {"valid": "full", "test": "uni0"}, "uni9999999999"])
def test_a_mode_that_draws_no_negatives_is_refused(mode):
    """Against none, every target is a hit."""
    with pytest.raises(ValueError, match=r"eval_args.mode \[.*\] must be full, labeled, uniN or popN"):
        toy_config("SASRec", eval_args={"mode": mode})
