"""Windows of users: rows that hold every training target once, for models with a target at every position."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping

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

    A row [list, target] goes on with another of its user that ends in its list (lists may have been cut to their last
    items) or is its beginning, wherever that stands; else it begins a sequence, whose list holds targets as well.
    ``lists`` maps columns to their lists, the items' first.
    """
    order = rows[length_field].argsort(stable=True)
    order = order[rows[user][order].argsort(stable=True)]
    n = rows[length_field]
    tokens = {field: _with_target(rows[name], n, rows[field]) for field, name in lists.items()}
    order = _linked(order, rows[user], next(iter(tokens.values())), n)
    n, tokens = n[order], {field: values[order] for field, values in tokens.items()}
    follows, common = _follows(rows[user][order], next(iter(tokens.values())), n)
    new = n + 1 - torch.where(follows, common, 0)
    row = torch.arange(len(n)).repeat_interleave(new)
    column = torch.arange(len(row)) - (new.cumsum(0) - n - 1)[row]
    table = {field: values[row, column] for field, values in tokens.items()}
    table |= {field: rows[field][order][row] for field in rows if field not in (length_field, *lists, *lists.values())}
    first = first_of_run((~follows).cumsum(0)[row])
    target = (torch.arange(len(row)) > first).nonzero().squeeze(1)
    start = torch.maximum(first[target], target - max_length)
    return SequenceRows(table, start, target, first[target], dict(lists), length_field, max_length)


def _follows(users: Tensor, item: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows, lists with target [R, L + 1], go on with the one before, and how many items they have in common."""
    before, m = item.roll(1, 0), n.roll(1)
    common, place = torch.minimum(n, m + 1), torch.arange(item.shape[1])
    # Of the row before, with its target, the last ones; all of it where this list is the longer.
    ending = before.gather(1, (place + (m + 1 - common)[:, None]).clamp(0, item.shape[1] - 1))
    follows = ((ending == item) | (place >= common[:, None])).all(1) & (users == users.roll(1))
    follows[:1] = False
    return follows, common


def _linked(order: Tensor, user: Tensor, item: Tensor, n: Tensor) -> Tensor:
    """The order, by user and length, in which each row stands behind the one that it goes on with."""
    users = user[order]
    alone = ~_follows(users, item[order], n[order])[0]
    alone[:1] = False
    for one in users[alone & (users == users.roll(1))].unique():  # in most files the order is right
        begin, end = torch.searchsorted(users, one), torch.searchsorted(users, one, right=True)
        mine = order[begin:end]
        listed = zip(item[mine].tolist(), n[mine].tolist(), strict=True)
        order[begin:end] = mine[_chains([tuple(row[: size + 1]) for row, size in listed])]
    return order


def _chains(rows: list[tuple]) -> list[int]:
    """Numbers of a user's rows, each list and target, as many as possible behind the one that they go on with."""
    whole, cut = defaultdict(deque), defaultdict(deque)
    for number, row in enumerate(rows):
        whole[row].append(number)
        cut[row[1:]].append(number)
    following: dict[int, int | None] = {}

    def first_free(*queues: deque) -> int | None:
        for queue in queues:
            while queue:
                if (one := queue.popleft()) not in following:
                    return one
        return None

    heads, none = list(range(len(rows))), deque()
    for before in (
        lambda row: first_free(whole.get(row[:-1], none)),
        lambda row: first_free(cut.get(row[:-1], none)),
        # Rows between the two are missing; the longest first.
        lambda row: first_free(*(whole.get(row[:size], none) for size in range(len(row) - 2, 1, -1))),
    ):
        found = {number: before(rows[number]) for number in heads}
        following |= {one: number for number, one in found.items() if one is not None}
        heads = [number for number, one in found.items() if one is None]
    return [number for head in _opened(rows, following, heads) for number in _walk(following, head)]


def _walk(following: dict[int, int | None], number: int) -> Iterator[int]:
    """From a row on, to the last or once round."""
    first = number
    while number is not None:
        yield number
        number = following.get(number)
        number = None if number == first else number


def _opened(rows: list[tuple], following: dict[int, int | None], heads: list[int]) -> list[int]:
    """Put rings, as items that come again make them, into the chains that pass them; the heads of what is then there.

    So an Euler path is found (Hierholzer, 1873), whose edges are the rows.
    """
    chained = {number for head in heads for number in _walk(following, head)}
    rings = [number for number in range(len(rows)) if number not in chained]
    placed, opened, waiting = set(), [], defaultdict(list)
    for number in rings:
        waiting[rows[number][:-1]].append(number)

    def splice(one: int) -> list[int]:
        """Put behind a row the rings that may stand there; returns their rows."""
        taken = []
        for listed in (rows[one], rows[one][1:]):
            behind = following.get(one)
            fits = behind is None or rows[behind][:-1] == listed
            for number in waiting.pop(listed, ()) if fits else ():
                if number not in placed:
                    ring = list(_walk(following, number))
                    following[ring[-1]], following[one] = following.get(one), number
                    placed.update(ring)
                    taken += ring
        return taken

    for start in (*heads, *rings):
        if start not in placed:  # a chain, or a ring that none passes
            passed = list(_walk(following, start))
            following[passed[-1]] = None
            placed.update(passed)
            opened.append(start)
            while passed:
                passed += splice(passed.pop())
    return opened


def _with_target(listed: Tensor, n: Tensor, target: Tensor) -> Tensor:
    """Lists [R, L, ...] of lengths [R] with the target [R, ...] behind each: [R, L + 1, ...]."""
    out = torch.cat([listed, torch.zeros_like(listed[:, :1])], dim=1)
    out[torch.arange(len(n)), n] = target.to(out.dtype)
    return out
