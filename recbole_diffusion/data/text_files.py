"""How a table of text is written: its encoding, its separator, and whether quotes enclose its fields."""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

SEPARATORS = ",\t;|"
BLOCK = 1 << 24  # bytes that pyarrow reads at once; no row may be longer


def open_stream(path: Path, escaped: bool = False) -> Any:
    """The bytes of a file, unpacked where its name says so; ``escaped`` doubles quotes that follow a backslash."""
    stream = pa.input_stream(str(path), compression="detect")
    return _Unescaped(stream) if escaped else stream


class _Unescaped(io.RawIOBase):
    """A stream whose quotes behind a backslash are doubled instead; backslashes elsewhere stay."""

    def __init__(self, stream: pa.NativeFile):
        self.stream, self.held, self.ready, self.ended = stream, b"", memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready and not self.ended:
            block = self.stream.read(BLOCK)
            data = self.held + block
            whole = data.rstrip(b"\\") if block else data  # a quote may come next
            self.held, self.ended = data[len(whole) :], not block
            self.ready = memoryview(re.sub(rb'(\\+)"', self._doubled, whole))
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n

    @staticmethod
    def _doubled(found: re.Match) -> bytes:
        n = len(found[1])
        return b"\\" * (n // 2) + (b'""' if n % 2 else b'"')

    def close(self) -> None:
        self.stream.close()
        super().close()


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


@dataclass(frozen=True)
class Quoting:
    """How pyarrow reads the quotes of a file: its ``ParseOptions``, and whether backslashes before them are undone."""

    options: dict[str, Any]
    escaped: bool = False
    notes: tuple[str, ...] = ()


def find_quoting(path: Path, separator: str, encoding: str, quoted_header: bool) -> Quoting:
    """What quotes are in a file.

    They enclose fields, and within are doubled or follow a backslash. Where not all of them do, they are plain
    characters if tabs separate the columns, whose names have none: such files are often written without quoting. In
    other files those that do not are left out.

    Raises
    ------
    ValueError
        A quote that encloses no field, in a file of which rows would have line breaks or other lengths.
    """
    with open_stream(path) as stream:
        if not any(b'"' in chunk for chunk in iter(lambda: stream.read(BLOCK), b"")):
            return Quoting({"quote_char": False})
    plain = separator == "\t" and not quoted_header
    found = escaped = _check_quotes(path, separator, encoding, plain)
    if (found.wrong or found.ragged) and encoding[:6] not in ("utf-16", "utf-32"):
        escaped = _check_quotes(path, separator, encoding, plain, escaped=True)
        if not escaped.wrong and not escaped.ragged:
            note = 'a quote (") within quotes follows a backslash'
            return Quoting({"newlines_in_values": True}, True, (note, *escaped.notes))
    if not found.wrong:
        return Quoting({"newlines_in_values": True}, notes=found.notes)
    if plain:
        return Quoting(
            {"quote_char": False}, notes=('quotes (") are plain characters, as not all of them enclose fields',)
        )
    loose = _check_quotes(path, separator, encoding, strict=False)
    said = f'a quote (") in line {max(found.wrong, escaped.wrong)} neither encloses a field nor is doubled'
    if escaped != found or loose.wrong or loose.ragged or loose.broken:  # a row may be several, or is half undone
        raise ValueError(f"table [{path}] cannot be read: {said}.")
    return Quoting({}, notes=(f"{said}: it was left out",))


@dataclass(frozen=True)
class _Quotes:
    """A line whose quotes enclose no field (0: none), rows with line breaks, and whether rows have other lengths."""

    wrong: int
    broken: int
    ragged: bool

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"rows with line breaks, within quotes: {self.broken:,}",) if self.broken else ()


def _check_quotes(
    path: Path, separator: str, encoding: str, plain: bool = False, escaped: bool = False, strict: bool = True
) -> _Quotes:
    """Read a file by Python's csv; with ``plain``, rows in one field as they would stand without quotes are wrong."""
    limit, before, broken, ragged, width = csv.field_size_limit(BLOCK), 0, 0, False, 0
    try:
        text = io.BufferedReader(open_stream(path, escaped))
        with io.TextIOWrapper(text, "utf-8-sig" if encoding == "utf-8" else encoding, newline="") as lines:
            reader = csv.reader(lines, delimiter=separator, strict=strict)
            for row in reader:
                width = width or len(row)
                ragged |= bool(row) and len(row) != width
                if reader.line_num - before > 1 or (row and row[-1].endswith(("\n", "\r"))):
                    broken += 1
                    there = re.split("\r\n|\r|\n", separator.join(row).rstrip("\r\n"))
                    if plain and all(line.count(separator) == width - 1 for line in there):
                        return _Quotes(before + 1, broken, ragged)
                before = reader.line_num
    except csv.Error:
        return _Quotes(before + 1, broken, ragged)
    finally:
        csv.field_size_limit(limit)
    return _Quotes(0, broken, ragged)
