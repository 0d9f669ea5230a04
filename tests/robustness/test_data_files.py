"""Interaction files out of the ordinary: kept as they are, or refused in a line that names file and place."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest
from recbole.data import create_dataset, data_preparation

from recbole_diffusion.quick_start import build_config, prepare_training, run

from ..conftest import TINY
from .data import HEADER, NOW, good_rows, prepare, write

pytestmark = pytest.mark.slow

USUAL = [("x", f"i{n}", NOW + n) for n in range(12)]


def items_of(rows, **overrides) -> set[str]:
    write(rows)
    _, (dataset, *_) = prepare("SASRec", **overrides)
    return set(dataset.field2id_token["item_id"][1:].tolist())


def changed(row: int, **fields) -> list[tuple]:
    """Good rows with one of them changed."""
    rows = good_rows()
    user, item, time = rows[row]
    rows[row] = (fields.get("user", user), fields.get("item", item), fields.get("time", time))
    return rows


@pytest.mark.parametrize(
    "token",
    ["nan", "NA", "null", "None", "NULL", "N/A", "<NA>", "#N/A", "1.#IND", "0012", "1e5", "true", " x", "x ", "é", "💿"]
    + [
        "a\x0bb",
        "a\x1cb",
        "a\x85b",
        "a\u2028b",
        "\u202eab",
        "\x07",
        "\\t",
        "\u241b",
        " ",
        "a%20b",
        'a"b',
        'a"',
    ]
    + ["'", "#1", "a b", "a,b", "-1", "=1+1", "../x", "[UNK]", "x" * 100_000],
)
def test_an_id_is_kept_as_it_stands(token, tried):
    tried(2)
    assert token in items_of(changed(5, item=token))
    write(changed(5, user=token))
    assert token in prepare("SASRec")[1][0].field2id_token["user_id"]


def test_ids_that_pandas_takes_for_missing_stay_apart():
    words = ["nan", "NaN", "NA", "null", "None", "n/a", "N/A", "NULL", "", "#NA"]
    rows = [(f"u{user}", word, NOW + n) for user in range(4) for n, word in enumerate(words)] + USUAL
    assert items_of(rows) == {*words, *(item for _, item, _ in USUAL)} - {""}


BAD = {
    "nul in an id": (changed(5, item="i\0a"), "line 7: .*NUL"),
    "padding as an id": (changed(5, item="[PAD]"), r"item_id \[\[PAD\]\] is RecBole's name for padding"),
    "empty time": (changed(5, time=""), r"row 6: timestamp \[\] must be a finite number; 1 of 48"),
    "nan time": (changed(5, time="nan"), r"row 6: timestamp \[\] must be"),
    "infinite time": (changed(5, time="1e400"), r"row 6: timestamp \[1e400\] must be a finite"),
    "minus infinity": (changed(5, time="-inf"), r"row 6: timestamp \[-inf\] must be"),
    "a date": (changed(5, time="2014-07-01"), r"row 6: timestamp \[2014-07-01\] must be a finite number"),
    "a time of the day": (changed(5, time="12:30"), r"row 6: timestamp \[12:30\] must be a finite number"),
    "a short row": (changed(5)[:7] + [("u9", "i3")], "line 9: has 2 fields, and the header names 3"),
    "a long row": (changed(5)[:7] + [("u9", "i3", 4, 5)], "line 9: has 4 fields, and the header names 3"),
    "an opening quote": (changed(5, item='"i'), "line 7: a quote opens and does not close"),
    "two opening quotes": (changed(5, item='"i')[:9] + [("u", '"i', 3)], "line 7: a quote opens"),
    "no rows": ([], "a header and no rows"),
}


@pytest.mark.parametrize("rows, message", BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_with_its_place(rows, message):
    file = write(rows)
    with pytest.raises(ValueError, match=f"(?s)^dataset file .{file}.*{message}") as error:
        prepare("SASRec")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("time", ["-5", " 17 ", "99999999999999999999999999", "1e10", "1700000000.25", "+3", ".5"])
def test_any_finite_number_is_a_time(time):
    write(changed(5, time=time))
    assert prepare("SASRec")[1][0].item_num == 13


@pytest.mark.parametrize("time", ["Infinity", "NaN", "1e309", "yesterday", "0x10", "1,5", "1_000", "--1", "١٢٣"])
def test_what_is_no_number_is_no_time(time):
    file = write(changed(5, time=time))
    with pytest.raises(ValueError, match=f"{file}.*row 6: timestamp .* must be a finite number"):
        prepare("SASRec")


@pytest.mark.parametrize(
    "header, message",
    [
        ("user_id\titem_id\ttimestamp", r"name each column and its type.*\[user_id\] is none"),
        ("user_id:token,item_id:token,timestamp:float", "separated by '.t'"),
        ("user_id:token\titem_id:id\ttimestamp:float", r"\[item_id:id\] is none"),
        ("user_id:token\titem_id:token\ttimestamp:token", "timestamp must be of the type float"),
        ("user_id:token\titem_id:token\titem_id:token", "two columns named .item_id"),
        ("", "name each column"),
        ("\ufeff" + HEADER, "byte order mark: set encoding to utf-8-sig"),
        ('"user_id:token"\titem_id:token\ttimestamp:float', "is none"),
    ],
)
def test_a_bad_header_is_named(header, message):
    write(good_rows(), header=header)
    with pytest.raises(ValueError, match=message) as error:
        prepare("SASRec")
    assert "\n" not in str(error.value) and "own.inter" in str(error.value)


def test_a_quoted_field_is_read_as_one():
    assert {"a b", 'say "hi"'} <= items_of(changed(5, item='"a b"')[:20] + changed(21, item='"say ""hi"""')[20:])


