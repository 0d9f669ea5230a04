"""What one configuration key may hold, and how that is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any

NOUNS = {
    "integer": "an integer",
    "number": "a number",
    "flag": "True or False",
    "text": "a text",
    "texts": "a text or a list of texts",
    "path": "a path",
    "mapping": "a mapping",
    "any": "anything",
}
TYPES = {
    "flag": bool,
    "text": str,
    "path": (str, PathLike),
    "mapping": Mapping,
    "any": object,
}


@dataclass(frozen=True)
class Key:
    """A configuration key: its meaning, what it may hold, and what depends on it.

    ``kind`` is ``integer``, ``number`` (finite), ``integers`` (a list, or with ``count`` also their number), ``flag``,
    ``choice``, ``text``, ``texts`` (one or a list), ``path``, ``mapping`` (of ``fields``, where given) or ``any``.
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
            raise ValueError(f"{name} [{value}] is unknown: choose one of {self.allowed}.")
        if not self._accepts(value):
            # Quotes tell the text '64' from the number.
            raise ValueError(f"{name} [{value!r}] must be {self.allowed}.")
        fields = {field.name: field for field in self.fields}
        for key, item in value.items() if fields else ():
            if key not in fields:
                raise ValueError(f"{name}.{key} [{item}] is unknown: choose one of {', '.join(fields)}.")
            fields[key].check(item, f"{name}.{key}")

    def _is_choice(self, value: str) -> bool:
        return (value.lower() if self.any_case else value) in self.choices

    def _accepts(self, value: Any) -> bool:
        if self.kind in ("integer", "number"):
            return self._is_number(value, Integral if self.kind == "integer" else Real)
        if self.kind == "integers":
            if self.count and isinstance(value, Integral):
                return not isinstance(value, bool) and value >= 1
            # RecBole takes no tuple for its topk, our seeds may be one.
            values = list(value) if isinstance(value, (list, tuple) if self.count else list) else [value]
            whole = all(self._is_number(item, Integral) for item in values)
            return whole and 0 < len(set(values)) == len(values)
        if self.kind == "texts":
            values = value if isinstance(value, (list, tuple)) and value else [value]
            return all(isinstance(item, str) for item in values)
        return isinstance(value, TYPES[self.kind])

    def _is_number(self, value: Any, kind: type) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )
