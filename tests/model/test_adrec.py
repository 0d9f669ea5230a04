"""ADRec against its equations written out: its loss, its reverse process over whole sequences, its backbone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recbole_diffusion.diffusion_utils import SeedNoise, get_betas, guided_start
from recbole_diffusion.modules.layers import TransformerEncoder
from recbole_diffusion.modules.ragged import TokenLayout

from ..conftest import batch_of, loss_with_seed, toy

NO_DROPOUT = {"emb_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


def adrec(**overrides):
    """An ADRec that hears what is injected: with the paper's lambda, 0.001, a wrong one would go unnoticed."""
    return toy("ADRec", **{"num_steps": 8, "lambda_uncertainty": 0.7, **NO_DROPOUT, **overrides})


def plain_step(model, t: int):
    half = model.hidden_size // 2
    scaled = t * 1000 / model.diffusion.num_steps
    angles = torch.tensor([scaled * 10000 ** (-i / half) for i in range(half)])
    d = model.step_embedding
    return d.dense_2(F.silu(d.dense_1(torch.cat([angles.cos(), angles.sin()]))))


def plain_decode(model, z):
    """The decoder over one whole sequence z [n, D]."""
    n = torch.tensor([len(z)])
    return model.decoder(z, TokenLayout(n, len(z), ragged=False))


def plain_condition(model, items):
    h = model.embedding_norm(model.item_embedding(items))
    return model.encoder(h, TokenLayout(torch.tensor([len(items)]), len(items), ragged=False))


def test_items_are_dropped_before_they_are_normalised(monkeypatch):
    it = adrec(emb_dropout_prob=0.5, ragged=False)
    model, batch = it.model, batch_of(it.train, 12)
    item_seq, n = model.history(batch)
    seen = []
    monkeypatch.setattr(model.encoder, "forward", lambda h, layout: seen.append(h) or h)
    torch.manual_seed(5)
    model.train().encode(item_seq, model.layout(n, item_seq.shape[1]))
    torch.manual_seed(5)
    dropped = F.dropout(model.item_embedding(item_seq.flatten()), 0.5)
    torch.testing.assert_close(seen[0], F.layer_norm(dropped, (32,), eps=it.config["layer_norm_eps"]))
    assert (dropped == 0).float().mean() > 0.4


def test_every_block_has_the_dropout_after_its_activation():
    model = adrec(act_dropout_prob=0.25).model
    blocks = [*model.encoder.blocks, *model.decoder.blocks]
    assert len(blocks) == 4 and {block.act_dropout.p for block in blocks} == {0.25}
    assert adrec().model.encoder.blocks[0].act_dropout.p == 0


