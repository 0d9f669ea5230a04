"""Training rows for a model with one target a row: every history of a user, or the longest alone."""

from __future__ import annotations

from recbole_diffusion.data.sequences import UserSequenceDataset

TRAINING_ROWS = ("prefixes", "users")


class ChosenRowsDataset(UserSequenceDataset):
    """As the key ``training_rows`` says: every training target with its history (``prefixes``), or one row a user.

    The row of a user (``users``) is the last training target with what came before it. Validation and test rows, and
    what ``inter_feat`` holds, are the same either way.
    """

    def build(self) -> list[ChosenRowsDataset]:
        """Split as RecBole does, then choose the training rows."""
        train, *others = super().build()
        if self.config["training_rows"] == "prefixes":
            train.windows = None
        else:
            # Windows lie by user and time: the last one of each user ends in the last target.
            first = train.windows.first
            last = first.diff(append=first[-1:] + 1) != 0
            train.windows = train.windows[last]
        return [train, *others]
