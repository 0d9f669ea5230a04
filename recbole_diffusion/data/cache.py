"""Tables named as datasets: converted once, and again when their content changes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_diffusion.data.atomic import HEADER, write_atomic
from recbole_diffusion.data.tables import open_table

# RecBole's keys of how a file is read, with the option of a table that each is, and what the converted file has.
READING = {"field_separator": ("separator", "\t"), "encoding": ("encoding", "utf-8")}
READER = b"2"  # to be counted up when the same table is read otherwise


def table_options(said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a table is read by what the user said, and the same keys for the file that it is converted to."""
    given = {key: READING[key] for key in READING if said.get(key) is not None}
    return {name: said[key] for key, (name, _) in given.items()}, {key: value for key, (_, value) in given.items()}


def cache_name(table: str | os.PathLike, **options: Any) -> str:
    """Name of the dataset that a table is converted to: its own with a mark of its content and how it is read.

    Raises
    ------
    FileNotFoundError
        There is no such table.
    """
    path = Path(table)
    if not path.is_file():
        raise FileNotFoundError(f"dataset [{path}] does not exist.")
    mark = hashlib.blake2b(digest_size=4)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            mark.update(block)
    mark.update(READER)
    if options:
        mark.update(repr(sorted(options.items())).encode())
    return f"{re.sub('[^A-Za-z0-9_-]+', '-', path.name.split('.')[0])}-{mark.hexdigest()}"


def cache_table(table: str | os.PathLike, config, **options: Any) -> None:
    """Convert a table into the folder of a Config's dataset and say so; where that has been done, nothing.

    USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD name its columns. One that the user said must be there; for RecBole's
    names, a usual one will do. ``options`` are those of ``table_options``.

    Raises
    ------
    ValueError
        As `write_atomic`, or a column's name could not be read again.
    """
    file = Path(config["data_path"]) / f"{config['dataset']}.inter"
    keys = {"user": "USER_ID_FIELD", "item": "ITEM_ID_FIELD", "time": "TIME_FIELD"}
    names = {role: config[key] for role, key in keys.items()}
    fields = tuple(names.values())
    for role, name in names.items():
        if re.search(r"[:\t\r\n]", str(name)):
            raise ValueError(f"{keys[role]} [{name!r}] must hold no colon, tab or line break: RecBole's files cannot.")
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            if lines.readline() == HEADER.format(*fields):
                return
    columns, said = open_table(table, **options).columns, config.external_config_dict
    given = {role: name if keys[role] in said or name in columns else None for role, name in names.items()}
    summary = write_atomic(table, file.parent, **given, **options, fields=fields, overwrite=True)
    print(f"{summary}\nKept for the next time, as long as {table} stays as it is.")