def test_the_decoder_without_attention_is_two_layers_and_a_norm():
    it = adrec(decoder="mlp")
    decoder, z = it.model.decoder, torch.randn(7, 32)
    assert decoder.dense_1.weight.shape == (128, 32)
    h = z @ decoder.dense_1.weight.T + decoder.dense_1.bias
    out = (h * torch.sigmoid(h)) @ decoder.dense_2.weight.T + decoder.dense_2.bias
    centred = out - out.mean(1, keepdim=True)
    expected = centred / (out.var(1, correction=0, keepdim=True) + it.config["layer_norm_eps"]).sqrt()
    torch.testing.assert_close(decoder(z), expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("noised_items, decoder", [("all", "attention"), (2, "attention"), ("all", "mlp")])
def test_the_loss_is_that_of_the_plain_form(ragged, independent, noised_items, decoder):
    it = adrec(ragged=ragged, independent_steps=independent, noised_items=noised_items, decoder=decoder, loss_scale=0.5)
    model, batch = it.model, batch_of(it.train, 12)
    found = loss_with_seed(model, batch, 3)

    item_seq, n = model.history(batch)
    torch.manual_seed(3)
    t = torch.randint(8, (int(n.sum()) if independent else 12,))
    t = t if independent else t.repeat_interleave(n)
    noise = torch.randn(int(n.sum()), 32)
    abar = (1 - get_betas("trunc_linear", 8)).cumprod(0).float()
    entropy, error, k = [], [], 0
    for row, length in enumerate(n.tolist()):
        items = item_seq[row, :length]
        target = torch.cat([items[1:], batch[model.ITEM_ID][row : row + 1]])
        x_start, z = model.item_embedding(target), []
        first = 0 if noised_items == "all" else length - noised_items
        for i, c in enumerate(plain_condition(model, items)):
            step = int(t[k + i]) if i >= first else 0
            x_t = abar[step].sqrt() * x_start[i] + (1 - abar[step]).sqrt() * noise[k + i] if i >= first else x_start[i]
            z.append(c + 0.7 * (x_t + plain_step(model, step)))
        k += length
        x_hat = plain_decode(model, torch.stack(z))
        each = F.cross_entropy((x_hat @ model.item_embedding.weight.T)[:, 1:], target - 1, reduction="none")
        entropy.append(each[max(0, first) :])
        error.append((x_hat - x_start).square().mean(1)[max(0, first) :].mean())
    expected = torch.cat(entropy).mean() + 0.5 * torch.stack(error).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    leaves = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_steps_are_one_a_position_or_one_a_sequence():
    rows = torch.arange(50).repeat_interleave(10)
    for independent in (True, False):
        t, _ = adrec(independent_steps=independent).model.draw_steps(rows, 50)
        assert (t.view(50, 10) == t.view(50, 10)[:, :1]).all().item() != independent


def test_no_position_sees_what_comes_behind_it():
    """The noised next item of a position is history to later ones, and nothing to earlier ones."""
    model = adrec().model
    z = torch.randn(6, 32)
    changed = z.clone()
    changed[3] += 1
    same = (plain_decode(model, z) - plain_decode(model, changed)).abs().amax(1) < 1e-6
    assert same.tolist() == [True] * 3 + [False] * 3


def test_without_diffusion_it_is_sasrecplus_of_as_many_blocks():
    """lambda 0, no squared error: losses, gradients of the embeddings and scores are those of a SASRecPlus."""
    it = adrec(lambda_uncertainty=0, loss_scale=0)
    plus = toy("SASRecPlus", n_layers=4, use_position_embedding=False, **NO_DROPOUT)
    theirs = it.model.state_dict()
    blocks = {f"encoder.encoder.blocks.{i}.": f"encoder.blocks.{i}." for i in (0, 1)}
    blocks |= {f"encoder.encoder.blocks.{i}.": f"decoder.blocks.{i - 2}." for i in (2, 3)}
    names = {"encoder.norm.": "embedding_norm.", "item_embedding.": "item_embedding.", **blocks}
    state = {}
    for key in plus.model.state_dict():
        [prefix] = [name for name in names if key.startswith(name)]
        state[key] = theirs[names[prefix] + key[len(prefix) :]]
    plus.model.load_state_dict(state)
    batch = batch_of(it.train)
    losses = [loss_with_seed(x.model, batch) for x in (it, plus)]
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, x.model.item_embedding.weight) for loss, x in zip(losses, (it, plus), strict=True)
    ]
    torch.testing.assert_close(*gradients)
    batch = batch_of(it.test, 40)
    for x in (it, plus):
        x.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(*(x.model.full_sort_predict(batch) for x in (it, plus)), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- inference


def plain_generation(model, items, seed, w):
    """x0_hat of one user and seed: the whole decoder at each step, of which the last position alone is kept."""
    betas = get_betas("trunc_linear", model.diffusion.num_steps)
    abar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(model.hidden_size, generator=generator)
    c = plain_condition(model, items)
    for step in reversed(range(len(betas))):
        last = model.lam * (x + plain_step(model, step))
        known = model.lam * (model.item_embedding(items[1:]) + plain_step(model, 0))
        given = torch.cat([known, last[None]])
        x_start = plain_decode(model, c + given)[-1]
        if w:
            x_start = guided_start(x_start, plain_decode(model, given)[-1], w)
        start, previous = before[step].sqrt() * betas[step] / (1 - abar[step]), (1 - before[step]) / (1 - abar[step])
        x = start.float() * x_start + ((1 - betas[step]).sqrt() * previous).float() * x
        if step:
            x = x + (previous * betas[step]).sqrt().float() * torch.randn(model.hidden_size, generator=generator)
    return x


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("decoder", ["attention", "mlp"])
@pytest.mark.parametrize("w", [0.0, 1.5])
def test_known_positions_computed_once_give_what_the_whole_decoder_gives(ragged, decoder, w):
    it = adrec(ragged=ragged, decoder=decoder, guidance_scale=w, condition_dropout_prob=0.3, n_decoder_layers=3)
    model, batch = it.model.eval(), batch_of(it.test, 9)
    item_seq, n = model.history(batch)
    n = torch.tensor([1, 2, 3, *n[3:].tolist()])  # a history of one item has nothing known
    batch.interaction[model.ITEM_SEQ_LEN] = n
    batch.interaction[model.ITEM_SEQ] = item_seq * (torch.arange(item_seq.shape[1]) < n[:, None])
    with torch.no_grad():
        found = model.sample_start(batch, [4, 9])
        for row, length in enumerate(n.tolist()):
            for place, seed in enumerate((4, 9)):
                expected = plain_generation(model, item_seq[row, :length], seed, w)
                torch.testing.assert_close(found[place, row], expected, rtol=1e-4, atol=1e-4)


def test_histories_of_all_lengths_are_read_in_parts_as_in_one(monkeypatch):
    """Long and short histories fall into several parts, padded to their longest or the least number of places."""
    it = adrec()
    model, batch = it.model.eval(), batch_of(it.test, 12)
    item_seq, n = model.history(batch)
    parts, join = [], TokenLayout._join
    monkeypatch.setattr(TokenLayout, "_join", staticmethod(lambda *args: parts.append(args[1]) or join(*args)))
    batch.interaction[model.ITEM_SEQ_LEN] = n = torch.tensor([*[1, 2, 3, 5, 6], *n[5:].tolist()])
    batch.interaction[model.ITEM_SEQ] = item_seq * (torch.arange(item_seq.shape[1]) < n[:, None])
    found = []
    with torch.no_grad():
        for places, tokens in ((16, 256), (3, 1)):
            monkeypatch.setattr(TokenLayout, "MIN_PLACES", places)
            monkeypatch.setattr(TokenLayout, "MIN_TOKENS", tokens)
            found.append(model.sample_start(batch, [4, 9]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    n_blocks = len(model.decoder.blocks)
    assert parts[:n_blocks] == [17] * n_blocks and parts[-1] == 4 and len(parts) > 2 * n_blocks


def test_the_decoder_reads_the_known_positions_once_for_all_steps_and_seeds(monkeypatch):
    it = adrec()
    calls, read_last = [], TransformerEncoder.read_last
    monkeypatch.setattr(TransformerEncoder, "read_last", lambda *args: calls.append(1) or read_last(*args))
    forward = TransformerEncoder.forward
    monkeypatch.setattr(TransformerEncoder, "forward", lambda *args, **kw: calls.append(2) or forward(*args, **kw))
    with torch.no_grad():
        it.model.eval().sample_start(batch_of(it.test, 5), [1, 2, 3])
    assert calls == [2, 1]


def test_the_noise_reaches_the_ranking_only_through_lambda():
    for lam, same in ((0, True), (0.7, False)):
        it = adrec(lambda_uncertainty=lam)
        model, batch = it.model.eval(), batch_of(it.test, 9)
        with torch.no_grad():
            a, b = model.sample_start(batch, [1, 2])
            one_step = model.denoiser(batch, SeedNoise([3]))(torch.randn(9, 32), torch.full((9,), 7))
        assert torch.allclose(a, b, atol=1e-4) == torch.allclose(one_step, a, atol=1e-4) == same


def test_guidance_needs_histories_that_were_hidden():
    with pytest.raises(ValueError, match=r"guidance_scale \[2\] must be 0 where condition_dropout_prob is 0"):
        adrec(guidance_scale=2)
    it = adrec(condition_dropout_prob=0.5)
    n = torch.full((200,), 3)
    layout = it.model.layout(n, 3)
    c = it.model.drop_condition(torch.ones(600, 32), layout, 200)
    hidden = layout.unpack(c, 200, 3).sum((1, 2)) == 0
    assert 60 < hidden.sum() < 140 and set(c.sum(1).tolist()) == {0.0, 32.0}
