"""Histories as lines of JSON, and what is recommended for them, line by line in constant memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recbole_diffusion.recommend.recommender import Recommendation, Recommender, batches

OURS = (*Recommendation.__dataclass_fields__, "error")  # the keys of the output


def _no_number(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no JSON.")


def _record(line: str | bytes) -> dict[str, Any]:
    """One line of the input as a dictionary with a ``history``."""
    try:
        record = json.loads(line.decode() if isinstance(line, bytes) else line, parse_constant=_no_number)
        json.dumps(record)  # what is passed on must be written again
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 ({error.reason} at its byte {error.start + 1}).") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error}).") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deep.") from None
    record = {"history": record} if isinstance(record, list) else record
    if not isinstance(record, dict) or "history" not in record:
        raise ValueError('it is neither a list of item tokens nor an object with a "history".')
    taken = [key for key in OURS if key in record]
    if taken:
        raise ValueError(f"its key [{taken[0]}] is one of the output's: {', '.join(OURS)}.")
    return record


def recommend_lines(
    recommender: Recommender,
    lines: Iterable[str | bytes],
    k: int = 10,
    exclude_seen: bool = False,
    batch_size: int | None = None,
    keep_going: bool = False,
    first: int = 1,
) -> Iterator[dict[str, Any]]:
    """Recommend for lines of JSON, in their order and in constant memory: one dictionary a line.

    Blank lines are passed over; ``first`` is the number of the first one.

    Raises ValueError naming the first line that cannot be used; with ``keep_going``, its dictionary says ``error``.
    """
    numbered = ((number, line) for number, line in enumerate(lines, start=first) if line.strip())
    yield from recommend_records(recommender, numbered, _record, "line", k, exclude_seen, batch_size, keep_going)


def recommend_records(
    recommender: Recommender,
    numbered: Iterable[tuple[int, Any]],
    read: Callable[[Any], dict[str, Any]],
    where: str,
    k: int,
    exclude_seen: bool,
    batch_size: int | None,
    keep_going: bool,
) -> Iterator[dict[str, Any]]:
    """As `recommend_lines` for what ``read`` makes a dictionary with a ``history`` of; ``where`` is for the error."""
    for batch in batches(numbered, batch_size or recommender.batch_size):
        records, encoded, errors = [], [], {}
        for place, (number, line) in enumerate(batch):
            record = {}
            try:
                record = read(line)
                encoded.append(recommender.encode(record.pop("history")))
            except ValueError as error:
                if not keep_going:
                    raise ValueError(f"{where} {number} cannot be used: {error}") from None
                errors[place] = {"error": str(error)}
            records.append(record)
        results = iter(recommender.rank(encoded, k, exclude_seen) if encoded else ())
        for place, record in enumerate(records):
            yield {**record, **(errors.get(place) or vars(next(results)))}


def dumps(record: dict[str, Any]) -> str:
    """A line of JSON, the numbers with six significant digits: float32 holds no more."""
    short = {key: [float(f"{value:.6g}") for value in record[key]] for key in ("scores", "spread") if record.get(key)}
    return json.dumps({**record, **short})
