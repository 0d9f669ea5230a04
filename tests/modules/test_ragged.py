"""The flat order of a batch's tokens, its real positions, and the item that follows at each."""

from __future__ import annotations

import pytest
import torch

from recbole_diffusion.modules.layers import PositionEmbedding
from recbole_diffusion.modules.ragged import TokenLayout, next_items, real_positions


def batch(users: int = 200, length: int = 20):
    """Right-padded histories [B, L], among them full ones and of one item, their lengths and the held-out items."""
    torch.manual_seed(0)
    n = torch.randint(1, length + 1, (users,))
    n[:2] = torch.tensor([1, length])
    item_seq = torch.randint(1, 1000, (users, length)) * (torch.arange(length) < n[:, None])
    return item_seq, n, torch.randint(1, 1000, (users,))


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("origin, places", [("start", [0, 1, 2, 3, 4]), ("end", [4, 3, 2, 1, 0])])
def test_places_count_from_the_start_or_from_the_end_of_each_sequence(ragged, origin, places):
    embedding = PositionEmbedding({"MAX_ITEM_LIST_LENGTH": 9, "hidden_size": 2, "positions_from": origin})
    lengths = torch.tensor([2, 5, 1])
    layout = TokenLayout(lengths, 7, ragged)
    y = layout.unpack(embedding(layout), 3, 7)
    for row, n in enumerate(lengths.tolist()):
        expected = range(n) if origin == "start" else places[-n:]
        assert torch.equal(y[row, :n], embedding.weight[list(expected)])


@pytest.mark.parametrize("ragged", [True, False])
def test_the_layout_knows_where_each_real_position_lies(ragged):
    item_seq, n, _ = batch()
    layout, (rows, positions) = TokenLayout(n, item_seq.shape[1], ragged), real_positions(n)
    packed = layout.pack(item_seq)
    expected = [item for row, length in zip(item_seq.tolist(), n.tolist(), strict=True) for item in row[:length]]
    assert packed[layout.first[rows] + positions].tolist() == expected
    assert torch.equal(packed[layout.last], item_seq[torch.arange(len(n)), n - 1])
    assert list(zip(rows.tolist(), positions.tolist(), strict=True)) == [
        (row, place) for row, length in enumerate(n.tolist()) for place in range(length)
    ]


def test_the_next_item_is_the_history_moved_by_one_and_at_its_end_the_held_out_target():
    item_seq, n, target = batch()
    expected = []
    for row, length, held_out in zip(item_seq.tolist(), n.tolist(), target.tolist(), strict=True):
        expected += [*row[1:length], held_out]
    assert next_items(item_seq, n, target).tolist() == expected
