"""Histories as lines of JSON, and what is recommended for them, line by line in constant memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recbole_diffusion.recommend.recommender import Recommendation, Recommender, batches

CSV_COLUMNS = ("user", "rank", "item", "score", "spread", "error")
NO_HISTORY = 'it is neither a list of item tokens nor an object with a "history".'
OURS = (*Recommendation.__dataclass_fields__, "error")  # the keys of the output


def _no_number(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no JSON.")


def _record(line: str | bytes) -> dict[str, Any]:
    """One line of the input as a dictionary, where it has a ``history`` with one."""
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
    taken = [key for key in OURS if key in record] if isinstance(record, dict) else []
    if not isinstance(record, dict) or (taken and "history" not in record):
        raise ValueError(NO_HISTORY)
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
    """As `recommend_lines` for what ``read`` makes a dictionary of; ``where`` is for the error."""
    for batch in batches(numbered, recommender.batch_size if batch_size is None else batch_size):
        records, encoded, errors = [], [], {}
        for place, (number, line) in enumerate(batch):
            record = {}
            try:
                record = read(line)
                if "history" not in record:
                    raise ValueError(NO_HISTORY)
                encoded.append(recommender.encode(record.pop("history")))
            except ValueError as error:
                if not keep_going:
                    user = f" (user {record['user']})" if "user" in record else ""
                    raise ValueError(f"{where} {number}{user} cannot be used: {error}") from None
                errors[place] = {"error": f"{where} {number}: {error}"}  # the user is passed on with the other keys
            records.append(record)
        results = iter(recommender.rank(encoded, k, exclude_seen) if encoded else ())
        for place, record in enumerate(records):
            yield {**record, **(errors.get(place) or vars(next(results)))}


def as_json(record: dict[str, Any], number: int) -> str:
    """A line of JSON, the numbers with six significant digits: float32 holds no more."""
    short = {key: [float(f"{value:.6g}") for value in record[key]] for key in ("scores", "spread") if record.get(key)}
    text = json.dumps({**record, **short}, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 does not have
        text = json.dumps({**record, **short})
    return text + "\n"


def as_csv(record: dict[str, Any], number: int) -> str:
    """A row for each item, under CSV_COLUMNS; a history without a user has its number."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    user = number if record.get("user") is None else record["user"]
    if "error" in record:
        rows.writerow([user, "", "", "", "", record["error"]])
    items, scores = record.get("items", []), record.get("scores", [])
    spreads = record.get("spread") or [None] * len(items)
    for rank, (item, score, spread) in enumerate(zip(items, scores, spreads, strict=True), start=1):
        rows.writerow([user, rank, item, f"{score:.6g}", "" if spread is None else f"{spread:.6g}", ""])
    return text.getvalue().encode(errors="backslashreplace").decode()
