"""The output of a long job: the file appears when it is whole, and a job that was cut goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from recbole_diffusion.compat.files import checksum, locked, remove_parts, whole_file

PART = 10_000  # lines of a part: what is lost when a job is cut


class PartialOutput:
    """Lines on their way to ``path``: beside it ``<path>.partial``, with a manifest of what of it is done.

    The manifest, ``<path>.partial.json``, is written after each part of PART lines: how many lines of input are done,
    how many bytes of output they made, and the checksums of both. A job with the same ``job`` (model, settings) takes
    up what the manifest says; anything else begins anew. ``path`` itself is touched when all is done.

    Raises
    ------
    ValueError
        Another process writes the same output, or the input is not that of the manifest.
    """

    def __init__(self, path: str | os.PathLike, job: dict[str, Any]):
        self.path, self.job = Path(os.path.realpath(path)), job
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.manifest = self.path.with_name(f"{self.path.name}.partial.json")
        self.records = self.lines = self.size = self.crc = self.input_crc = 0
        self._read = (0, 0)  # lines read, and their checksum

    def __enter__(self) -> PartialOutput:
        if self.path.is_dir():
            raise IsADirectoryError(f"output [{self.path}] is a folder: name a file.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(open(self.partial, "ab"))
            stack.enter_context(locked(self.file, f"output [{self.path}]"))
            remove_parts(self.manifest)
            self._take_up()
            self.file.truncate(self.size)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if not self.lines:  # no part is done
            self.partial.unlink(missing_ok=True)
        self._stack.close()

    def _take_up(self) -> None:
        """Read the manifest where it is of this job and of the file beside it."""
        try:
            told = json.loads(self.manifest.read_text(encoding="utf-8"))
            whole = told["job"] == self.job and self.partial.stat().st_size >= told["size"]
            if whole and checksum(self.partial, told["size"]) == told["crc"]:
                numbers = {key: int(told[key]) for key in ("records", "lines", "size", "crc", "input_crc")}
                vars(self).update(numbers)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no manifest, or not one of this job

    def rest(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """The lines of input that are not done yet; the others are read and compared."""
        lines, crc = iter(lines), 0
        for _ in range(self.lines):
            crc = zlib.crc32(next(lines, b""), crc)
        if crc != self.input_crc:
            raise ValueError(
                f"output [{self.path}] was begun with another input: delete {self.manifest.name} to begin anew."
            )
        self._read = (self.lines, crc)
        for line in lines:
            self._read = self._read[0] + 1, zlib.crc32(line, self._read[1])
            yield line

    def begin(self, head: str) -> None:
        """Write what stands above the records, where nothing is written yet."""
        if not self.size:
            self._append(head)

    def write(self, text: str) -> None:
        """Append a record."""
        self._append(text)
        self.records += 1

    def _append(self, text: str) -> None:
        data = text.encode()
        self.file.write(data)
        self.size, self.crc = self.size + len(data), zlib.crc32(data, self.crc)

    def part_done(self) -> None:
        """Put on record that what is written so far answers all lines read so far."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.lines, self.input_crc = self._read
        done = {key: getattr(self, key) for key in ("job", "records", "lines", "size", "crc", "input_crc")}
        with whole_file(self.manifest) as file:
            json.dump(done, file)

    def finish(self) -> None:
        """Give the file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.partial, self.path)
        self.manifest.unlink(missing_ok=True)
