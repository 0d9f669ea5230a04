"""What programs that train many models share: a run untouched by the command line, its settings, whole files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from recbole.config import Config

from recbole_diffusion.config.settings import settings


@contextlib.contextmanager
def own_process_state() -> Iterator[None]:
    """Hide the command line from RecBole's Config, and keep the environment as it is.

    Config takes every ``--key=value`` it finds in ``sys.argv`` above all else: there stand our flags, in a Ray worker
    Ray's. It also sets CUDA_VISIBLE_DEVICES, which must not reach the processes that Ray starts.
    """
    with mock.patch.object(sys, "argv", sys.argv[:1]), mock.patch.dict(os.environ):
        yield


def plain_config(config: Config) -> dict[str, Any]:
    """What a Config says of the result, as JSON's values: no paths, no device."""
    return settings(config)


def write_whole(path: Path, text: str) -> None:
    """Write a file in one piece: readers, and a crash, see the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def told(error: Exception) -> str:
    """What went wrong, in a line: a ValueError speaks for itself, others by their type."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
