"""The interactions that a `Recommender` was fitted on, for histories of known users and for further training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_diffusion.config.keys import START_KEYS
from recbole_diffusion.stored import NEVER_FROM_A_FILE, unfill

ROLES = ("user", "item")
# How a table was read, and what a later one is read by as well: `data.atomic.TableOptions` without what is of one file.
KEPT_OPTIONS = {*ROLES, "time", "time_unit", "time_format", "duplicates"}
NOT_KEPT = NEVER_FROM_A_FILE | START_KEYS | {"model", "dataset", "per_model"}


class KnownUsers:
    """Interactions in time order: ``frame`` with user and item (text) and time (seconds).

    ``whole`` says which of user and item are whole numbers in the table they came from; ``params`` is what the model
    was fitted with, and ``options`` how its table was read.
    """

    def __init__(
        self, frame: pd.DataFrame, whole: list[str], params: dict[str, Any], options: dict[str, Any] | None = None
    ):
        self.frame, self.whole, self.params, self.options = frame, whole, params, options or {}
        codes, self._users = pd.factorize(frame["user"])
        self._number = {user: number for number, user in enumerate(self._users)}
        order = np.argsort(codes, kind="stable")
        self._items = frame["item"].to_numpy()[order]
        self._starts = np.searchsorted(codes[order], np.arange(len(self._users) + 1))

    def names(self) -> list:
        """All users, in the order of their first interaction."""
        return [int(user) for user in self._users] if "user" in self.whole else self._users.tolist()

    def history(self, user: Any) -> list[str]:
        """A user's items, oldest first; ValueError where there is no such user."""
        number = self._number.get(str(user))
        if number is None:
            raise ValueError(f"user [{user}] is not known: give a history of items instead.")
        return self._items[self._starts[number] : self._starts[number + 1]].tolist()

    def plain(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint, without what concerns the machine: no paths, no device."""
        columns = {}
        for role in ROLES:
            codes, names = pd.factorize(self.frame[role])
            columns[role] = {"codes": torch.from_numpy(codes.astype(np.int32)), "names": names.tolist()}
        time = torch.from_numpy(self.frame["time"].to_numpy(np.float64, copy=True))
        params = {key: value for key, value in self.params.items() if key not in NOT_KEPT}
        return {**columns, "time": time, "whole": self.whole, "params": params, "options": self.options}

    @classmethod
    def restore(cls, plain: Any, config: Mapping[str, Any]) -> KnownUsers | None:
        """The inverse of `plain`, None of None.

        ``config`` is the checkpoint's, whose settings have been checked: the values of ``params`` are its own, but for
        ``epochs``, which one update may have had different.

        Raises
        ------
        ValueError
            It is not what `plain` wrote.
        """
        if plain is None:
            return None
        try:
            columns = {
                role: _column(plain[role]["codes"], plain[role]["names"], role in plain["whole"]) for role in ROLES
            }
            frame = pd.DataFrame({**columns, "time": plain["time"].numpy()})
            if plain["time"].dtype != torch.float64 or not np.isfinite(frame["time"]).all():
                raise ValueError("no times")
            params = {key: config[key] for key in plain["params"] if key not in NOT_KEPT and key in config}
            unfill(params)
            if type(epochs := plain["params"].get("epochs")) is int:
                params["epochs"] = epochs
            options = {key: value for key, value in (plain.get("options") or {}).items() if key in KEPT_OPTIONS}
            if not all(isinstance(value, (str, type(None))) for value in options.values()):
                raise ValueError("no options")
            return cls(frame, [role for role in ROLES if role in plain["whole"]], params, options)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError("its known users are none.") from error


def _column(codes: torch.Tensor, names: list[str], whole: bool) -> np.ndarray:
    """The texts that codes [N] stand for; ValueError where they are none."""
    if codes.dtype != torch.int32 or codes.ndim != 1 or not all(type(name) is str for name in names):
        raise ValueError("no codes and names")
    if len(codes) and not (0 <= int(codes.min()) and int(codes.max()) < len(names)):
        raise ValueError("codes without names")
    if whole:
        [int(name) for name in names]
    return np.array(names, dtype=object)[codes.numpy()]
