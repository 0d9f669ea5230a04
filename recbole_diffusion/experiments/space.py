"""The space of a hyper-parameter search, as a params file gives it."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One line of a params file: a config key and where its values are drawn from."""

    name: str
    kind: str
    values: tuple

    def hyperopt(self) -> Any:
        """The node of HyperOpt's search space; of a choice it draws the place, as HyperOpt turns lists into tuples."""
        from hyperopt import hp

        values = (list(range(len(self.values))),) if self.kind == "choice" else self.values
        return getattr(hp, self.kind)(self.name, *values)

    def ray(self) -> Any:
        """The domain of Ray Tune's search space; RecBole's files, as HyperOpt, give loguniform by exponents of e."""
        from ray import tune

        values = self.values
        if self.kind == "choice":
            values = (list(self.values),)
        elif self.kind == "loguniform":
            values = tuple(map(math.exp, self.values))
        return getattr(tune, self.kind)(*values)

    def plain(self, drawn: Any) -> Any:
        """What was drawn, as a plain value; quniform between whole numbers is whole, as sizes and counts must be."""
        if self.kind == "choice":
            return drawn
        whole = self.kind == "quniform" and all(float(value).is_integer() for value in self.values)
        return int(round(drawn)) if whole else float(drawn)


def read_space(path: str | Path) -> list[Parameter]:
    """Read a params file as RecBole's: lines ``name choice [a,b]``, ``name uniform low,high`` and the like.

    ``loguniform`` takes the exponents of e, ``quniform`` low,high,q. Values are literals and never run; ``#`` starts
    a comment.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A line cannot be read, a key is given twice, or the file holds no parameter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"params_file [{path}] does not exist.")
    space: dict[str, Parameter] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            parameter = _read_line(line)
            if parameter.name in space:
                raise ValueError(f"[{parameter.name}] is there twice")
        except (ValueError, TypeError, SyntaxError) as error:
            raise ValueError(f"params_file [{path}], line {number} [{line.strip()}]: {error}") from None
        space[parameter.name] = parameter
    if not space:
        raise ValueError(f"params_file [{path}] holds no parameter.")
    return list(space.values())


def _read_line(line: str) -> Parameter:
    name, kind, text = [*line.split(maxsplit=2), "", ""][:3]
    if kind not in ("choice", "uniform", "loguniform", "quniform"):
        raise ValueError(f"after the name comes [{kind}], none of choice, uniform, loguniform, quniform")
    values = json.loads(json.dumps(ast.literal_eval(text.strip())))  # plain values alone, tuples as lists
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise ValueError("choice takes a list of values")
    elif not _is_range(values, 3 if kind == "quniform" else 2):
        raise ValueError(f"{kind} takes low,high{',q' * (kind == 'quniform')}: numbers, low below high")
    elif kind == "quniform" and any(abs(value / values[2] - round(value / values[2])) > 1e-9 for value in values[:2]):
        # Values are multiples of q: HyperOpt would leave the range, and Ray refuses it.
        raise ValueError(f"quniform takes low,high,q: {values[0]} and {values[1]} must be multiples of {values[2]}")
    return Parameter(name, kind, tuple(values))


def _is_range(values: Any, length: int) -> bool:
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    return numbers and len(values) == length and values[0] < values[1] and all(q > 0 for q in values[2:])
