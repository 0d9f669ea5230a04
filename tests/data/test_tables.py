"""Tables of any make become atomic files that RecBole reads back as they were, or are refused in one line."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.dataset import Dataset

from recbole_diffusion.convert import main
from recbole_diffusion.data import text_files
from recbole_diffusion.data.atomic import write_atomic
from recbole_diffusion.data.tables import kind_of
from recbole_diffusion.data.times import read_times, times_as_text
from recbole_diffusion.data.tokens import escape_token, restore_token
from recbole_diffusion.quick_start import build_config, prepare_data

from ..conftest import ROOT

START = pd.Timestamp("2024-01-31 23:59:58")
ITEMS = [
    "plain",
    "Café, große Tasse",
    '日本 "x"',
    "tab\there",
    "two\nlines",
    "NA",
    "null",
    "50% off",
    "\u241bx",
    "[PAD]",
    " a ",
]


def frame(users: int = 7, length: int = 5) -> pd.DataFrame:
    """Histories of every kind of item name, one second apart."""
    rows = [(f"user{u}@example.org", ITEMS[(u + 2 * n) % len(ITEMS)]) for n in range(length) for u in range(users)]
    table = pd.DataFrame(rows, columns=["email", "product"])
    table["when"] = START + pd.to_timedelta(np.arange(len(table)), unit="s")
    return table


def as_recbole_reads(folder: str = "data/shop", **config) -> pd.DataFrame:
    """The interactions of a dataset in time, as RecBole loads them."""
    path = Path(folder)
    values = {"data_path": str(path.parent), "state": "ERROR", "show_progress": False, **config}
    dataset = Dataset(build_config("DiffuRec", path.name, None, values))
    feat = dataset.inter_feat
    columns = {
        "email": map(restore_token, dataset.id2token(dataset.uid_field, feat[dataset.uid_field])),
        "product": map(restore_token, dataset.id2token(dataset.iid_field, feat[dataset.iid_field])),
        "when": np.asarray(feat[dataset.time_field], dtype=np.float64),
    }
    return pd.DataFrame(columns).sort_values("when", kind="stable").reset_index(drop=True)


def lines() -> list[list[str]]:
    text = Path("data/shop/shop.inter").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.split("\n")[1:-1]]


def check_same(table: pd.DataFrame, summary) -> None:
    """The written file holds the table, row by row."""
    expected = table.sort_values("when", kind="stable")
    assert [restore_token(line[0]) for line in lines()] == expected["email"].tolist()
    assert [restore_token(line[1]) for line in lines()] == expected["product"].tolist()
    seconds = pd.to_datetime(expected["when"], utc=True).astype("int64") / 10**9
    assert [float(line[2]) for line in lines()] == seconds.tolist()
    assert (summary.users, summary.items, summary.interactions) == (7, len(ITEMS), len(table))


def test_recbole_reads_back_every_id_and_time():
    write_atomic(frame(), "data/shop")
    found, expected = as_recbole_reads(), frame()
    assert found["email"].tolist() == expected["email"].tolist()
    assert found["product"].tolist() == expected["product"].tolist()
    assert found["when"].tolist() == (expected["when"].astype("int64") / 10**9).tolist()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_an_escaped_token_comes_back_and_pandas_reads_it_as_it_stands(token):
    safe = escape_token(token)
    assert restore_token(safe) == token
    text = io.StringIO(f"user_id:token\titem_id:token\n{safe}\t1\n", newline="")
    read = pd.read_csv(text, delimiter="\t", dtype=str, engine="python")  # as RecBole does
    assert read["user_id:token"].tolist() == [safe]
    assert safe == token or safe.startswith("\u241b")


def write_text(path: str, separator: str = ",", encoding: str = "utf-8", table: pd.DataFrame | None = None, **options):
    table = frame() if table is None else table
    text = table.to_csv(sep=separator, index=False, **options)
    data = text.encode(encoding)
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_marks_are_found_out_and_told(separator, encoding):
    write_text("events.csv", separator, encoding)
    summary = write_atomic("events.csv", "data/shop")
    check_same(frame(), summary)
    assert (separator == ",") != any("separator" in note for note in summary.notes)
    assert (encoding == "utf-16") == any("encoding" in note for note in summary.notes)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_latin_1_is_read_and_told(encoding):
    table = frame()
    table["product"] = (
        table["product"].str.replace("日本", "tée" if encoding == "latin-1" else "5 €").str.strip("\u241b")
    )
    write_text("events.csv", encoding=encoding, table=table)
    summary = write_atomic("events.csv", "data/shop")
    assert {restore_token(line[1]) for line in lines()} == set(table["product"])
    assert any("cp1252" in note for note in summary.notes)


@pytest.mark.parametrize(
    "separator, items, found, note",
    [
        # Files that know no quoting; each quote begins or ends one of two fields, which would swallow what is between.
        ("\t", ['"Heroes', "b", '"Hey" you'], ['"Heroes', "b", '"Hey" you'], "plain characters"),
        ("\t", ['"abc', 'def"', "x"], ['"abc', 'def"', "x"], "plain characters"),
        ("\t", ['"abc', '"def', "x"], ['"abc', '"def', "x"], "plain characters"),
        ("\t", ['"a\tb"', '"c""d"', "x"], ["a\tb", 'c"d', "x"], None),
        (",", ['"a, b"', '"c""d"', '5" disc'], ["a, b", 'c"d', '5" disc'], None),
        (",", [r'"the \"x\", 2"', "b", "c"], ['the "x", 2', "b", "c"], "follows a backslash"),
        (",", ['"two\nlines"', "b", "c"], ["two\nlines", "b", "c"], "with line breaks, within quotes: 1"),
        (",", ['"abc', '"def', "x"], None, "line 2"),
        (",", ["x", "y", '"b'], None, "line 4"),
        (",", ["x", '"Weird Al" Yankovic', "b"], ["x", "Weird Al Yankovic", "b"], "in line 3 neither"),
        # What writers of CSV do: text of several lines with tabs, and a quote before a line break.
        ("\t", ['"x\ty\nz"', "b", "c"], ["x\ty\nz", "b", "c"], "with line breaks, within quotes: 1"),
        (",", [r'"a\"' + '\n5"', "b", "c"], ['a"\n5', "b", "c"], "follows a backslash"),
        # Backslashes elsewhere stay, as Spark and MySQL mean them.
        (",", [r'"say \"hi\""', r"AC\DC", r"\N"], ['say "hi"', r"AC\DC", r"\N"], "follows a backslash"),
        (",", [r'"say \"q\""', '"dir\\"', "c"], None, "line 3"),
    ],
)
def test_quotes_enclose_fields_or_nothing(separator, items, found, note):
    rows = [("user", "item", "time"), *((f"u{n}", item, str(n)) for n, item in enumerate(items))]
    Path("events.csv").write_text("".join(separator.join(row) + "\n" for row in rows))
    if found is None:
        with pytest.raises(ValueError, match=rf'a quote \("\) in {note} neither encloses a field nor is doubled'):
            write_atomic("events.csv", "data/shop", trainable=False)
        return
    summary = write_atomic("events.csv", "data/shop", trainable=False)
    assert [[line[0], restore_token(line[1]), line[2]] for line in lines()] == [
        [f"u{n}", item, str(n)] for n, item in enumerate(found)
    ]
    assert any(note in text for text in summary.notes) if note else not any("quote" in text for text in summary.notes)


def test_a_header_in_quotes_says_that_quotes_enclose_fields():
    rows = ['"user"\t"item"\t"time"', 'a\t"Weird Al" Yankovic\t1', '"b"\t"y"\t2']
    Path("events.tsv").write_text("\n".join(rows))
    write_atomic("events.tsv", "data/shop", trainable=False)
    assert lines() == [["a", "Weird Al Yankovic", "1"], ["b", "y", "2"]]
    Path("other.tsv").write_text("\n".join([*rows, 'c\t"x\t3', 'd\ty"\t4']))
    with pytest.raises(ValueError, match="a quote .* in line 2 neither"):
        write_atomic("other.tsv", "data/other", trainable=False)


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_quotes_behind_backslashes_are_doubled_wherever_the_stream_is_cut(monkeypatch, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    Path("x.csv").write_bytes(rb'a\"b,\\",\\\"c\d\n,"\\' + b"\\")
    with io.BufferedReader(text_files.open_stream(Path("x.csv"), escaped=True)) as stream:
        assert stream.read() == rb'a""b,\",\""c\d\n,"\\' + b"\\"


@pytest.mark.parametrize("encoding", ["utf8", "UTF-8", "utf_8_sig"])
def test_an_encoding_may_be_written_in_any_of_its_ways(encoding):
    write_text("events.csv", encoding="utf-8-sig")
    check_same(frame(), write_atomic("events.csv", "data/shop", encoding=encoding))


def test_times_may_be_text_as_polars_hands_it_over():
    table = pa.Table.from_pandas(frame().assign(when=frame()["when"].astype(str)))
    views = table.set_column(2, "when", table["when"].cast(pa.string_view()))
    check_same(frame(), write_atomic(views, "data/shop"))


def write_jsonl(path: str, table: pd.DataFrame) -> None:
    rows = table.assign(when=table["when"].astype(str)).to_dict("records")
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_every_kind_of_source_gives_the_same_file(tmp_path):
    table = frame()
    write_text("events.csv")
    write_text("events.csv.gz")
    write_jsonl("events.jsonl", table)
    table.to_parquet("events.parquet")
    Path("parts").mkdir()
    for number in range(2):
        table.iloc[number * 20 : (number + 1) * 20].to_parquet(f"parts/{number}.parquet")
    sources = [
        "events.csv",
        "events.csv.gz",
        "events.jsonl",
        "events.parquet",
        "parts",
        table,
        pa.Table.from_pandas(table),
    ]
    sources += [table.set_index("email"), table.astype({"email": "category"}), table.iloc[3:].pipe(lambda t: pd.concat([table.iloc[:3], t]))]  # fmt: skip  # noqa: E501
    for source in sources:
        check_same(table, write_atomic(source, "data/shop", overwrite=True))


def test_polars_and_the_interchange_protocol(tmp_path):
    table = frame()

    class Foreign:
        def __dataframe__(self, *args, **kwargs):
            return table.__dataframe__(*args, **kwargs)

    check_same(table, write_atomic(Foreign(), "data/shop"))
    polars = pytest.importorskip("polars")
    check_same(table, write_atomic(polars.from_pandas(table), "data/shop", overwrite=True))


def test_pandas_index_column_does_not_matter():
    frame().to_csv("events.csv")
    check_same(frame(), write_atomic("events.csv", "data/shop"))


SECOND = 1_706_745_598


@pytest.mark.parametrize(
    "values, expected",
    [
        ([SECOND, SECOND + 1], [f"{SECOND}", f"{SECOND + 1}"]),
        ([SECOND * 1000 + 5, SECOND * 1000], [f"{SECOND}.005", f"{SECOND}"]),
        ([SECOND * 10**6 + 1, 0], [f"{SECOND}.000001", "0.000000"]),
        ([SECOND * 10**9 + 1], [f"{SECOND}.000000001"]),
        ([SECOND + 0.25, 1.5], [f"{SECOND}.25", "1.5"]),
        ([-1500, -(10**12)], ["-1.500", "-1000000000.000"]),
        ([20240131, 20240201], [f"{SECOND - SECOND % 86400}", f"{SECOND + 86400 - SECOND % 86400}"]),
        (["2024-01-31T23:59:58Z", "2024-02-01 01:59:58.5+02:00"], [f"{SECOND}.000", f"{SECOND}.500"]),
        (["2024-01-31", "2024-01-31 23:59:58"], [f"{SECOND - SECOND % 86400}", f"{SECOND}"]),
        (["1969-12-31 23:59:59.75"], ["-0.250"]),
        ([str(SECOND), str(SECOND + 2)], [f"{SECOND}", f"{SECOND + 2}"]),
        ([pd.Timestamp("2024-01-31").date()], [f"{SECOND - SECOND % 86400}"]),
        ([20240131235958], [f"{SECOND}"]),
        (["20240131235958", "20240201000000"], [f"{SECOND}", f"{SECOND + 2}"]),
        (
            [Decimal(SECOND * 10**9 + 791), Decimal(SECOND * 10**9 + 790)],
            [f"{SECOND}.000000791", f"{SECOND}.000000790"],
        ),
        ([Decimal(f"{SECOND}.25"), Decimal(SECOND)], [f"{SECOND}.25", f"{SECOND}"]),
    ],
    ids=str,
)
def test_times_are_exact(values, expected):
    unit = "ms" if values[0] == -1500 else None
    ticks, per_second, _ = read_times(pa.chunked_array([pa.array(values)]), "when", unit)
    found = times_as_text(ticks, per_second).to_pylist()
    assert [float(text) for text in found] == [float(text) for text in expected]
    if per_second == 10**9:  # more digits than a float has
        assert found == expected
    if per_second > 1:
        assert all(len(text.split(".")[1]) in (3, 6, 9) for text in found)


@pytest.mark.parametrize(
    "values, form, said",
    [
        (
            [SECOND, SECOND * 1000, SECOND * 1000 + 1],
            None,
            "numbers, taken for ms, though 1 of 3 have another unit's size",
        ),
        ([0, SECOND * 1000, SECOND * 1000 + 1], None, "numbers, taken for ms"),
        (["2024-01-31 23:59:58.5+02"], None, "ISO text"),
        (["2024-01-31T23:59:58Z", "2024-01-31T23:59+0200"], None, "ISO text"),
        (["2024-01-31T23:59:58Z", "2024-01-31"], None, "ISO text, taken for UTC where no zone is given"),
        (["31-01-2024"], "%d-%m-%Y", "%d-%m-%Y text, taken for UTC where no zone is given"),
        (["31-01-2024 +0200"], "%d-%m-%Y %z", "%d-%m-%Y %z text"),
    ],
    ids=str,
)
def test_how_times_are_read_is_told(values, form, said):
    assert read_times(pa.chunked_array([pa.array(values)]), "when", None, form)[2] == said


@pytest.mark.parametrize(
    "values, form, row",
    [
        (["2024-01-31", "now"], None, 2),
        (["Jan 2024", "Feb 2024", "today"], "%b %Y", 3),
        (pa.array([SECOND, 2**64 - 1], pa.uint64()), None, 2),
    ],
    ids=str,
)
def test_words_and_marks_for_no_time_are_refused(values, form, row):
    with pytest.raises(ValueError, match=rf"time \[when\] cannot be read in row {row}: \["):
        read_times(pa.chunked_array([pa.array(values)]), "when", None, form)


def test_a_unit_and_a_format_can_be_named():
    column = pa.chunked_array([pa.array([5, 7])])
    assert times_as_text(*read_times(column, "t", "ms")[:2]).to_pylist() == ["0.005", "0.007"]
    column = pa.chunked_array([pa.array(["31.01.2024 23:59", "01.02.2024 00:00"])])
    assert read_times(column, "t", None, "%d.%m.%Y %H:%M")[0].tolist() == [SECOND - 58, SECOND + 2]


def test_iso_times_are_ordered_as_times_and_not_as_text():
    table = pd.DataFrame({"user": ["a"] * 3 + ["b"] * 3, "item": list("xyzxyz")})
    table["time"] = ["2024-01-01T10:00:00+09:00", "2024-01-01T02:00:00Z", "2024-01-01T00:30:00-04:00"] * 2
    write_atomic(table, "data/shop")
    assert [line[1] for line in lines()] == ["x", "x", "y", "y", "z", "z"]


def test_times_a_millisecond_apart_keep_their_order_in_recbole():
    table = pd.DataFrame({"user": np.repeat(["a", "b", "c"], 50), "item": np.tile(np.arange(50).astype(str), 3)})
    table["time"] = SECOND * 1000 + np.arange(150)
    write_atomic(table.sample(frac=1, random_state=0), "data/shop")
    assert [line[1] for line in lines()] == table["item"].tolist()


def repeated() -> pd.DataFrame:
    table = frame()
    again = table.iloc[:4].copy()
    later = table.iloc[:3].assign(when=table["when"].iloc[:3] + pd.Timedelta("1D"))
    return pd.concat([table, again, later])


@pytest.mark.parametrize("duplicates, left", [("keep", 42), ("exact", 38), ("first", 35), ("last", 35)])
def test_duplicates_are_kept_and_told_unless_said_otherwise(duplicates, left):
    summary = write_atomic(repeated(), "data/shop", duplicates=duplicates)
    assert summary.interactions == left == len(lines())
    assert any("4 rows" in note for note in summary.notes) == (duplicates == "keep")
    assert sum(summary.dropped.values()) == 42 - left
    times = [float(line[2]) for line in lines() if line[0] == "user0@example.org" and line[1] == ITEMS[0]]
    late = (START + pd.Timedelta("1D")).timestamp()
    assert (late in times) == (duplicates != "first") and (START.timestamp() in times) == (duplicates != "last")


def test_the_core_is_taken_until_nothing_falls_out():
    # z is had once, and without it b has two interactions only: then y has one
    rows = [("a", "x"), ("a", "w"), ("a", "v"), ("b", "x"), ("b", "y"), ("b", "z"), ("c", "x"), ("c", "w"), ("c", "v"),
            ("d", "y"), ("d", "x"), ("d", "w"), ("d", "v")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["user", "item"]).assign(time=range(len(rows)))
    summary = write_atomic(table, "data/shop", k_core=3)
    assert {line[0] for line in lines()} == {"a", "c", "d"} and {line[1] for line in lines()} == {"x", "w", "v"}
    assert summary.dropped["of users or items with fewer than 3 interactions (k_core)"] == 4


def test_rows_without_a_value_are_dropped_and_counted():
    table = frame().astype({"email": object})
    table.loc[0, "email"], table.loc[3, "product"], table.loc[5, "when"] = None, "", pd.NaT
    summary = write_atomic(table, "data/shop")
    assert summary.interactions == 32
    assert {why: count for why, count in summary.dropped.items() if count} == {
        "no user [email]": 1, "no item [product]": 1, "no time [when]": 1
    }  # fmt: skip
    table["when"] = table["when"].astype(str).replace("NaT", "")
    table.loc[7, "when"] = "soon"
    with pytest.raises(ValueError, match=r"time \[when\] cannot be read in row 8: \[soon\]"):  # of the table
        write_atomic(table, "data/other")


def test_numbers_as_ids_keep_their_form():
    table = pd.DataFrame(
        {"user": [1.0, 2.0, np.nan, 1.0, 2.0, 1.0, 2.0], "item": [7, 8, 9, 7, 8, 9, 7], "time": range(7)}
    )
    write_atomic(table, "data/shop")
    assert {line[0] for line in lines()} == {"1", "2"} and {line[1] for line in lines()} == {"7", "8", "9"}
    Path("ids.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u in ("007", "1.0") for t, i in enumerate(("01", "1", "x"))))  # fmt: skip  # noqa: E501
    write_atomic("ids.csv", "data/shop", overwrite=True)
    assert {line[0] for line in lines()} == {"007", "1.0"} and {line[1] for line in lines()} == {"01", "1", "x"}


def test_the_summary_says_what_the_file_holds():
    text = str(write_atomic(repeated(), "data/my shop"))
    for part in ("users            7", "interactions     42", "median history   6", "repeats          16.7%",
                 "2024-01-31 23:59:58 to 2024-02-02 00:00:00", "user column [email]", "item column [product]",
                 "time column [when]", "--dataset='my shop' --data_path=data"):  # fmt: skip
        assert part in text, text


GOOD = "user,item,time\n" + "".join(f"u{u},i{i},{10 * u + i}\n" for u in range(3) for i in range(4))
BAD = {
    "missing": ("a,b,time\n1,2,3\n", "user column is missing.*say --user= one of .a., .b."),
    "ambiguous": ("user_id,customer,item,time\n1,2,3,4\n", "user column is ambiguous.*user_id.*customer"),
    "twice": ("user,item,item,time\n1,2,3,4\n", "item column|item .item.: .*more than one"),
    "time": (GOOD + "u9,i9,yesterday\n", r"time \[time\] cannot be read in row 13: \[yesterday\]"),
    "one user": ("user,item,time\nu,a,1\nu,b,2\nu,c,3\n", "one user only"),
    "one item": ("user,item,time\n" + "".join(f"u{n % 2},a,{n}\n" for n in range(8)), "one item only"),
    "no repeats": ("user,item,time\n" + "".join(f"u{n},i{n},{n}\n" for n in range(9)), "no user with three"),
    "long id": (GOOD + f"u1,{'x' * 1_000_000},99\n", "id of 1,000,000 characters"),
    "empty": ("", "is empty"),
    "header": ("user,item,time\n", "has no rows"),
    "nothing": ("user,item,time\n,,\n,,\n", "no row with a user"),
    "ragged": (GOOD + "u1,i2\n", "cannot be read: .*Expected 3 columns, got 2"),
    "infinite": (GOOD + "u1,i2,inf\n", "row 13: .inf. is no finite number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_named_in_one_line_and_nothing_is_written(case):
    text, message = BAD[case]
    Path("events.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        write_atomic("events.csv", "data/shop")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not Path("data/shop").exists()


def test_other_bad_input_is_named_in_one_line(capsys):
    mixed = pd.DataFrame({"user": [1, "a", 2.5], "item": [1, 2, 3], "time": [1, 2, 3]})
    Path("mixed.jsonl").write_text('{"user": 1, "item": 2, "time": 3}\n{"user": "x", "item": 2, "time": 3}\n')
    Path("broken.jsonl").write_text('{"user": 1, "item": 2, "time": 3}\n\n{"user": 1, "item": \n')
    Path("binary.csv").write_bytes(bytes(range(256)) * 9)
    lists = pa.table({"user": [[1], [2]], "item": [1, 2], "time": [1, 2]})
    Path("broken.parquet").write_bytes(b"PAR1 no")
    table = frame()
    for source, options, message in [
        (mixed, {}, "mixed types"),
        ("mixed.jsonl", {}, "mixed.jsonl. cannot be read: .*user. changed .*mixed types"),
        ("broken.jsonl", {}, "broken.jsonl. cannot be read: line 3 is no JSON"),
        ("binary.csv", {}, "binary.csv. cannot be read: it is no text"),
        (lists, {}, "user .user. holds list"),
        ("broken.parquet", {}, "broken.parquet. cannot be read"),
        (5, {}, "source .builtins.int. must be"),
        ("events.xlsx", {}, "events.xlsx"),
        (table, {"user": "nobody"}, "user .nobody.: .*no such column"),
        (table, {"user": "product", "item": "product"}, "given twice"),
        (table, {"duplicates": "none"}, "duplicates .none. must be"),
        (table, {"k_core": -1}, "k_core"),
        (table, {"k_core": 50}, "no row left"),
        (table, {"time_unit": "min"}, "time_unit"),
    ]:  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            write_atomic(source, "data/shop", **options)
        assert "\n" not in str(error.value)
    assert not Path("data/shop").exists()
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        write_atomic("nothing.csv", "data/shop")


def test_a_file_that_is_there_is_kept_unless_overwritten():
    write_atomic(frame(), "data/shop")
    before = Path("data/shop/shop.inter").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        write_atomic(frame(9), "data/shop")
    with pytest.raises(ValueError):
        write_atomic(frame().head(0), "data/shop", overwrite=True)
    assert Path("data/shop/shop.inter").read_bytes() == before
    assert [path.name for path in Path("data/shop").iterdir()] == ["shop.inter"]


def test_a_file_that_cannot_be_finished_leaves_nothing(monkeypatch):
    import pyarrow.csv

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(pyarrow.csv, "write_csv", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(frame(), "data/shop")
    assert not Path("data/shop").exists()


# ------------------------------------------------------------------ the commands


def test_the_command_converts_and_names_what_is_wrong(capsys):
    write_text("events.csv")
    main(["events.csv", "--user=email", "--item=product", "--time=when", "--output=data/shop"])
    assert "recbole-diffusion run" in capsys.readouterr().out and len(lines()) == 35
    with pytest.raises(SystemExit, match="FileExistsError"):
        main(["events.csv", "--output=data/shop"])
    with pytest.raises(SystemExit, match="nothing.csv"):
        main(["nothing.csv", "--output=data/other"])


@pytest.mark.slow
def test_the_run_script_takes_a_table_and_converts_it_once(tmp_path):
    write_text("my events.csv")
    options = [
        "--epochs=1",
        "--topk=[5,10]",
        "--hidden_size=16",
        "--inner_size=16",
        "--num_steps=4",
        "--dataset=my events.csv",
    ]
    command = [sys.executable, "-W", "ignore", str(ROOT / "run_recbole_diffusion.py"), "--model=DiffuRec", *options]
    for number in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("guessed: user column [email]" in done.stdout) == (number == 0)
        assert "hit@10" in done.stdout
    [folder] = (tmp_path / "dataset").iterdir()
    assert folder.name.startswith("my-events-")


def test_the_keys_of_recbole_name_the_columns_of_a_table(capsys):
    table = frame().rename(columns={"email": "user", "product": "thing"}).assign(customer="x")
    table.to_parquet("events.parquet")
    values = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "thing",
        "data_path": "data",
        "state": "ERROR",
        "topk": [5],
        "valid_metric": "NDCG@5",
    }
    config = build_config("DiffuRec", "events.parquet", None, values)
    assert "events.parquet ->" in capsys.readouterr().out
    assert prepare_data(config)[0].user_num == 8
    build_config("DiffuRec", "events.parquet", None, values)
    assert capsys.readouterr().out == ""  # converted once
    with pytest.raises(ValueError, match="nobody"):
        build_config("DiffuRec", "events.parquet", None, {**values, "USER_ID_FIELD": "nobody"})
    with pytest.raises(FileNotFoundError, match="nothing.csv"):
        build_config("DiffuRec", "nothing.csv", None, values)


def test_the_keys_of_recbole_say_how_a_table_is_read(tmp_path):
    rows = [f"ann{n % 8};café{n % 5}|;{n}\n" for n in range(80)]
    (tmp_path / "events.csv").write_bytes("".join(["user;item;time\n", *rows]).encode("cp437"))
    (tmp_path / "own.yaml").write_text("encoding: cp437\n")
    values = {"data_path": "data", "state": "ERROR", "topk": [2], "valid_metric": "NDCG@2", "field_separator": ";"}
    config = build_config("DiffuRec", tmp_path / "events.csv", [tmp_path / "own.yaml"], values)
    assert (config["encoding"], config["field_separator"]) == ("utf-8", "\t")
    found = prepare_data(config)[0].field2id_token["item_id"][1:]
    assert sorted(found) == [f"café{n}|" for n in range(5)]
    # Read otherwise it is another dataset.
    other = build_config("DiffuRec", tmp_path / "events.csv", None, {**values, "encoding": "cp1252"})
    assert other["dataset"] != config["dataset"]


def test_a_table_may_be_named_in_a_config_file(capsys):
    write_text("events.csv")
    Path("own.yaml").write_text("dataset: events.csv\nUSER_ID_FIELD: email\nITEM_ID_FIELD: product\nTIME_FIELD: when\n")
    values = {"data_path": "data", "state": "ERROR", "topk": [5], "valid_metric": "NDCG@5"}
    config = build_config("DiffuRec", None, ["own.yaml"], values)
    assert config["dataset"].startswith("events-") and "events.csv ->" in capsys.readouterr().out
    assert prepare_data(config)[0].user_num == 8


def test_a_column_whose_name_no_atomic_file_can_hold_is_refused():
    frame().rename(columns={"email": "e:mail"}).to_csv("events.csv", index=False)
    keys = {"USER_ID_FIELD": "e:mail", "ITEM_ID_FIELD": "product", "TIME_FIELD": "when", "data_path": "data"}
    with pytest.raises(ValueError, match=r"USER_ID_FIELD \['e:mail'\] must hold no colon"):
        build_config("DiffuRec", "events.csv", None, keys)
    assert not Path("data").exists()


def test_names_of_files_say_their_kind():
    assert kind_of("a.b.csv.gz") == "csv" and kind_of("x.parquet") == "parquet" and kind_of("x.parquet.gz") is None
    assert kind_of("ml-1m") is None and kind_of("events.NDJSON") == "jsonl" and kind_of("amazon.v2") is None


def test_ids_that_lost_digits_as_floats_are_refused():
    """JSON's numbers beyond int64 are read as floats, and so are large whole numbers with a gap in pandas."""
    lines = [{"user": 2**64 - 1 - n, "item": n, "time": n} for n in range(3)]
    Path("large.jsonl").write_text("\n".join(map(json.dumps, lines)))
    gap = pd.DataFrame({"user": [2**60, 2**60 + 1, float("nan")], "item": [1, 2, 3], "time": [1, 2, 3]})
    for table in ("large.jsonl", gap):
        with pytest.raises(ValueError, match=r"user \[user\] holds numbers of 2\^53 and more"):
            write_atomic(table, "out/t")
    write_atomic(gap.assign(user=[2**52, 2**52 + 1, float("nan")]), "out/t", trainable=False)
