"""The interactions that a `Recommender` was fitted on, for histories of known users and for further training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch


class KnownUsers:
    """Interactions in time order: ``frame`` with user and item (text) and time (seconds).

    ``whole`` says which of user and item are whole numbers in the table they came from; ``params`` is what the model
    was fitted with.
    """

    def __init__(self, frame: pd.DataFrame, whole: list[str], params: dict[str, Any]):
        self.frame, self.whole, self.params = frame, whole, params
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
        """Tensors and plain values for a checkpoint."""
        columns = {}
        for role in ("user", "item"):
            codes, names = pd.factorize(self.frame[role])
            columns[role] = {"codes": torch.from_numpy(codes.astype(np.int32)), "names": names.tolist()}
        time = torch.from_numpy(self.frame["time"].to_numpy(np.float64, copy=True))
        return {**columns, "time": time, "whole": self.whole, "params": self.params}

    @classmethod
    def restore(cls, plain: dict[str, Any] | None) -> KnownUsers | None:
        """The inverse of `plain`."""
        if plain is None:
            return None
        columns = {
            role: np.array(plain[role]["names"], dtype=object)[plain[role]["codes"].numpy()]
            for role in ("user", "item")
        }
        return cls(pd.DataFrame({**columns, "time": plain["time"].numpy()}), plain["whole"], plain["params"])
