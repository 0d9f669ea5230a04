"""Tables named as datasets: converted once, and again when their content changes."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from recbole_diffusion.data.atomic import HEADER, write_atomic
from recbole_diffusion.data.tables import open_table


def cache_name(table: str | os.PathLike) -> str:
    """Name of the dataset that a table is converted to: its own with a mark of its content.

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
    return f"{re.sub('[^A-Za-z0-9_-]+', '-', path.name.split('.')[0])}-{mark.hexdigest()}"


def cache_table(table: str | os.PathLike, config) -> None:
    """Convert a table into the folder of a Config's dataset and say so; where that has been done, nothing.

    USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD name its columns. One that the user said must be there; for RecBole's
    names, a usual one will do.
    """
    file = Path(config["data_path"]) / f"{config['dataset']}.inter"
    keys = {"user": "USER_ID_FIELD", "item": "ITEM_ID_FIELD", "time": "TIME_FIELD"}
    names = {role: config[key] for role, key in keys.items()}
    fields = tuple(names.values())
    if file.is_file():
        with file.open(encoding="utf-8") as lines:
            if lines.readline() == HEADER.format(*fields):
                return
    columns, said = open_table(table).columns, config.external_config_dict
    given = {role: name if keys[role] in said or name in columns else None for role, name in names.items()}
    summary = write_atomic(table, file.parent, **given, fields=fields, overwrite=True)
    print(f"{summary}\nKept for the next time, as long as {table} stays as it is.")
