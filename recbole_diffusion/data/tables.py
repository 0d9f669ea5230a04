"""Tables of interactions: CSV, Parquet and JSONL files, and data frames of pandas, Arrow and polars."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json

from recbole_diffusion.data.text_files import BLOCK, find_encoding, find_quoting, find_separator, open_stream

KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
PACKED = (".gz", ".bz2", ".zst", ".lz4")

# The usual names, without case and punctuation; those of a later group count where none of an earlier one is there.
USUAL: dict[str, tuple[str, ...]] = {
    "user": (
        "user userid uid useridx username customer customerid client clientid visitor visitorid member memberid "
        "account accountid buyer buyerid reviewer reviewerid shopper shopperid person personid",
        "email mail useremail customeremail session sessionid",
    ),
    "item": (
        "item itemid iid itemidx product productid article articleid movie movieid book bookid isbn track trackid "
        "song songid artist artistid video videoid news newsid sku asin parentasin content contentid business "
        "businessid good goodsid offer offerid ad adid poi poiid venue venueid",
        "itemname productname title name",
    ),
    "time": (
        "timestamp time datetime ts when eventtime eventtimestamp eventdate createdat createdon unixtime unixtimestamp "
        "unixreviewtime timestampms date day tdat visitdate purchasedate orderdate orderedat purchasedat reviewdate",
    ),
}  # fmt: skip


@dataclass
class Table:
    """A table that is open: its columns, how to read some of them, and what was found out about it."""

    name: str
    columns: list[str]
    read: Callable[[list[str]], pa.Table]
    notes: list[str]


def kind_of(path: str | os.PathLike) -> str | None:
    """``csv``, ``jsonl`` or ``parquet`` by the name of a file, None for any other."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
        return {"csv": "csv", "jsonl": "jsonl"}.get(KINDS.get(suffixes[-1] if suffixes else ""))
    return KINDS.get(suffixes[-1] if suffixes else "")


