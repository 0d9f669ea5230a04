"""The learned and the excluded items of the history, against their plain forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recbole_diffusion import MODELS
from recbole_diffusion.modules.losses import full_cross_entropy, sampled_cross_entropy
from recbole_diffusion.modules.seen import SeenItems, next_occurrence, without_targets

from ..conftest import batch_of, few_steps, toy

SEQ = torch.tensor([[3, 5, 3, 7, 0], [2, 2, 2, 0, 0], [1, 2, 3, 4, 5]])
LENGTHS = torch.tensor([4, 2, 5])
N_ITEMS = 9


def module(mode="learned", n_buckets=3):
    seen = SeenItems(mode, n_buckets)
    if mode == "learned":
        with torch.no_grad():
            seen.bucket_value.copy_(torch.linspace(0.1, 0.5, n_buckets))
    return seen


def plain(seen: SeenItems, history: list[int]) -> torch.Tensor:
    """What is added to the logits of all items after a history."""
    added = torch.zeros(N_ITEMS)
    for item in set(history):
        age = history[::-1].index(item)
        if seen.seen_items == "excluded":
            added[item] = -torch.inf
        else:  # ages 0; 1, 2; 3 to 6; ...
            bucket = next(b for b in range(99) if age < 2 ** (b + 1) - 1)
            added[item] = seen.RATE * seen.bucket_value[min(bucket, len(seen.bucket_value) - 1)].item()
    return added


def dense(pairs, n_rows: int) -> torch.Tensor:
    scores = torch.zeros(n_rows, N_ITEMS)
    with torch.no_grad():
        pairs.add_to(scores)
    return scores


@pytest.mark.parametrize("mode", ["learned", "excluded"])
@pytest.mark.parametrize("n_buckets", [1, 2, 4])
def test_values_are_those_of_the_plain_form_at_the_last_and_at_every_position(mode, n_buckets):
    seen = module(mode, n_buckets)
    histories = [row[:n].tolist() for row, n in zip(SEQ, LENGTHS.tolist(), strict=True)]
    expected = torch.stack([plain(seen, history) for history in histories])
    torch.testing.assert_close(dense(seen.at_last(SEQ, LENGTHS), 3), expected)
    prefixes = [history[: i + 1] for history in histories for i in range(len(history))]
    expected = torch.stack([plain(seen, prefix) for prefix in prefixes])
    pairs = seen.at_every_position(SEQ, LENGTHS)
    torch.testing.assert_close(dense(pairs, len(prefixes)), expected)
    assert (pairs.rows.diff() >= 0).all()
    part = pairs.part(3, 8)
    torch.testing.assert_close(dense(part, 5), expected[3:8])


def test_candidates_add_nothing_and_other_words_are_refused():
    seen = module("candidates")
    assert seen.at_last(SEQ, LENGTHS) is None and seen.at_every_position(SEQ, LENGTHS) is None
    assert not list(seen.parameters())
    with pytest.raises(ValueError, match=r"\[some\] is unknown: choose one of candidates, learned, excluded"):
        SeenItems("some", 1)


def test_next_occurrence():
    assert next_occurrence(SEQ)[0].tolist()[:4] == [2, 5, 5, 5]
    assert next_occurrence(SEQ)[1].tolist()[:2] == [1, 2]


@pytest.mark.parametrize("chunk", [1, 17, 10**6])
@pytest.mark.parametrize("mode", ["learned", "excluded"])
def test_the_full_loss_and_its_gradient(chunk, mode):
    torch.manual_seed(0)
    seen, x, weight = module(mode), torch.randn(11, 4, requires_grad=True), torch.randn(N_ITEMS, 4, requires_grad=True)
    target = torch.tensor([3, 1, 8, 2, 4, 4, 2, 8, 8, 1, 5])  # some stand in their own history
    pairs, again = (without_targets(seen.at_every_position(SEQ, LENGTHS), target) for _ in range(2))
    logits = x @ weight.T
    added = torch.zeros_like(logits).index_put((pairs.rows, pairs.items), pairs.values)
    expected = F.cross_entropy((logits + added)[:, 1:], target - 1, reduction="none")
    found = full_cross_entropy(x, weight, None, target, chunk, again)
    torch.testing.assert_close(found, expected)
    leaves = [x, weight, *seen.parameters()]
    scale = torch.arange(1.0, 12)
    for a, b in zip(
        torch.autograd.grad((found * scale).sum(), leaves),
        torch.autograd.grad((expected * scale).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["learned", "excluded"])
def test_the_sampled_loss_estimates_the_full_one(mode):
    torch.manual_seed(0)
    seen, x, weight = module(mode), torch.randn(3, 4), torch.randn(N_ITEMS, 4)
    target = torch.tensor([3, 1, 8])
    pairs = without_targets(seen.at_last(SEQ, LENGTHS), target)
    log_q = torch.cat([torch.full((1,), -torch.inf), torch.full((N_ITEMS - 1,), 1 / (N_ITEMS - 1)).log()])
    full = full_cross_entropy(x, weight, None, target, 10**6, pairs)
    many = sampled_cross_entropy(x, weight, None, target, log_q, 200_000, pairs)
    torch.testing.assert_close(many, full, atol=0.03, rtol=0.03)


# ---------------------------------------------------------------------- in the models


@pytest.fixture(scope="module", params=sorted(MODELS))
def name(request):
    return request.param


@pytest.mark.parametrize("mode", ["learned", "excluded"])
@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_scores_ranking_and_batches_agree(name, mode, seeds):
    own = {"inference_seeds": seeds} if few_steps(name) else {}
    it, bare = (toy(name, seen_items=m, **own, **few_steps(name)) for m in (mode, "candidates"))
    bare.model.load_state_dict(it.model.state_dict(), strict=False)
    if mode == "learned":
        with torch.no_grad():
            it.model.seen_items.bucket_value.fill_(-0.1)
    interaction = batch_of(it.test, 30)
    it.model.eval(), bare.model.eval()
    with torch.no_grad():
        scores, plain = it.model.full_sort_predict(interaction), bare.model.full_sort_predict(interaction)
        torch.testing.assert_close(
            torch.cat([it.model.full_sort_predict(interaction[i : i + 7]) for i in range(0, 30, 7)]), scores
        )
    inside = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, interaction[it.model.ITEM_SEQ], True)
    inside[:, 0] = False
    if mode == "excluded":
        assert scores[inside].isneginf().all()
    elif len(seeds) == 1 or not few_steps(name):
        torch.testing.assert_close(scores[inside], plain[inside] - 3, atol=1e-4, rtol=1e-4)
        outside = ~inside
        outside[:, 0] = False
        torch.testing.assert_close(scores[outside], plain[outside])
    it.model.logits_chunk = 200
    found, items = it.model.topk(interaction, 5)
    torch.testing.assert_close(found, scores.topk(5).values)


@pytest.mark.slow
def test_the_learned_value_moves_within_an_epoch(name):
    """Nobody in markov-toy takes the last item again at once: its score falls."""
    it = toy(name, seen_items="learned", **few_steps(name))
    it.model.train()
    optimizer = torch.optim.Adam(it.model.parameters(), lr=0.001)
    for interaction in it.train:
        optimizer.zero_grad()
        it.model.calculate_loss(interaction).backward()
        optimizer.step()
    value = it.model.seen_items.values(torch.tensor([0]))
    assert value.abs() > 0.05


def test_excluded_trains(name):
    it = toy(name, seen_items="excluded", **few_steps(name))
    it.model.train()
    loss = it.model.calculate_loss(batch_of(it.train))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in it.model.parameters() if p.grad is not None)


def test_a_history_that_holds_every_item_is_told():
    it = toy("SASRecPlus", seen_items="excluded", MAX_ITEM_LIST_LENGTH=60)
    n = it.dataset.item_num
    interaction = batch_of(it.test, 2)
    seq = torch.zeros(2, max(60, n), dtype=torch.long)
    seq[0, : n - 1], seq[1, :3] = torch.arange(1, n), torch.tensor([1, 2, 3])
    interaction.interaction.update({it.model.ITEM_SEQ: seq, it.model.ITEM_SEQ_LEN: torch.tensor([n - 1, 3])})
    it.model.max_seq_length = n
    with pytest.raises(ValueError, match=r"seen_items \[excluded\] leaves nothing to rank"):
        it.model.seen_when_ranking(interaction)
