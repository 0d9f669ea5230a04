"""A table of interactions as RecBole's atomic file, with a summary of what it holds."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from recbole_diffusion.compat.files import whole_file
from recbole_diffusion.data.tables import as_tokens, choose_columns, is_text, open_table, whole_numbers
from recbole_diffusion.data.times import PER_SECOND, UnreadableTime, as_date, read_times, times_as_text
from recbole_diffusion.data.tokens import LONGEST, escape_token, restore_token

FIELDS = ("user_id", "item_id", "timestamp")  # RecBole's names
HEADER = "{}:token\t{}:token\t{}:float\n"
ROLES = ("user", "item", "time")
DUPLICATES = ("keep", "exact", "first", "last")


@dataclass
class Summary:
    """What an atomic file holds, and how it came to be."""

    file: Path
    source: str
    users: int
    items: int
    interactions: int
    median_history: float
    repeats: float
    first: str
    last: str
    whole: list[str] = field(default_factory=list)  # which of user and item are whole numbers in the table
    notes: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that trains on the file."""
        folder = self.file.parent
        return f"recbole-diffusion run --model=SASRecPlus --dataset={shlex.quote(folder.name)} " + (
            f"--data_path={shlex.quote(str(folder.parent))}"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.source} -> {self.file}",
            *(f"  {note}" for note in self.notes),
            f"  users            {self.users:,}",
            f"  items            {self.items:,}",
            f"  interactions     {self.interactions:,}",
            f"  median history   {self.median_history:g}",
            f"  repeats          {self.repeats:.1%} of the interactions are with an item the user has had before",
            f"  time             {self.first} to {self.last} (UTC)",
            *(f"  dropped          {count:,} rows: {why}" for why, count in self.dropped.items() if count),
            "Next:",
            f"  {self.command}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class TableOptions:
    """How a table is read, and what of it is kept; None is found out.

    Attributes
    ----------
    user, item, time
        Columns; without them, those with a usual name.
    separator, encoding
        Of a CSV file.
    time_unit, time_format
        Of times: ``s``, ``ms``, ``us`` or ``ns`` of numbers; a ``strftime`` format of text.
    duplicates
        ``keep`` all; drop rows ``exact``ly equal in user, item and time; keep the ``first`` or ``last`` of each user
        and item.
    k_core
        Keep users and items with at least so many interactions, repeatedly; 0 keeps all.

    Raises ValueError, naming option, value and what is allowed.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    separator: str | None = None
    encoding: str | None = None
    time_unit: str | None = None
    time_format: str | None = None
    duplicates: str = "keep"
    k_core: int = 0

    def __post_init__(self) -> None:
        if self.duplicates not in DUPLICATES:
            raise ValueError(f"duplicates [{self.duplicates}] must be one of {', '.join(DUPLICATES)}.")
        if not isinstance(self.k_core, int) or self.k_core < 0:
            raise ValueError(f"k_core [{self.k_core}] must be an integer >= 0.")
        if self.time_unit not in (None, *PER_SECOND):
            raise ValueError(f"time_unit [{self.time_unit}] must be one of {', '.join(PER_SECOND)}.")


def write_atomic(
    source: Any,
    output: str | os.PathLike,
    overwrite: bool = False,
    fields: tuple[str, str, str] = FIELDS,
    trainable: bool = True,
    **options: Any,
) -> Summary:
    """Write a table of interactions as ``<output>/<name>.inter``, sorted by time, whole or not at all.

    ``source`` is a CSV, Parquet or JSONL file, a folder of Parquet files, or a data frame (`tables.open_table`);
    ``output`` the dataset's folder, whose last part is its name; ``options`` those of `TableOptions`. ``fields`` are
    RecBole's names of the three columns. ``trainable`` refuses what no model could be trained on and tested by.

    Raises
    ------
    ValueError, FileNotFoundError
        In one line, what of the table or the options cannot be used.
    FileExistsError
        The file is there already, without ``overwrite``.
    """
    file, wanted = Path(output) / f"{Path(output).name}.inter", TableOptions(**options)
    _check_output(file, overwrite)
    table = open_table(source, wanted.separator, wanted.encoding)
    columns, guessed = choose_columns(table, {role: getattr(wanted, role) for role in ROLES})
    try:
        data = table.read(list(columns.values()))
    except (pa.ArrowException, UnicodeError, OSError) as error:
        raise ValueError(f"table [{table.name}] cannot be read: {' '.join(str(error).split())[:300]}") from error
    if not data.num_rows:
        raise ValueError(f"table [{table.name}] has no rows.")
    notes, dropped = [*table.notes, *([f"guessed: {', '.join(guessed)}"] if guessed else [])], {}
    rows, numbers = _rows(data, columns, dropped)
    if not rows["time"].length():
        raise ValueError(f"table [{table.name}] has no row with a user, an item and a time.")
    try:
        ticks, per_second, how = read_times(rows["time"], columns["time"], wanted.time_unit, wanted.time_format)
    except UnreadableTime as error:
        raise UnreadableTime(error.name, error.place, error.why, numbers[error.place]) from None
    notes.append(f"time [{columns['time']}]: {how}")
    users, items = (_codes(rows[role], role, columns[role]) for role in ("user", "item"))
    frame = pd.DataFrame({"user": users[0], "item": items[0], "time": ticks}).sort_values("time", kind="stable")
    frame = _core(_without_duplicates(frame, wanted.duplicates, dropped, notes), wanted.k_core, dropped)
    _check_left(frame, table.name, trainable)
    times = times_as_text(frame["time"].to_numpy(), per_second)
    _write(file, fields, users[1].take(pa.array(frame["user"])), items[1].take(pa.array(frame["item"])), times)
    whole = [role for role in ("user", "item") if whole_numbers(data[columns[role]].type)]
    return _summary(frame, per_second, file, table.name, whole, notes, dropped)


def read_atomic(file: Path) -> pd.DataFrame:
    """What `write_atomic` wrote: user and item as in the table, but as text, and time in seconds."""
    with file.open(encoding="utf-8") as lines:
        fields = [column.split(":")[0] for column in lines.readline().rstrip("\n").split("\t")]
    types = dict(zip(fields, (pa.string(), pa.string(), pa.float64()), strict=True))
    table = pyarrow.csv.read_csv(
        file,
        pyarrow.csv.ReadOptions(column_names=fields, skip_rows=1),
        pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        pyarrow.csv.ConvertOptions(column_types=types),
    )
    frame = table.rename_columns(["user", "item", "time"]).to_pandas(categories=["user", "item"])
    for role in ("user", "item"):
        frame[role] = frame[role].cat.rename_categories(restore_token).astype(object)
    return frame


def _check_output(file: Path, overwrite: bool) -> None:
    if file.parent.name in ("", ".", ".."):
        raise ValueError(f"output [{file.parent}] must name the dataset's folder, such as data/shop.")
    if file.exists() and not overwrite:
        raise FileExistsError(f"output [{file}] exists: name another folder, or overwrite it (--overwrite).")


def _rows(data: pa.Table, columns: dict[str, str], dropped: dict[str, int]) -> tuple[dict[str, Any], Sequence[int]]:
    """The three columns without rows that lack a value, ids as text; and the numbers of those rows, from 1."""
    rows = {role: data[columns[role]] for role in columns}
    for role in ("user", "item"):
        rows[role] = as_tokens(rows[role], role, columns[role])
    kind = rows["time"].type
    if pa.types.is_dictionary(kind):
        rows["time"] = rows["time"].cast(kind.value_type)
    elif pa.types.is_floating(kind):
        rows["time"] = pc.if_else(pc.is_nan(rows["time"]), None, rows["time"])
    elif is_text(kind):
        text = rows["time"].cast(pa.large_string())
        rows["time"] = pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)
    whole = None
    for role in ROLES:
        valid = pc.is_valid(rows[role])
        missing = len(valid) - pc.sum(valid).as_py() if len(valid) else 0
        dropped[f"no {role} [{columns[role]}]"] = missing
        if missing:
            whole = valid if whole is None else pc.and_(whole, valid)
    if whole is None:
        return rows, range(1, data.num_rows + 1)
    return {role: column.filter(whole) for role, column in rows.items()}, np.flatnonzero(whole.to_numpy()) + 1


def _codes(column: pa.ChunkedArray, role: str, name: str) -> tuple[np.ndarray, pa.Array]:
    """Numbers [N] of the ids, and the different ids as an atomic file holds them."""
    encoded = column.combine_chunks().dictionary_encode()
    different = encoded.dictionary.to_pylist()
    safe = [escape_token(token) for token in different]
    longest = max(range(len(safe)), key=lambda place: len(safe[place]))
    if len(safe[longest]) > LONGEST:
        raise ValueError(
            f"{role} [{name}] has an id of {len(different[longest]):,} characters, [{different[longest][:30]!r}...]: "
            f"at most {LONGEST:,} can be read."
        )
    return encoded.indices.to_numpy(), pa.array(safe, pa.large_string())


def _without_duplicates(
    frame: pd.DataFrame, duplicates: str, dropped: dict[str, int], notes: list[str]
) -> pd.DataFrame:
    if duplicates == "keep":
        equal = int(frame.duplicated().sum())
        if equal:
            notes.append(
                f"{equal:,} rows ({equal / len(frame):.1%}) repeat the user, item and time of another row: kept"
            )
        return frame
    keys, keep = (["user", "item", "time"], "first") if duplicates == "exact" else (["user", "item"], duplicates)
    left = frame.drop_duplicates(keys, keep=keep)
    dropped[f"repeat another row's {', '.join(keys)}"] = len(frame) - len(left)
    return left


def _core(frame: pd.DataFrame, k_core: int, dropped: dict[str, int]) -> pd.DataFrame:
    before = len(frame)
    while k_core > 1 and len(frame):
        enough = np.logical_and(
            *(np.bincount(frame[role], minlength=1)[frame[role]] >= k_core for role in ("user", "item"))
        )
        if enough.all():
            break
        frame = frame[enough]
    dropped[f"of users or items with fewer than {k_core} interactions (k_core)"] = before - len(frame)
    return frame


def _check_left(frame: pd.DataFrame, name: str, trainable: bool) -> None:
    """Raise ValueError where nothing is left, or no model of sequences could be trained or tested."""
    if not len(frame):
        raise ValueError(f"table [{name}] has no row left: lower k_core.")
    if not trainable:
        return
    for role in ("user", "item"):
        if frame[role].nunique() < 2:
            raise ValueError(f"table [{name}] has one {role} only: two are needed at least.")
    if np.bincount(frame["user"]).max() < 3:
        raise ValueError(f"table [{name}] has no user with three interactions: one to train by, two to test by.")


def _write(file: Path, fields: tuple[str, str, str], users: pa.Array, items: pa.Array, times: pa.Array) -> None:
    """Write the atomic file beside its place and move it there."""
    new = not file.parent.exists()
    try:
        with whole_file(file, "wb") as stream:
            stream.write(HEADER.format(*fields).encode())
            pyarrow.csv.write_csv(
                pa.table([users, items, times], names=list(fields)),
                stream,
                pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none"),
            )
    except BaseException:
        if new:
            file.parent.rmdir()
        raise


def _summary(frame: pd.DataFrame, per_second: int, file: Path, source: str, whole, notes, dropped) -> Summary:
    histories = np.bincount(frame["user"])
    pairs = int((~frame.duplicated(["user", "item"])).sum())
    return Summary(
        file=file,
        source=source,
        users=int((histories > 0).sum()),
        items=frame["item"].nunique(),
        interactions=len(frame),
        median_history=float(np.median(histories[histories > 0])),
        repeats=1 - pairs / len(frame),
        first=as_date(frame["time"].iloc[0], per_second),
        last=as_date(frame["time"].iloc[-1], per_second),
        whole=whole,
        notes=notes,
        dropped=dropped,
    )
