"""Histories in Parquet: the same results in one process and on Ray, part by part, and on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recbole.quick_start import run_recbole

from recbole_diffusion.quick_start import run
from recbole_diffusion.recommend import Recommender, parquet
from recbole_diffusion.recommend.__main__ import main

from ..conftest import ROOT, TINY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    values = {**TINY, "state": "ERROR", "show_progress": False, "epochs": 1, "limit_train_batches": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        file = run("SASRecPlus", "markov-toy", config_dict={**values, "data_path": str(ROOT / "dataset")})["model_file"]
        return str(folder / file)


@pytest.fixture
def histories(checkpoint) -> list[list[str]]:
    """Forty histories in two files of two row groups each, with a column of users."""
    tokens = Recommender(checkpoint).tokens[1:]
    rows = [[tokens[(7 * n + step) % len(tokens)] for step in range(1 + n % 6)] for n in range(40)]
    for number in range(2):
        table = pa.table(
            {"user": range(20 * number, 20 * number + 20), "history": rows[20 * number : 20 * number + 20]}
        )
        pq.write_table(table, f"in-{number}.parquet", row_group_size=10)
    return rows


def call(checkpoint, *args) -> None:
    main(["--model_file", checkpoint, "--input=in-*.parquet", "--output=out", "--topk=4", *args])


def check(checkpoint, histories, folder="out") -> None:
    found = pa.concat_tables(pq.read_table(file) for file in sorted(Path(folder).glob("*.parquet"))).to_pylist()
    expected = list(Recommender(checkpoint).stream(histories, 4))
    assert [row["user"] for row in found] == list(range(40))
    assert [row["items"] for row in found] == [row.items for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert (
            row["scores"] == pytest.approx(wanted.scores, rel=1e-6) and row["spread"] is None and row["unknown"] == []
        )


def test_a_column_of_the_results_and_a_damaged_record_are_named(checkpoint, histories):
    table = pq.read_table("in-0.parquet")
    pq.write_table(table.append_column("scores", table["user"]), "in-0.parquet")
    with pytest.raises(SystemExit, match=r"in-0.parquet\] has a column scores, which the results have as well"):
        call(checkpoint)
    pq.write_table(table, "in-0.parquet")
    call(checkpoint)
    Path("out/_recommend.json").write_text("")
    with pytest.raises(SystemExit, match=r"output \[out\] cannot be gone on with: _recommend.json is damaged"):
        call(checkpoint)


def test_parts_are_recommended_for_in_one_process(checkpoint, histories, capsys):
    call(checkpoint, "--batch_size=3")
    check(checkpoint, histories)
    names = [path.name for path in sorted(Path("out").iterdir())]
    assert names == ["_recommend.json", *(f"in-{file}-{group:05d}.parquet" for file in (0, 1) for group in (0, 1))]
    assert "4 of 4 parts" in capsys.readouterr().out


def test_a_checkpoint_without_tokens_is_told_where_its_dataset_lies(checkpoint, histories):
    own = {"state": "ERROR", "epochs": 1, "train_neg_sample_args": None, "hidden_size": 16, "data_path": "dataset"}
    Path("dataset").symlink_to(ROOT / "dataset")
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    run_recbole("GRU4Rec", "markov-toy", config_dict={**own, **columns, "checkpoint_dir": "gru"})
    [file] = Path("gru").glob("*.pth")
    Path("dataset").rename("elsewhere")
    with pytest.raises(SystemExit, match="data_path"):
        call(str(file))
    call(str(file), "--data_path=elsewhere")
    assert len(list(Path("out").glob("*.parquet"))) == 4


def test_a_run_that_was_cut_goes_on_with_what_is_missing(checkpoint, histories, monkeypatch, capsys):
    done, recommend_part = [], parquet.recommend_part

    def cut(recommender, part, options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part)
        return recommend_part(recommender, part, options)

    monkeypatch.setattr(parquet, "recommend_part", cut)
    with pytest.raises(SystemExit, match="130"):
        call(checkpoint)
    assert len(list(Path("out").glob("*.parquet"))) == 2
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.parquet")}
    monkeypatch.setattr(parquet, "recommend_part", recommend_part)
    call(checkpoint)
    check(checkpoint, histories)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    call(checkpoint)  # nothing is left to do
    assert "4 of 4 parts" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="another model or other options"):
        call(checkpoint, "--exclude_seen")


def test_a_file_that_has_changed_is_not_taken_for_done_and_a_new_one_is_worked_off(checkpoint, histories):
    call(checkpoint)
    pq.write_table(pq.read_table("in-0.parquet"), "in-2.parquet")
    call(checkpoint)
    assert Path("out/in-2-00000.parquet").exists()
    rows = pq.read_table("in-1.parquet").to_pylist()
    rows[0]["user"], rows[1]["user"] = rows[1]["user"], rows[0]["user"]
    pq.write_table(pa.Table.from_pylist(rows), "in-1.parquet", row_group_size=10)
    with pytest.raises(SystemExit, match=r"in-1-00000.parquet\] holds results for what \[in-1.parquet\] was before"):
        call(checkpoint)
    main(["--model_file", checkpoint, "--input=in-1.parquet", "--output=again", "--topk=4"])
    assert [row["user"] for row in pq.read_table("again/in-1-00000.parquet").to_pylist()][:3] == [21, 20, 22]


def test_a_row_without_a_history_keeps_its_user(checkpoint, histories):
    rows = pq.read_table("in-1.parquet").to_pylist()
    rows[2]["history"] = None
    pq.write_table(pa.Table.from_pylist(rows), "in-1.parquet", row_group_size=10)
    with pytest.raises(SystemExit, match=r"in-1.parquet, group 0, row 3 \(user 22\) cannot be used"):
        call(checkpoint)
    main(["--model_file", checkpoint, "--input=in-1.parquet", "--output=other", "--keep_going"])
    row = pq.read_table("other/in-1-00000.parquet").to_pylist()[2]
    assert row["user"] == 22 and "no list of item tokens" in row["error"]


def test_a_bad_row_is_named_and_its_part_is_not_written(checkpoint, histories):
    table = pq.read_table("in-1.parquet").to_pylist()
    table[12]["history"] = ["?"]
    pq.write_table(pa.Table.from_pylist(table), "in-1.parquet", row_group_size=10)
    with pytest.raises(SystemExit, match=r"in-1.parquet, group 1, row 3 .*cannot be used: .*known: [?]"):
        call(checkpoint, "--batch_size=2")
    assert sorted(path.name for path in Path("out").iterdir())[-1] == "in-1-00000.parquet"
    assert not list(Path("out").glob(".*"))
    call_other = ["--model_file", checkpoint, "--input=in-1.parquet", "--output=other", "--keep_going"]
    main(call_other)
    rows = pq.read_table("other/in-1-00001.parquet").to_pylist()
    assert "known" in rows[2]["error"] and rows[2]["items"] is None and rows[3]["error"] is None


def test_bad_input_is_named_in_one_line(checkpoint, histories):
    pq.write_table(pa.table({"items": [["1"]]}), "wrong.parquet")
    Path("broken.parquet").write_bytes(b"no")
    for args, message in [
        (["--input=nothing-*.parquet", "--output=out"], "names no file"),
        (["--input=wrong.parquet", "--output=out"], "no column history, but items"),
        (["--input=broken.parquet", "--output=out"], "no Parquet"),
        (["--input=in-0.parquet"], "--output"),
        (["--history=1", "--engine=ray"], "engine"),
        (["--history=1", "--workers=2"], r"workers \[2\] is for Ray"),
        (["--input=in-0.parquet", "--output=out", "--address=auto"], r"address \[auto\] is for Ray"),
        (["--input=in-0.parquet", "--output=out", "--format=csv"], r"format \[csv\]"),
        (["--input=in-0.parquet", "--output=.", "--engine=local"], "is not empty"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(["--model_file", checkpoint, *args])
    assert not Path("out").exists()


@pytest.mark.slow
def test_ray_gives_what_one_process_gives_and_goes_on(checkpoint, histories, monkeypatch, capsys):
    pytest.importorskip("ray.data")
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        call(checkpoint)
        for path in list(Path("out").glob("in-0*.parquet")):
            path.unlink()
        kept = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.parquet")}
        call(checkpoint, "--engine=ray", "--workers=2")
        check(checkpoint, histories)
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
        assert json.loads(Path("out/_recommend.json").read_text())["k"] == 4
        pq.write_table(pa.table({"history": [["?"]]}), "bad.parquet")
        with pytest.raises(SystemExit, match="row 1 cannot be used"):
            main(["--model_file", checkpoint, "--input=bad.parquet", "--output=bad", "--engine=ray", "--workers=1"])
    finally:
        ray.shutdown()


def test_a_cluster_that_is_not_there_is_named_and_nothing_is_written(checkpoint, histories):
    pytest.importorskip("ray.data")
    with pytest.raises(SystemExit, match=r"address \[127.0.0.1:1\] has no Ray cluster"):
        call(checkpoint, "--engine=ray", "--address=127.0.0.1:1")
    assert not Path("out").exists()
