"""The loss over the items and the top-k, in parts and sampled, against the plain forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from recbole_diffusion.modules.losses import full_cross_entropy, sampled_cross_entropy

from ..conftest import batch_of, toy


@pytest.fixture
def scored():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 5), torch.randn(20, 5), torch.randn(20)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    return x, weight, bias, torch.randint(1, 20, (7,))


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
@pytest.mark.parametrize("biased", [True, False])
def test_cross_entropy_in_parts_is_that_of_all_items_but_the_padding(scored, chunk, biased):
    x, weight, bias, target = scored
    inputs = (x, weight, bias) if biased else (x, weight)
    logits = F.linear(x, weight, bias if biased else None)
    logits = torch.cat([torch.full((7, 1), -torch.inf), logits[:, 1:]], 1)
    plain = F.cross_entropy(logits, target, reduction="none")
    fast = full_cross_entropy(x, weight, bias if biased else None, target, chunk)
    torch.testing.assert_close(fast, plain)
    scale = torch.arange(7.0)
    for a, b in zip(
        torch.autograd.grad((fast * scale).sum(), inputs),
        torch.autograd.grad((plain * scale).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_sampled_softmax_estimates_the_full_one(scored):
    x, weight, bias, target = scored
    counts = torch.arange(20.0)  # popularity; the padding item is never drawn
    log_q = (counts / counts.sum()).log()
    full = full_cross_entropy(x, weight, bias, target, 10**6)
    torch.manual_seed(1)
    many = sampled_cross_entropy(x, weight, bias, target, log_q, 200_000)
    torch.testing.assert_close(many, full, atol=0.03, rtol=0.03)
    # Unbiased in the denominator: exp(loss) has the right mean with few samples too.
    few = torch.stack([sampled_cross_entropy(x, weight, bias, target, log_q, 3).exp() for _ in range(20_000)])
    torch.testing.assert_close(few.mean(0), full.exp(), atol=0.0, rtol=0.1)


@pytest.mark.parametrize("seeds", [[3], [3, 4]])
@pytest.mark.parametrize("chunk", [1, 300, 10**6])
def test_topk_in_parts_is_that_of_all_scores(seeds, chunk):
    it = toy("DiffuRec", num_steps=4, inference_seeds=seeds, logits_chunk=chunk)
    interaction = batch_of(it.test, 12)
    it.model.eval()
    with torch.no_grad():
        scores = it.model.full_sort_predict(interaction)
    found, items = it.model.topk(interaction, 5)
    expected = scores.topk(5)
    torch.testing.assert_close(found, expected.values)
    assert torch.equal(items, expected.indices)
    exclude = torch.cat([items[:, :2], torch.zeros(12, 1, dtype=torch.long)], 1)
    _, rest = it.model.topk(interaction, 3, exclude)
    assert torch.equal(rest, items[:, 2:])


@pytest.mark.parametrize("chunk", [40, 10**6])
def test_several_seeds_rank_a_wide_model_whose_probabilities_would_underflow(chunk, monkeypatch):
    """Scores of hundreds, as inner products of 3,072 dimensions are: of most items float32 holds no probability."""
    it = toy("DiffuRec", num_steps=2, inference_seeds=[3, 4], logits_chunk=chunk)
    model, interaction = it.model.eval(), batch_of(it.test, 12)
    drawn = 200 * torch.randn(2, 12, model.n_items, generator=torch.Generator().manual_seed(0))
    drawn[..., 0] = -torch.inf
    monkeypatch.setattr(model, "sample_start", lambda _, seeds: drawn[[seed - 3 for seed in seeds]])
    monkeypatch.setattr(model, "item_scores", lambda x_start, items=slice(None): x_start[..., items].clone())
    exact = drawn.double().log_softmax(-1).logsumexp(0) - math.log(2)
    assert (exact.exp().float() == 0).float().mean() > 0.5
    scores, (best, found) = model.full_sort_predict(interaction), model.topk(interaction, 20)
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-3)
    for items in (scores.topk(20).indices, found):  # but for the order of what float32 cannot tell apart
        torch.testing.assert_close(exact.gather(1, items), exact.topk(20).values, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(best, scores.gather(1, found))


def test_more_than_all_items_gives_all_items():
    it = toy("DiffuRec", num_steps=2)
    _, items = it.model.topk(batch_of(it.test, 2), it.dataset.item_num + 9)
    assert items.shape == (2, it.dataset.item_num)


def test_the_sampled_loss_trains():
    it = toy("DiffuRec", num_steps=2, item_loss="sampled", n_sampled_items=16)
    it.model.train()
    loss = it.model.calculate_loss(batch_of(it.train))
    loss.backward()
    assert loss.isfinite() and it.model.item_embedding.weight.grad.abs().sum() > 0
