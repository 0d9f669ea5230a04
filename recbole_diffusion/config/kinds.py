"""What one configuration key may hold, and how that is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any

NOUNS = {
    "integer": "an integer",
    "number": "a number",
    "flag": "True or False",
    "text": "a text",
    "name": "a text that is not empty",
    "texts": "a text or a list of texts",
    "names": "a list of texts",
    "interval": "an interval such as [5,inf), or several, separated by ;",
    "path": "a path",
    "mapping": "a mapping",
    "candidates": "full, labeled, uniN or popN, such as uni100",
    "shares": "a list of numbers >= 0, not all 0",
    "any": "anything",
}
TYPES = {
    "flag": bool,
    "text": str,
    "path": (str, PathLike),
    "mapping": Mapping,
    "any": object,
}


CANDIDATES = re.compile(r"full|labeled|(uni|pop)[1-9]\d{0,8}")
TOO_LARGE = 2**63  # for a number anywhere
LONGEST = 200  # characters of a value in a message


@dataclass(frozen=True)
class Key:
    """A configuration key: its meaning, what it may hold, and what depends on it.

    ``kind`` is ``integer``, ``number`` (finite), ``integers`` (a list, or with ``count`` also their number), ``flag``,
    ``choice``, ``text``, ``name``, ``texts`` (one or a list), ``names`` (a list of texts, maybe none), ``interval``,
    ``shares`` (a list of numbers >= 0), ``candidates`` (of RecBole's evaluation, or a mapping of them), ``path``,
    ``mapping`` (of ``fields``, where given) or ``any``.
    ``choices`` are the values of a choice, and for other kinds words that may stand in place of a value. A number lies
    in [``low``, ``high``], or in the open ``above`` and ``below``.

    ``changes`` says what the value changes: the ``result``; the ``length`` of a run, so that a longer run goes on from
    a shorter one; or ``nothing`` in the result.
    """

    name: str
    meaning: str
    kind: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    null: bool = False
    count: bool = False
    any_case: bool = False
    fields: tuple[Key, ...] = ()
    changes: str = "result"

    @property
    def allowed(self) -> str:
        """What the key may hold, in words."""
        if self.kind == "choice":
            return ", ".join([*self.choices, *(["null"] if self.null else [])])
        if self.kind == "integers":
            words = f"a list of different integers{self._range()}, {'or how many' if self.count else 'or one'}"
        else:
            words = NOUNS[self.kind] + self._range()
        return " or ".join([words, *self.choices, *(["null"] if self.null else [])])

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low} to {self.high}"
        bounds = ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
        said = [f"{sign} {bound}" for sign, bound in bounds if bound is not None]
        return f" {' and '.join(said)}" if said else ""

    def check(self, value: Any, name: str | None = None) -> None:
        """Raise ValueError, naming the key (or ``name``), its value and what is allowed, where it may not hold this."""
        name = name or self.name
        if value is None and self.null or isinstance(value, str) and self._is_choice(value):
            return
        if self.kind == "choice":
            raise ValueError(f"{name} [{_shown(value, str)}] is unknown: choose one of {self.allowed}.")
        if not self._accepts(value):
            # Quotes tell the text '64' from the number.
            raise ValueError(f"{name} [{_shown(value, repr)}] must be {self.allowed}.")
        fields = {field.name: field for field in self.fields}
        for key, item in value.items() if fields else ():
            if key not in fields:
                raise ValueError(f"{name}.{key} [{_shown(item, str)}] is unknown: choose one of {', '.join(fields)}.")
            fields[key].check(item, f"{name}.{key}")

    def _is_choice(self, value: str) -> bool:
        return (value.lower() if self.any_case else value) in self.choices

    def _accepts(self, value: Any) -> bool:
        if self.kind in ("integer", "number"):
            return self._is_number(value, Integral if self.kind == "integer" else Real)
        if self.kind == "integers":
            if self.count and isinstance(value, Integral):
                return not isinstance(value, bool) and 1 <= value < TOO_LARGE
            # RecBole takes no tuple for its topk, our seeds may be one.
            values = list(value) if isinstance(value, (list, tuple) if self.count else list) else [value]
            whole = all(self._is_number(item, Integral) for item in values)
            return whole and 0 < len(set(values)) == len(values)
        if self.kind == "texts":
            values = value if isinstance(value, (list, tuple)) and value else [value]
            return all(isinstance(item, str) for item in values)
        if self.kind == "name":
            return isinstance(value, str) and bool(value.strip())
        if self.kind == "names":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        if self.kind == "shares":
            numbers = isinstance(value, list) and all(self._is_number(item, Real) and item >= 0 for item in value)
            return numbers and sum(value) > 0
        if self.kind == "candidates":
            modes = value.values() if isinstance(value, Mapping) else [value]
            return all(isinstance(mode, str) and CANDIDATES.fullmatch(mode) for mode in modes)
        if self.kind == "interval":  # RecBole passes over one that it cannot read
            return isinstance(value, (str, list, tuple)) and all(map(_is_interval, str(value).split(";")))
        return isinstance(value, TYPES[self.kind])

    def _is_number(self, value: Any, kind: type) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        if not abs(value) < TOO_LARGE:  # NaN is not, either
            return False
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )


def _is_interval(text: str) -> bool:
    found = re.fullmatch(r"[\[(]([^,]+),([^,]+)[\])]", text.strip())
    try:
        return found is not None and float(found[1]) <= float(found[2])
    except ValueError:
        return False


def _shown(value: Any, form: Callable[[Any], str]) -> str:
    try:
        text = " ".join(form(value).splitlines())
    except ValueError:  # Python writes out no whole number of thousands of digits
        return "a number too long to show"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
