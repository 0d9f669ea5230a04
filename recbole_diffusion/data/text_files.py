"""How a table of text is written: its encoding, its separator, and whether quotes enclose its fields."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

SEPARATORS = ",\t;|"
BLOCK = 1 << 24  # bytes that pyarrow reads at once; no row may be longer


def open_stream(path: Path) -> pa.NativeFile:
    """The bytes of a file, unpacked where its name says that it is packed."""
    return pa.input_stream(str(path), compression="detect")


def find_encoding(path: Path) -> str:
    """UTF-16 by its mark, UTF-8 where the whole file is, else the latin-1 of today, Windows-1252."""
    decoder, fallback = codecs.getincrementaldecoder("utf-8")(), False
    with open_stream(path) as stream:
        chunk = stream.read(BLOCK)
        if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        try:
            while chunk:
                decoder.decode(chunk)
                chunk = stream.read(BLOCK)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            pass
    with open_stream(path) as stream:
        while chunk := stream.read(BLOCK):
            fallback = fallback or bool(re.search(rb"[\x81\x8d\x8f\x90\x9d]", chunk))  # not in Windows-1252
    return "latin-1" if fallback else "cp1252"


def find_separator(head: str) -> str:
    """The separator that cuts the first rows into most columns, as many in each."""

    def columns(separator: str) -> int:
        try:
            rows = [row for row in csv.reader(io.StringIO(head), delimiter=separator) if row][:20]
        except csv.Error:
            return 0
        rows = rows[:-1] if len(rows) == 20 or (len(rows) > 2 and not head.endswith("\n")) else rows
        return len(rows[0]) if rows and all(len(row) == len(rows[0]) for row in rows) else 0

    best = max(SEPARATORS, key=columns)
    if columns(best) > 1:
        return best
    return max(SEPARATORS, key=head.split("\n", 1)[0].count)  # rows of other lengths: pyarrow will name the first


def find_quoting(path: Path, separator: str, encoding: str) -> tuple[dict[str, Any], list[str]]:
    """What quotes are in a file, as pyarrow's ``ParseOptions``, and notes of what is not usual.

    They enclose fields, and within are doubled or follow a backslash. Where not all of them do, they are plain
    characters if tabs separate the columns: such files are often written without quoting.

    Raises
    ------
    ValueError
        With another separator, naming the line of a quote that does neither.
    """
    with open_stream(path) as stream:
        if not any(b'"' in chunk for chunk in iter(lambda: stream.read(BLOCK), b"")):
            return {"quote_char": False}, []
    wrong, broken = _check_quotes(path, separator, encoding)
    if not wrong:
        notes = [f"rows with line breaks, within quotes: {broken:,}"] if broken else []
        return {"newlines_in_values": True}, notes
    if not _check_quotes(path, separator, encoding, escapechar="\\")[0]:
        return {"newlines_in_values": True, "escape_char": "\\"}, ['a quote (") within quotes follows a backslash']
    if separator == "\t":
        return {"quote_char": False}, ['quotes (") are plain characters, as not all of them enclose fields']
    raise ValueError(
        f'table [{path}] cannot be read: a quote (") in line {wrong} neither encloses a field nor is doubled.'
    )


def _check_quotes(path: Path, separator: str, encoding: str, **options: Any) -> tuple[int, int]:
    """The first line whose quotes enclose no fields, 0 where all do; and how many rows hold line breaks."""
    limit, broken, before = csv.field_size_limit(2**31 - 1), 0, 0
    try:
        text = io.BufferedReader(open_stream(path))
        with io.TextIOWrapper(text, "utf-8-sig" if encoding == "utf-8" else encoding, newline="") as lines:
            reader = csv.reader(lines, delimiter=separator, strict=True, **options)
            for row in reader:
                if reader.line_num - before > 1:
                    broken += 1
                    if separator == "\t" and any("\t" in value and "\n" in value for value in row):
                        return before + 1, broken  # from a quote at one field's begin to one at another's end
                before = reader.line_num
    except csv.Error:
        return before + 1, broken
    finally:
        csv.field_size_limit(limit)
    return 0, broken
