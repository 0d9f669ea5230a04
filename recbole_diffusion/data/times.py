"""Times of a table, whatever they are written in, as exact numbers of seconds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
    microseconds or nanoseconds by their size, unless ``unit`` says which; eight digits that are a calendar date are a
    date. Text is numbers or ISO 8601, or what ``time_format`` (as of ``strftime``) says; without a zone it is UTC. The
    column has no missing values.

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
            column, kind = column.cast(pa.float64()), pa.float64()
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _numbers(_numpy(column), name, unit)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or time_format):
        raise ValueError(f"time column [{name}] holds {kind}: it must hold numbers, dates or text.")
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    if time_format is None:
        for number in (pa.int64(), pa.float64()):
            try:
                return _numbers(_numpy(text.cast(number)), name, unit)
            except pa.ArrowInvalid:
                continue
    return _dates(text, name, time_format)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().to_numpy(zero_copy_only=False)


def _numbers(values: np.ndarray, name: str, unit: str | None) -> tuple[np.ndarray, int, str]:
    """Seconds or a finer unit, by size; whole floats are whole numbers."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UnreadableTime(name, bad[0], f"[{values[bad[0]]}] is no finite number.")
    if values.dtype.kind == "f" and (np.abs(values) < 2**63).all() and (values == np.floor(values)).all():
        values = values.astype(np.int64)
    values = values.astype(np.int64) if values.dtype.kind in "iu" else values.astype(np.float64)
    if unit is None and values.dtype.kind == "i" and values.min() >= 19000101 and values.max() <= 21001231:
        days = pd.to_datetime(pd.Series(values).astype(str), format="%Y%m%d", errors="coerce")
        if days.notna().all():
            return days.to_numpy().astype("datetime64[s]").astype(np.int64), 1, "dates such as 20240131"
    if unit is None:  # as seconds, 10**11 is the year 5138
        unit = next((unit for unit, power in zip("s ms us".split(), (11, 14, 17), strict=True)
                     if np.median(np.abs(values)) < 10**power), "ns")  # fmt: skip
    per_second, how = PER_SECOND[unit], f"numbers, taken for {unit}"
    if values.dtype.kind == "f":
        return values / per_second, 1, how
    return *_shortened(values, per_second), how


def _dates(text: pa.ChunkedArray, name: str, time_format: str | None) -> tuple[np.ndarray, int, str]:
    """Text as dates and times, to the nanosecond."""
    series = text.to_pandas()
    numbers = pd.to_numeric(series, errors="coerce")
    if time_format is None and numbers.notna().mean() > 0.5:  # numbers, and somewhere among them something else
        row = int(numbers.isna().argmax())
        raise UnreadableTime(name, row, f"[{series[row][:60]}] is no number, as others are.")
    times = pd.to_datetime(series, format=time_format or "ISO8601", utc=True, errors="coerce")
    bad = np.flatnonzero(times.isna())
    if len(bad):
        wanted = f"time_format [{time_format}]" if time_format else "ISO dates such as 2024-12-31 23:59:00 or numbers"
        hint = "" if time_format else "; name another form by time_format, such as %d.%m.%Y"
        raise UnreadableTime(name, bad[0], f"[{series.iloc[bad[0]][:60]}] must be {wanted}{hint}.")
    zoned = pc.match_substring_regex(text, r"(Z|z|[+-]\d\d:?\d\d)$")
    zone = "" if pc.all(zoned).as_py() else ", taken for UTC where no zone is given"
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
