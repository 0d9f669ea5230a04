"""Atomic files read as they stand: every id kept, every time a number, and errors that name file, line and column."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as dataset_module
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from recbole_diffusion.compat.pandas_calls import FilledTable

TYPES = [kind.value for kind in FeatureType]
PADDING = "[PAD]"
COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")  # gzip, zip, bzip2, xz, zstd
CHUNK = 1 << 22  # characters looked at in one go


def bridge_reading() -> None:
    """Check an atomic file before RecBole reads it, and its times afterwards; read what stands there.

    ``Dataset._load_feat`` reads with pandas' words for missing values, so that the ids `nan`, `NA`, `null` and `None`
    are dropped with their interactions (a warning says so), joins lines where a quote opens, and takes an empty or
    infinite time for a time, which it then fills with the mean or sorts to the end.
    """
    # The module calls one function of pandas that reads; all others pass through.
    dataset_module.pd = _Pandas()
    Dataset._load_feat = _checked(Dataset._load_feat)


class _Pandas:
    """pandas with another ``read_csv``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(path, delimiter: str, usecols: list[str], dtype: dict[str, Any], encoding: str, engine: str):
        return read_table(path, delimiter, usecols, dtype, encoding)


def read_table(path, delimiter: str, usecols: list[str], dtype: dict[str, Any], encoding: str) -> pd.DataFrame:
    """Read columns of an atomic file; only an empty field is a missing id.

    Raises
    ------
    ValueError
        A number is none, or a quote opens and does not close in its line.
    """
    missing = {name: [""] if kind is str else list(_MISSING_NUMBERS) for name, kind in dtype.items()}
    options: dict[str, Any] = {"usecols": usecols, "encoding": encoding, "delimiter": delimiter}
    options |= {"keep_default_na": False, "na_values": missing}
    if len(delimiter) == 1:  # pandas' C engine takes no longer ones; exact as Python's float() is
        options |= {"engine": "c", "float_precision": "round_trip", "low_memory": False}
    else:
        options |= {"engine": "python"}
    try:
        table = pd.read_csv(path, dtype=dtype, **options)
    except ValueError as error:  # ParserError is one
        _name_bad_number(path, dtype, options)
        raise ValueError(f"dataset file [{path}] cannot be read: {_first_line(error)}") from error
    lists = [name for name in table if name.endswith("_seq")]
    return FilledTable(table.fillna(dict.fromkeys(lists, "")) if lists else table)


