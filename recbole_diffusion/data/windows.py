"""Windows of users: rows that hold every training target once, for models with a target at every position."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_diffusion.data.sequence_rows import SequenceRows, first_of_run


def windows(rows: SequenceRows) -> SequenceRows:
    """Windows that hold every target of ``rows`` once, by user and time; each as long as fits, but a user's first."""
    order = rows.target.argsort()
    target, first = rows.target[order], rows.first[order]
    # A run: targets of one user, one behind the other.
    breaks = (target.diff(prepend=target[:1] - 2) != 1) | (first.diff(prepend=first[:1]) != 0)
    run = first_of_run(breaks.cumsum(0))
    last = len(run) - 1 - first_of_run(run.flip(0)).flip(0)
    places = torch.arange(len(run))
    ends = (last - places) % rows.max_length == 0
    begins = torch.maximum(run, places - rows.max_length + 1)[ends]
    return rows._with(target[begins] - 1, target[ends], first[ends])


def stitched(
    rows: Interaction, user: str, lists: Mapping[str, str], length_field: str, max_length: int
) -> SequenceRows:
    """The sequences that a user's own rows (``benchmark_filename``) spell out, every target of theirs once.

    A row [list, target] goes on with the one before it, by user and length, where that ends in its list (lists may have
    been cut to their last items) or is its beginning; else it begins a sequence, whose list holds targets as well.
    ``lists`` maps columns to their lists, the items' first.
    """
    order = rows[length_field].argsort(stable=True)
    order = order[rows[user][order].argsort(stable=True)]
    n, users = rows[length_field][order], rows[user][order]
    tokens = {field: _with_target(rows[name][order], n, rows[field][order]) for field, name in lists.items()}
    item = next(iter(tokens.values()))
    before, m = item.roll(1, 0), n.roll(1)
    common, place = torch.minimum(n, m + 1), torch.arange(item.shape[1])
    # Of the row before, with its target, the last ones; all of it where this list is the longer.
    ending = before.gather(1, (place + (m + 1 - common)[:, None]).clamp(max=item.shape[1] - 1))
    follows = ((ending == item) | (place >= common[:, None])).all(1) & (users == users.roll(1))
    follows[:1] = False
    new = n + 1 - torch.where(follows, common, 0)
    row = torch.arange(len(n)).repeat_interleave(new)
    column = torch.arange(len(row)) - (new.cumsum(0) - n - 1)[row]
    table = {field: values[row, column] for field, values in tokens.items()}
    table |= {field: rows[field][order][row] for field in rows if field not in (length_field, *lists, *lists.values())}
    first = first_of_run((~follows).cumsum(0)[row])
    target = (torch.arange(len(row)) > first).nonzero().squeeze(1)
    start = torch.maximum(first[target], target - max_length)
    return SequenceRows(table, start, target, first[target], dict(lists), length_field, max_length)


def _with_target(listed: Tensor, n: Tensor, target: Tensor) -> Tensor:
    """Lists [R, L, ...] of lengths [R] with the target [R, ...] behind each: [R, L + 1, ...]."""
    out = torch.cat([listed, torch.zeros_like(listed[:, :1])], dim=1)
    out[torch.arange(len(n)), n] = target.to(out.dtype)
    return out