def open_table(source: Any, separator: str | None = None, encoding: str | None = None) -> Table:
    """Open a file, a folder of Parquet files, or a data frame (pandas, Arrow, polars, or any with ``__dataframe__``).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is empty, broken, or of a kind that is not read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _open_frame(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"table [{path}] does not exist.")
    kind = "parquet" if path.is_dir() else kind_of(path)
    if kind is None:
        known = ", ".join(KINDS)
        raise ValueError(f"table [{path}] must end in one of {known} (text also with {', '.join(PACKED)}).")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"table [{path}] is empty.")
    try:
        if kind == "csv":
            return _open_csv(path, separator, encoding)
        return _open_parquet(path) if kind == "parquet" else _open_jsonl(path)
    except (pa.ArrowException, UnicodeError, csv.Error, OSError) as error:
        raise ValueError(f"table [{path}] cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _open_frame(frame: Any) -> Table:
    kind = f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}"
    try:
        if isinstance(frame, pa.Table):
            table = frame
        elif type(frame).__module__.startswith("pandas"):
            table = pa.Table.from_pandas(frame)  # an index with a name becomes a column, others are left out
        elif hasattr(frame, "__arrow_c_stream__"):
            table = pa.table(frame)
        elif hasattr(frame, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            table = from_dataframe(frame)
        else:
            raise ValueError(f"source [{kind}] must be the path of a table or a data frame.")
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"{kind} cannot be read ({_one_line(error)}): mixed types must be made text first.") from error
    return Table(kind, table.column_names, table.select, [])


def _open_parquet(path: Path) -> Table:
    data = pyarrow.dataset.dataset(path, format="parquet")
    return Table(str(path), data.schema.names, lambda columns: data.to_table(columns=columns), [])


def _open_jsonl(path: Path) -> Table:
    try:
        with open_stream(path) as stream:
            options = pyarrow.json.ReadOptions(block_size=BLOCK)
            table = pyarrow.json.read_json(stream, read_options=options)
    except pa.ArrowInvalid as error:  # its rows count from 0 and in each block anew
        _check_json_lines(path)
        said = re.sub(r" in row \d+", "", _one_line(error))
        raise ValueError(f"table [{path}] cannot be read: {said}; mixed types must be made text first.") from error
    return Table(str(path), table.column_names, table.select, [])


def _check_json_lines(path: Path) -> None:
    """Raise ValueError naming the first line that is no JSON."""
    with io.BufferedReader(open_stream(path)) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line.strip() or "0")
            except ValueError:
                raise ValueError(f"table [{path}] cannot be read: line {number} is no JSON.") from None


def _open_csv(path: Path, separator: str | None, encoding: str | None) -> Table:
    """Find encoding, separator and header; the rows are read as text, so that no id changes its form."""
    notes = []
    if encoding is None:
        encoding = find_encoding(path)
        if encoding != "utf-8":
            notes.append(f"encoding {encoding} (--encoding names another)")
    try:
        encoding = codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(f"encoding [{encoding}] is unknown.") from None
    with open_stream(path) as stream:
        head = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)("replace").decode(
            stream.read(1 << 20)
        )
    if "\0" in head:
        raise ValueError(f"table [{path}] cannot be read: it is no text.")
    if separator is None:
        separator = find_separator(head)
        if separator != ",":
            notes.append(f"separator {'tab' if separator == chr(9) else separator}")
    if len(separator) != 1:
        raise ValueError(f"separator [{separator}] must be one character.")
    names = next((row for row in csv.reader(io.StringIO(head), delimiter=separator) if row), [])

    def read(columns: list[str]) -> pa.Table:
        quoting = find_quoting(path, separator, encoding, '"' in head.lstrip("\ufeff\r\n").partition("\n")[0])
        notes.extend(quoting.notes)
        with open_stream(path, quoting.escaped) as stream:
            return pyarrow.csv.read_csv(
                stream,
                pyarrow.csv.ReadOptions(block_size=BLOCK, encoding="utf8" if encoding == "utf-8" else encoding),
                pyarrow.csv.ParseOptions(delimiter=separator, **quoting.options),
                pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=columns),
            )

    return Table(str(path), names, read, notes)


def choose_columns(table: Table, given: dict[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """The columns of users, items and times, ``{role: column}``, given or with a usual name; and what was guessed.

    Raises
    ------
    ValueError
        A column is missing, there twice, serves two roles, or several have a usual name.
    """
    chosen, guessed = {}, []
    for role, groups in USUAL.items():
        column = given.get(role)
        if column is None:
            column = _guess(table, role, groups, set(filter(None, given.values())))
            guessed.append(f"{role} column [{column}]")
        if table.columns.count(column) != 1:
            often = "no" if column not in table.columns else "more than one"
            raise ValueError(f"{role} [{column}]: {table.name} has {often} such column, but {_listed(table.columns)}.")
        if column in chosen.values():
            raise ValueError(f"{role} [{column}] is given twice: users, items and times need a column each.")
        chosen[role] = column
    return chosen, guessed


def _guess(table: Table, role: str, groups: Sequence[str], taken: set[str]) -> str:
    plain = {column: re.sub(r"[^a-z0-9]", "", column.split(":")[0].lower()) for column in table.columns}
    for names in groups:
        found = [column for column, name in plain.items() if name in names.split() and column not in taken]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{role} column is ambiguous in {table.name}: say --{role}= one of {_listed(found)}.")
    raise ValueError(f"{role} column is missing in {table.name}: say --{role}= one of {_listed(table.columns)}.")


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(f"[{column[:40]}]" for column in columns[:12])
    return f"{shown} and {len(columns) - 12} more" if len(columns) > 12 else shown or "no column"


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text, in whichever of Arrow's forms; pandas, Parquet and polars hand over different ones."""
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind)


def as_tokens(column: pa.ChunkedArray, role: str, name: str) -> pa.ChunkedArray:
    """Ids as text, null where one is missing; whole floats, as pandas makes of whole numbers with gaps, lose their .0.

    Raises
    ------
    ValueError
        Values that are no ids, such as lists, or floats beyond the whole numbers that they tell apart.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    types = pa.types
    if types.is_floating(kind):
        column = pa.compute.if_else(pa.compute.is_nan(column), None, column)
        if (pa.compute.max(pa.compute.abs(column)).as_py() or 0) >= 2**53:  # JSON's numbers beyond int64 among them
            raise ValueError(
                f"{role} [{name}] holds numbers of 2^53 and more that lost digits as floats: make them text."
            )
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid:
            pass
    elif not (types.is_integer(kind) or types.is_decimal(kind) or types.is_null(kind) or is_text(kind)):
        raise ValueError(f"{role} [{name}] holds {kind}: ids must be text or numbers.")
    text = column.cast(pa.large_string())
    return pa.compute.if_else(pa.compute.equal(text, ""), None, text)


def whole_numbers(kind: pa.DataType) -> bool:
    """Whether a column of ids holds whole numbers, to be given back as such."""
    return pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind)