_MISSING_NUMBERS = pd._libs.parsers.STR_NA_VALUES


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _name_bad_number(path, dtype: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise ValueError for the first field of a number column that holds none, if that is what is wrong."""
    try:
        table = pd.read_csv(path, dtype=str, **{k: v for k, v in options.items() if k != "float_precision"})
    except ValueError:
        return
    for name in (name for name, kind in dtype.items() if kind is not str):
        bad = table.index[table[name].notna() & pd.to_numeric(table[name], errors="coerce").isna()]
        if len(bad):
            column, _, kind = name.partition(":")
            raise ValueError(
                f"dataset file [{path}], row {bad[0] + 1}: {column} [{table[name][bad[0]]}] must be a finite "
                f"number, as its type {kind} says (dates are to be converted)."
            ) from None


def _checked(load_feat):
    @functools.wraps(load_feat)
    def wrapper(self: Dataset, filepath, source):
        check_atomic_file(filepath, self.config["field_separator"], self.config["encoding"] or "utf-8")
        table = load_feat(self, filepath, source)
        if table is None:
            return table
        table = pd.DataFrame(table)  # no FilledTable any more
        if source == FeatureSource.INTERACTION:
            self.rows_in_file = len(table)  # before any filter
        if table.empty:
            raise ValueError(f"dataset file [{filepath}] has a header and no rows.")
        for field in {self.uid_field, self.iid_field} & {*table}:
            if self.field2type[field] != FeatureType.TOKEN:
                kind = self.field2type[field].value
                raise ValueError(f"dataset file [{filepath}]: {field} must be of the type token, not {kind}.")
            if (table[field] == PADDING).any():
                raise ValueError(f"dataset file [{filepath}]: {field} [{PADDING}] is RecBole's name for padding.")
        # Whoever orders by time needs one; elsewhere a missing time is a feature like any other.
        if source == FeatureSource.INTERACTION and self.config["eval_args"]["order"] == "TO":
            _check_times(self, filepath, table)
        return table

    return wrapper


def _check_times(dataset: Dataset, path, table: pd.DataFrame) -> None:
    field = dataset.time_field
    if field not in table:
        return
    if dataset.field2type[field] != FeatureType.FLOAT:
        kind = dataset.field2type[field].value
        raise ValueError(f"dataset file [{path}]: {field} must be of the type float to be sorted by, not {kind}.")
    bad = ~np.isfinite(table[field].to_numpy())
    if bad.any():
        row, value = bad.argmax() + 1, table[field].to_numpy()[bad.argmax()]
        raise ValueError(
            f"dataset file [{path}], row {row}: {field} [{'' if np.isnan(value) else value}] must be a finite number; "
            f"{bad.sum():,} of {len(bad):,} are none."
        )


def check_atomic_file(path, separator: str, encoding: str) -> None:
    """Look at a file once, in constant memory, for what RecBole could not read or would misread.

    Raises
    ------
    ValueError
        As `read_header`; or NUL characters, a quote that does not close, a row of another width than the header's.
    OSError
        It cannot be opened.
    """
    path = Path(path)
    width = len(read_header(path, separator, encoding))
    with _told(path, encoding), path.open(encoding=encoding) as text:
        text.readline()
        _check_body(path, text, separator, width)


def read_header(path, separator: str, encoding: str) -> list[str]:
    """Names of the columns of an atomic file.

    Raises
    ------
    ValueError
        It is no text in its encoding, or its first line does not name columns and their types.
    OSError
        It cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(COMPRESSED):
        raise ValueError(f"dataset file [{path}] is compressed: unpack it.")
    with _told(path, encoding), path.open(encoding=encoding) as text:
        if start[:3] == codecs.BOM_UTF8 and codecs.lookup(encoding).name == "utf-8":
            raise ValueError(f"dataset file [{path}] begins with a byte order mark: set encoding to utf-8-sig.")
        return _check_header(path, text.readline().rstrip("\n"), separator)


@contextlib.contextmanager
def _told(path: Path, encoding: str):
    try:
        yield
    except UnicodeError as error:
        raise ValueError(
            f"dataset file [{path}] is no {encoding} text ({_first_line(error)}): set encoding to what it is."
        ) from error
    except LookupError:
        raise ValueError(f"encoding [{encoding}] is unknown.") from None


def _check_header(path: Path, header: str, separator: str) -> list[str]:
    if "\0" in header:
        raise ValueError(f"dataset file [{path}] is no text in this encoding, or no text at all: it holds NUL.")
    columns = header.split(separator)
    for column in columns:
        name, _, kind = column.partition(":")
        if not name or kind not in TYPES:
            raise ValueError(
                f"dataset file [{path}]: its first line must name each column and its type, such as user_id:token, "
                f"separated by {separator!r}; types are {', '.join(TYPES)}, and [{column[:100]}] is none."
            )
    names = [column.partition(":")[0] for column in columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"dataset file [{path}] has two columns named [{twice[0]}].")
    return names


def _check_body(path: Path, text, separator: str, width: int) -> None:
    """Look closer only at parts whose lines are not alike, or hold a quote."""
    number = 2
    for lines in iter(lambda: text.readlines(CHUNK), []):
        whole = "".join(lines)
        alike = {line.count(separator) for line in lines} == {width - 1}
        if not alike or '"' in whole or "\0" in whole:
            for place, line in enumerate(lines, start=number):
                _check_line(f"dataset file [{path}], line {place}:", line.rstrip("\n"), separator, width)
        number += len(lines)


def _check_line(where: str, line: str, separator: str, width: int) -> None:
    if "\0" in line:
        raise ValueError(f"{where} holds a NUL character.")
    if not line:
        return  # pandas passes over it
    found = line.count(separator) + 1
    if '"' in line and len(separator) == 1:
        csv.field_size_limit(max(csv.field_size_limit(), len(line)))
        try:
            found = len(next(csv.reader([line], delimiter=separator, strict=True)))
        except csv.Error as error:
            raise ValueError(f"{where} a quote opens and does not close there ({error}).") from error
    if found != width:
        raise ValueError(f"{where} has {found} fields, and the header names {width}.")
