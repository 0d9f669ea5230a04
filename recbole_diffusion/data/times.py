"""Times of a table, whatever they are written in, as exact numbers of seconds."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
SIZES = [10**11, 10**14, 10**17]  # from where on a number is of the next unit: as seconds, 10**11 is the year 5138
ZONE = r"[T ]\d.*(Z|z|[+-]\d\d(:?\d\d)?)$"  # behind a time of the day
DATE_NUMBERS = {"20240131": "%Y%m%d", "20240131235900": "%Y%m%d%H%M%S"}


class UnreadableTime(ValueError):
    """A time that cannot be read: ``place`` is its row's, from 0, and ``row`` what the message calls it, from 1."""

    def __init__(self, name: str, place: int, why: str, row: int | None = None):
        super().__init__(f"time [{name}] cannot be read in row {place + 1 if row is None else row}: {why}")
        self.name, self.place, self.why = name, place, why


def read_times(
    column: pa.ChunkedArray, name: str, unit: str | None = None, time_format: str | None = None
) -> tuple[np.ndarray, int, str]:
    """Times [N] as ``(ticks, ticks per second, how they were read)``, without loss.

    Ticks are whole numbers, or float64 seconds where the column holds fractions. Numbers are seconds, milliseconds,
    microseconds or nanoseconds by their size, unless ``unit`` says which; eight or fourteen digits that are a calendar
    date are a date. Text is numbers or ISO 8601, or what ``time_format`` (as of ``strftime``) says; without a zone it
    is UTC. The column has no missing values.

    Raises
    ------
    UnreadableTime, ValueError
        The first time that cannot be read; or a column that holds no times.
    """
    kind = column.type
    if time_format is None:
        if pa.types.is_timestamp(kind):
            return *_shortened(_numpy(column.cast(pa.int64())), PER_SECOND[kind.unit]), f"timestamps ({kind})"
        if pa.types.is_date(kind):
            return _numpy(column.cast(pa.date32()).cast(pa.int32())).astype(np.int64) * 86400, 1, "dates"
        if pa.types.is_decimal(kind):
            column = _whole_or_float(column)
            kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _numbers(_numpy(column), name, unit)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or time_format):
        raise ValueError(f"time column [{name}] holds {kind}: it must hold numbers, dates or text.")
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    if time_format is None:
        with contextlib.suppress(pa.ArrowInvalid):
            return _numbers(_numpy(_whole_or_float(text)), name, unit)
    return _dates(text, name, time_format)


def _whole_or_float(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text or decimals as whole numbers, where all are, with every digit; raises ArrowInvalid for what is no number."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.float64())


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().to_numpy(zero_copy_only=False)


def _numbers(values: np.ndarray, name: str, unit: str | None) -> tuple[np.ndarray, int, str]:
    """Seconds or a finer unit, by size; whole floats are whole numbers."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UnreadableTime(name, bad[0], f"[{values[bad[0]]}] is no finite number.")
    if values.dtype.kind == "f" and (np.abs(values) < 2**63).all() and (values == np.floor(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind == "u" and values.max() >= 2**63:
        raise UnreadableTime(name, int(values.argmax()), f"[{values.max()}] is beyond every date.")
    values = values.astype(np.int64) if values.dtype.kind in "iu" else values.astype(np.float64)
    dates = _calendar_dates(values) if unit is None and values.dtype.kind == "i" else None
    if dates is not None:
        return dates[0], 1, dates[1]
    how = "numbers, taken for {}"
    if unit is None:
        amounts = np.abs(values)
        sizes, size = (np.searchsorted(SIZES, part, side="right") for part in (amounts, np.median(amounts)))
        unit, others = list(PER_SECOND)[size], np.count_nonzero((sizes != size) & (values != 0))
        how += f", though {others:,} of {len(values):,} have another unit's size" if others else ""
    per_second, how = PER_SECOND[unit], how.format(unit)
    if values.dtype.kind == "f":
        return values / per_second, 1, how
    return *_shortened(values, per_second), how


def _calendar_dates(values: np.ndarray) -> tuple[np.ndarray, str] | None:
    """Whole numbers that are dates of the calendar, written without marks, as seconds and what they are; else None."""
    for example, form in DATE_NUMBERS.items():
        tail = 10 ** (len(example) - 8)
        if values.min() >= 19000101 * tail and values.max() < 21010101 * tail:
            dates = pd.to_datetime(pd.Series(values).astype(str), format=form, errors="coerce")
            if dates.notna().all():
                return dates.to_numpy().astype("datetime64[s]").astype(np.int64), f"dates such as {example}"
    return None


def _dates(text: pa.ChunkedArray, name: str, time_format: str | None) -> tuple[np.ndarray, int, str]:
    """Text as dates and times, to the nanosecond."""
    series = text.to_pandas()
    numbers = pd.to_numeric(series, errors="coerce")
    if time_format is None and numbers.notna().mean() > 0.5:  # numbers, and somewhere among them something else
        row = int(numbers.isna().argmax())
        raise UnreadableTime(name, row, f"[{series[row][:60]}] is no number, as others are.")
    times = pd.to_datetime(series, format=time_format or "ISO8601", utc=True, errors="coerce")
    moments = series.str.lower().isin(("now", "today"))  # pandas would take the moment of reading
    bad = np.flatnonzero(times.isna() | moments)
    if len(bad):
        wanted = f"time_format [{time_format}]" if time_format else "ISO dates such as 2024-12-31 23:59:00 or numbers"
        hint = "" if time_format else "; name another form by time_format, such as %d.%m.%Y"
        raise UnreadableTime(name, bad[0], f"[{series.iloc[bad[0]][:60]}] must be {wanted}{hint}.")
    zoned = "%z" in time_format.lower() if time_format else pc.all(pc.match_substring_regex(text, ZONE)).as_py()
    zone = "" if zoned else ", taken for UTC where no zone is given"
    ticks = times.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    return *_shortened(ticks, PER_SECOND["ns"]), f"{time_format or 'ISO'} text{zone}"


def _shortened(ticks: np.ndarray, per_second: int) -> tuple[np.ndarray, int]:
    """The same times in the coarsest unit that holds them all."""
    for coarser in PER_SECOND.values():
        factor = per_second // coarser
        if factor and not (ticks % factor).any():
            return ticks // factor, coarser
    return ticks, per_second


def times_as_text(ticks: np.ndarray, per_second: int) -> pa.Array:
    """Seconds as decimal text, every digit kept: 1700000000, 1700000000.123."""
    if per_second == 1:
        return pa.array(ticks).cast(pa.string())
    sign = np.where(ticks < 0, "-", "")
    whole, rest = np.divmod(np.abs(ticks), per_second)
    digits = pc.utf8_lpad(pa.array(rest).cast(pa.string()), width=len(str(per_second)) - 1, padding="0")
    return pc.binary_join_element_wise(pa.array(sign), pa.array(whole).cast(pa.string()), "", ".", "", digits, "")


def as_date(ticks: int | float, per_second: int) -> str:
    """A time for a human reader; the plain number where no calendar holds it."""
    try:
        return f"{pd.Timestamp(float(ticks) / per_second, unit='s'):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return f"{ticks / per_second:.6g} s"