def test_the_end_of_the_file_needs_no_new_line_and_empty_lines_are_passed_over():
    rows = good_rows()
    file = write(rows, end="")
    assert len(prepare("SASRec")[1][0].inter_feat) > 0
    file.write_text(file.read_text().replace("\n", "\n\n") + "\n\n")
    assert prepare("SASRec")[1][0].item_num == 13
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert prepare("SASRec")[1][0].item_num == 13


@pytest.mark.parametrize(
    "recode, message",
    [
        *[(pack, "is compressed: unpack it") for pack in (gzip.compress, bz2.compress, lzma.compress)],
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "is compressed: unpack it"),
        (lambda data: b"PK\x03\x04" + data, "is compressed: unpack it"),
        (lambda data: b"PAR1\0\0" + data, "NUL"),
        (lambda data: data.decode().encode("utf-32-le"), "no text in this encoding.*NUL"),
        (lambda data: data.decode().encode("utf-16"), "is no utf-8 text"),
        (lambda data: data.replace(b"i3", "é".encode("latin-1")), "is no utf-8 text.*set encoding"),
        (lambda data: b"", "name each column"),
        (lambda data: bytes(range(256)), "is no utf-8 text|NUL|name each column"),
    ],
)
def test_bytes_that_are_no_text_are_named(recode, message):
    file = write(good_rows())
    file.write_bytes(recode(file.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        prepare("SASRec")
    assert "own.inter" in str(error.value)


def test_another_encoding_is_read_when_it_is_named():
    file = write(changed(5, item="café"))
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        file.write_text("\n".join("\t".join(map(str, row)) for row in [HEADER.split("\t"), *changed(5, item="café")]), encoding=encoding)  # fmt: skip  # noqa: E501
        assert "café" in prepare("SASRec", encoding=encoding)[1][0].field2id_token["item_id"]


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids_of_another_type_than_token_are_named(column):
    write([(user[1:], item[1:], time) for user, item, time in good_rows()], header=HEADER.replace(f"{column}:token", f"{column}:float"))  # fmt: skip  # noqa: E501
    with pytest.raises(ValueError, match=rf"own.inter\]: {column} must be of the type token, not float"):
        prepare("SASRec")


@pytest.mark.parametrize("model", ["SASRec", "SASRecPlus"])
@pytest.mark.parametrize("name", ["item_id", "user_id", "timestamp", "item_id_list"])
def test_names_of_made_columns_that_others_have_are_refused(model, name):
    write(good_rows())
    with pytest.raises(
        ValueError, match=rf"ITEM_LIST_LENGTH_FIELD \[{name}\] and LIST_SUFFIX \[_list\] must make names"
    ):
        prepare(model, ITEM_LIST_LENGTH_FIELD=name)


def test_a_time_column_that_is_not_loaded_is_named():
    """RecBole loads ids alone unless told more, and its own script neither asks for a protocol nor looks before."""
    write(good_rows())
    keys = {"data_path": "data", "paper_protocol": False, "train_neg_sample_args": None, "state": "ERROR"}
    config = build_config("SASRec", "own", None, {**keys, "load_col": {"inter": ["user_id", "item_id"]}})
    with pytest.raises(ValueError, match="load_col .* must hold timestamp"):
        data_preparation(config, create_dataset(config))


def test_fewer_items_than_the_largest_k_are_told_before_training():
    write([(f"u{user}", f"i{n % 5}", NOW + n) for user in range(5) for n in range(6)])
    settings = {"data_path": "data", "state": "ERROR", "show_progress": False, "valid_metric": "NDCG@5"}
    with pytest.raises(ValueError, match=r"topk \[10\] is more than the 5 items of dataset \[own\]"):
        prepare_training(build_config("DiffuRec", "own", None, {**settings, "topk": [5, 10]}))
    result = run("DiffuRec", "own", config_dict={**settings, **TINY, "topk": [5], "epochs": 1}, saved=False)
    assert result["test_result"]["hit@5"] == 1
