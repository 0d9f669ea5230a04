"""The output of recommend: whole or not there, resumed after a cut, and going on over lines of any kind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_diffusion.quick_start import run
from recbole_diffusion.recommend import output
from recbole_diffusion.recommend.__main__ import main
from recbole_diffusion.recommend.lines import recommend_lines
from recbole_diffusion.recommend.recommender import Recommender

from ..conftest import ROOT, TINY, hear_ctrl_c

pytestmark = pytest.mark.slow

TOKENS = [f"i{n:02d}" for n in range(1, 40)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        quiet = {"state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset")}
        settings = {**TINY, **quiet, "epochs": 1, "limit_train_batches": 1, "num_steps": 4, "eval_batch_size": 8}
        return str(folder / run("DiffuRec", "markov-toy", config_dict=settings)["model_file"])


@pytest.fixture
def tokens(checkpoint) -> list[str]:
    return Recommender(checkpoint).tokens[1:]


@pytest.fixture
def histories(tokens) -> Path:
    """200 histories, with a blank line among them."""
    lines = [json.dumps({"user": n, "history": [tokens[n % 60], tokens[(7 * n) % 60]]}) for n in range(200)]
    lines.insert(50, "")
    Path("in.jsonl").write_text("\n".join(lines) + "\n")
    return Path("in.jsonl")


def call(checkpoint, *args) -> None:
    main(["--model_file", checkpoint, "--input", "in.jsonl", "--output", "out.jsonl", *args])


def left() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"in.jsonl", "log", "log_tensorboard"}


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("recbole_diffusion.recommend.job.PART", 16)


def test_a_job_that_is_cut_goes_on_and_ends_as_if_it_never_was(checkpoint, histories, small_parts, monkeypatch, capsys):
    call(checkpoint)
    whole = Path("out.jsonl").read_bytes()
    assert len(whole.splitlines()) == 200 and left() == {"out.jsonl"}
    Path("out.jsonl").write_text("the old file\n")
    rank, calls = Recommender.rank, []

    def cut(self, encoded, *args):
        calls.append(len(encoded))
        if len(calls) in (5, 9, 12):
            raise KeyboardInterrupt
        return rank(self, encoded, *args)

    monkeypatch.setattr(Recommender, "rank", cut)
    for done in (32, 48, 63):  # a blank line is among the next 16
        with pytest.raises(SystemExit, match="130"):  # as a shell says it of a program that was interrupted
            call(checkpoint)
        assert Path("out.jsonl").read_text() == "the old file\n"
        assert json.loads(Path("out.jsonl.partial.json").read_text())["records"] == done
    capsys.readouterr()
    call(checkpoint)
    told = capsys.readouterr().out
    assert "63 histories were done before" in told and "137 histories in" in told
    assert Path("out.jsonl").read_bytes() == whole and left() == {"out.jsonl"}


def test_what_was_begun_otherwise_is_begun_anew(checkpoint, histories, small_parts, monkeypatch):
    def cut_after(records, *args):
        write = output.PartialOutput.write

        def wrapper(self, text):
            if self.records == records:
                raise KeyboardInterrupt
            write(self, text)

        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
            patch.setattr(output.PartialOutput, "write", wrapper)
            call(checkpoint, *args)

    call(checkpoint, "--topk", "3")
    whole = Path("out.jsonl").read_bytes()
    cut_after(40)  # other settings
    call(checkpoint, "--topk", "3")
    assert Path("out.jsonl").read_bytes() == whole
    cut_after(40, "--topk", "3")  # what is on the disk was spoilt
    data = bytearray(Path("out.jsonl.partial").read_bytes())
    data[100] ^= 1
    Path("out.jsonl.partial").write_bytes(data)
    call(checkpoint, "--topk", "3")
    assert Path("out.jsonl").read_bytes() == whole
    cut_after(40, "--topk", "3")  # another input
    lines = histories.read_text().splitlines()
    histories.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    with pytest.raises(SystemExit, match=r"output \[.*out.jsonl\] was begun with another input: delete"):
        call(checkpoint, "--topk", "3")
    Path("out.jsonl.partial.json").unlink()
    call(checkpoint, "--topk", "3")
    assert [json.loads(line)["user"] for line in Path("out.jsonl").open()][:3] == [1, 0, 2]


def test_an_error_before_the_first_part_leaves_nothing(checkpoint, histories):
    histories.write_text('["nobody"]\n')
    with pytest.raises(SystemExit, match="line 1 cannot be used"):
        call(checkpoint)
    assert left() == set()


def test_a_line_is_numbered_as_in_the_file_in_every_part(checkpoint, histories, small_parts):
    lines = histories.read_text().splitlines()
    lines[99] = "{"
    histories.write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="line 100 cannot be used: it is no JSON"):
        call(checkpoint)
    histories.write_text("\n".join([*lines[:99], lines[0], *lines[100:]]))
    call(checkpoint)  # the line is mended, what was done stays
    assert len(Path("out.jsonl").read_text().splitlines()) == 200


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_killed_process_leaves_the_old_file(checkpoint, histories, sign):
    call(checkpoint)
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_text("the old file\n")
    code = (
        "import time; from recbole_diffusion.recommend import __main__ as m, job; job.PART = 16\n"
        "write = job.PartialOutput.write\n"
        # After the first part it waits for the signal, which else might fall where a file is being replaced.
        "def slow(self, text): time.sleep(0.02 if self.records < 20 else 60); write(self, text)\n"
        "job.PartialOutput.write = slow; m.main()"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "--model_file", checkpoint, "--input", "in.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "--output", "out.jsonl"], env=environment, preexec_fn=hear_ctrl_c)
    while not Path("out.jsonl.partial.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    # While it runs, a second process is told.
    with pytest.raises(SystemExit, match="is being written by another process"):
        call(checkpoint)
    process.send_signal(sign)
    assert process.wait() != 0
    assert Path("out.jsonl").read_text() == "the old file\n"
    call(checkpoint)
    assert Path("out.jsonl").read_bytes() == whole and left() == {"out.jsonl"}


def test_a_full_disk_leaves_the_old_file(checkpoint, histories):
    """A limit on the size of files stands in for the disk."""
    Path("out.jsonl").write_text("the old file\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SystemExit, match="OSError"):
            call(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path("out.jsonl").read_text() == "the old file\n"


def test_a_link_stays_one_and_a_device_is_written_to(checkpoint, histories, tmp_path):
    Path("elsewhere").mkdir()
    Path("elsewhere/real.jsonl").write_text("old")
    Path("out.jsonl").symlink_to("elsewhere/real.jsonl")
    call(checkpoint)
    assert Path("out.jsonl").is_symlink() and len(Path("elsewhere/real.jsonl").read_text().splitlines()) == 200
    main(["--model_file", checkpoint, "--input", "in.jsonl", "--output", "/dev/null"])
    assert not Path("/dev/null.partial").exists()


def test_files_have_the_permissions_of_the_umask(checkpoint, histories):
    before = os.umask(0o027)
    try:
        call(checkpoint)
    finally:
        os.umask(before)
    assert Path("out.jsonl").stat().st_mode & 0o777 == 0o640


ODD = {
    "a byte that is no UTF-8": (b'["\xff"]', "it is no UTF-8"),
    "nested deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "nested deep in a key": (b'{"history": ["i"], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deep"),
    "scores of its own": (b'{"history": ["i"], "scores": ["x"]}', r"key \[scores\] is one of the output's"),
    "an error of its own": (b'{"history": ["i"], "error": 1}', r"key \[error\]"),
    "items of its own": (b'{"history": ["i"], "items": 1}', r"key \[items\]"),
    "NaN": (b'{"history": ["i"], "age": NaN}', "NaN, which is no JSON"),
    "infinity": (b'{"history": ["i"], "age": -Infinity}', "-Infinity, which is no JSON"),
    "a long number": (b'{"history": ["i"], "age": ' + b"9" * 10_000 + b"}", "Exceeds the limit"),
    "no JSON": (b"{'history': []}", "it is no JSON"),
    "a number": (b"7", "neither a list"),
    "null": (b"null", "neither a list"),
    "history null": (b'{"history": null}', "no list of item tokens"),
    "history a text": (b'{"history": "i1"}', "no list of item tokens"),
    "a float": (b"[1.5]", "is no item token"),
    "a NUL": (b'["\\u0000"]', "none of its items is known"),
    "half a character": (b'["\\ud800"]', "none of its items is known"),
    "a NUL byte": (b"\0", "it is no JSON"),
}


@pytest.mark.parametrize("line, message", ODD.values(), ids=ODD)
def test_keeping_going_keeps_going(checkpoint, tokens, line, message):
    good = json.dumps({"history": tokens[:2]}).encode()
    Path("in.jsonl").write_bytes(b"\n".join([good, line, good]) + b"\n")
    with pytest.raises(SystemExit, match="line 2 cannot be used"):
        call(checkpoint)
    call(checkpoint, "--keep_going")
    first, second, third = (json.loads(row, parse_constant=pytest.fail) for row in Path("out.jsonl").open())
    assert first == third and len(first["items"]) == 10
    assert re.search(message, second.pop("error")) and not {*second} & {"items", "scores"}


def test_lines_of_text_are_read_as_ever(checkpoint, tokens):
    recommender = Recommender(checkpoint)
    [record] = recommend_lines(recommender, [json.dumps({"history": tokens[:2], "user": "ü"})], k=2)
    assert record["user"] == "ü" and len(record["items"]) == 2
