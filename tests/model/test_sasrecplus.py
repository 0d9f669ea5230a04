"""SASRecPlus against its plain form, one sequence at a time: its states, its loss at every position, its ranking."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ..conftest import batch_of, loss_with_seed, toy

NO_DROPOUT = {"emb_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


def plain_states(model, items):
    """The transformer over one sequence of items [n], written out: [n, D]."""
    encoder, n = model.encoder, len(items)
    x = model.item_embedding(items)
    if encoder.position_embedding is not None:
        places = torch.arange(n) if encoder.position_embedding.from_start else torch.arange(n).flip(0)
        x = x + encoder.position_embedding.weight[places]
    x = encoder.norm(x)
    for block in encoder.encoder.blocks:
        attention = block.attention
        h = block.norm_1(x) if block.norm_first else x
        q, k, v = (part.view(n, attention.n_heads, -1).transpose(0, 1)
                   for part in (attention.query(h), *attention.key_value(h).chunk(2, dim=-1)))  # fmt: skip
        weight = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        weight = weight.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(dim=-1)
        x = x + attention.out((weight @ v).transpose(0, 1).reshape(n, -1))
        x = x if block.norm_first else block.norm_1(x)
        x = x + block.dense_2(F.gelu(block.dense_1(block.norm_2(x) if block.norm_first else x)))
        x = x if block.norm_first else block.norm_2(x)
    return encoder.last_norm(x)


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("norm_first, positions", [(False, "start"), (True, "start"), (False, "end"), (False, None)])
def test_the_loss_is_that_of_the_plain_form(ragged, norm_first, positions):
    own = {"ragged": ragged, "norm_first": norm_first, "use_position_embedding": positions is not None}
    own |= {"positions_from": positions} if positions else {}
    it = toy("SASRecPlus", **NO_DROPOUT, **own)
    model, batch = it.model, batch_of(it.train, 9)
    item_seq, lengths = model.history(batch)
    losses = []
    for items, n, target in zip(item_seq, lengths.tolist(), batch[model.POS_ITEM_ID], strict=True):
        logits = plain_states(model, items[:n]) @ model.item_embedding.weight[1:].T
        losses.append(F.cross_entropy(logits, torch.cat([items[1:n], target[None]]) - 1, reduction="none"))
    assert model.loss_terms(batch) == sum(map(len, losses))
    torch.testing.assert_close(loss_with_seed(model, batch), torch.cat(losses).mean())


def test_items_are_ranked_by_the_last_position():
    it = toy("SASRecPlus", **NO_DROPOUT)
    model, batch = it.model.eval(), batch_of(it.test, 9)
    item_seq, lengths = model.history(batch)
    with torch.no_grad():
        last = [plain_states(model, items[:n])[-1] for items, n in zip(item_seq, lengths.tolist(), strict=True)]
        expected = torch.stack(last) @ model.item_embedding.weight[1:].T
        torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], expected)
