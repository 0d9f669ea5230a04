"""Files that appear whole or not at all, and locks that a second process sees."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import zlib
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file beside ``path`` that takes its place when all is written; any error leaves the old one as it was.

    The permissions are those of the umask, as ``open`` would give them. Where ``path`` is a link, what it leads to is
    replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        with open(part, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write a text in UTF-8 as ``whole_file`` does."""
    with whole_file(path, encoding="utf-8") as file:
        file.write(text)


def remove_parts(path: str | os.PathLike) -> None:
    """Remove what killed processes left of a file that ``whole_file`` writes; for the one process that may write it."""
    path = Path(os.path.realpath(path))
    for part in path.parent.glob(f".{glob.escape(path.name[:200])}.{8 * '[0-9a-f]'}"):
        part.unlink(missing_ok=True)


class Busy(ValueError):
    """Another process holds a file."""


@contextlib.contextmanager
def locked(file: IO[Any], what: str) -> Iterator[None]:
    """Hold an open file for this process alone.

    Raises
    ------
    Busy
        Another process holds it; the message begins with ``what``.
    """
    if fcntl is None:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))  # else its holder has just ended
    except (BlockingIOError, FileNotFoundError):
        held = False
    if not held:
        raise Busy(f"{what} is being written by another process.")
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def lock_file(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Hold a file of that name for this process, as `locked`; it is gone afterwards."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file, locked(file, what):
        try:
            yield
        finally:
            os.unlink(path)


def wait_for(path: str | os.PathLike, what: str) -> None:
    """Wait until no other process holds a `lock_file` of that name; a line says so, where there is one."""
    if fcntl is None:
        return
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            getLogger().warning(f"Waits for {what}, which another process is writing.")
            fcntl.flock(file, fcntl.LOCK_EX)


def checksum(path: str | os.PathLike, size: int | None = None) -> int:
    """CRC-32 of a file, or of its first ``size`` bytes."""
    crc, left = 0, os.path.getsize(path) if size is None else size
    with open(path, "rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            crc, left = zlib.crc32(part, crc), left - len(part)
    return crc
