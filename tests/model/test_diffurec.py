"""DiffuRec and DiffuRecSys against their equations written out on the padded batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from recbole_diffusion.diffusion_utils import SeedNoise
from recbole_diffusion.modules.ragged import TokenLayout

from ..conftest import batch_of, loss_with_seed, toy

NO_DROPOUT = {"emb_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
TWIN = {"hidden_act": "gelu", "initializer": "normal", "num_steps": 8}


def attention(module, query, context, mask):
    """Multi-head attention head by head; query and context [B, L, D], mask [B, L] True at real keys."""
    q, (k, v) = module.query(query), module.key_value(context).chunk(2, -1)
    size = q.shape[-1] // module.n_heads
    heads = []
    for head in range(module.n_heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., part])
    return module.out(torch.cat(heads, -1))


def block(module, h, mask):
    h = h + attention(module.attention, module.norm_1(h), module.norm_1(h), mask)
    inner = module.act_dropout(module.act(module.dense_1(module.norm_2(h))))
    return module.block_dropout(h + module.dense_2(inner))


def sinusoid(t, dim):
    frequencies = [10000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    return torch.tensor(
        [[math.cos(s * f) for f in frequencies] + [math.sin(s * f) for f in frequencies] for s in t.tolist()]
    )


def plain(model, item_seq, item_seq_len, x_t, t, lam):
    """x0_hat by the equations, on the padded batch: lam [B, L, D]."""
    mask = item_seq > 0
    h = model.embedding_norm(model.item_embedding(item_seq))
    steps = sinusoid(t * 1000 / model.diffusion.num_steps, model.hidden_size)
    d = model.step_embedding.dense_2(F.silu(model.step_embedding.dense_1(steps)))
    injected = lam * (x_t + d)[:, None]
    if getattr(model, "cross_attention", False):
        for each in model.approximator:
            query, context = (injected, each.norm(h)) if each.query == "target" else (each.norm(h), injected)
            h = h + attention(each.cross_attention, query, context, mask)
            h = block(each.block, h, mask)
    else:
        h = h + injected
        for each in model.approximator.blocks:
            h = block(each, h, mask)
    return model.output_norm(h[torch.arange(len(h)), item_seq_len - 1])


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize(
    "name, switches",
    [
        ("DiffuRec", {}),
        ("DiffuRecSys", {}),
        ("DiffuRecSys", {"cross_attention_query": "history"}),
        ("DiffuRecSys", {"cross_attention": False}),
    ],
)
def test_the_network_is_the_equations(name, switches, ragged):
    it = toy(name, ragged=ragged, **TWIN, **NO_DROPOUT, **switches)
    batch, model = batch_of(it.train, 50), it.model
    item_seq, item_seq_len = model.history(batch)
    layout = model.layout(item_seq_len, item_seq.shape[1])
    assert (len(layout.groups) > 1) == ragged
    torch.manual_seed(0)
    x_t, t = torch.randn(50, 32), torch.randint(0, 8, (50,))
    lam = torch.randn(50, item_seq.shape[1], 32)
    fast = model.approximate(model.embed_history(item_seq, layout), x_t, t, layout.pack(lam), layout)
    torch.testing.assert_close(fast, plain(model, item_seq, item_seq_len, x_t, t, lam), rtol=1e-5, atol=1e-5)


def test_diffurecsys_with_both_changes_off_is_diffurec_to_the_last_bit():
    losses = []
    for name, switches in (("DiffuRec", {}), ("DiffuRecSys", {"cross_attention": False, "offset_noise": 0})):
        it = toy(name, **TWIN, **switches)
        it.model.train()
        losses.append([loss_with_seed(it.model, batch_of(it.train), seed) for seed in range(3)])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


class Halved(torch.nn.Module):
    """Stands where a dropout does, and can be told from one that is missing or stands elsewhere."""

    def forward(self, x):
        return x / 2


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_the_public_codes_dropouts_stand_after_the_activation_and_on_the_blocks_output(name):
    it = toy(name, act_dropout_prob=0.25, block_dropout_prob=0.35, lambda_uncertainty=0.5, **TWIN, **NO_DROPOUT)
    batch, model = batch_of(it.train, 20), it.model
    item_seq, item_seq_len = model.history(batch)
    layout = model.layout(item_seq_len, item_seq.shape[1])
    x_t, t, lam = torch.randn(20, 32), torch.zeros(20, dtype=torch.long), torch.randn(*item_seq.shape, 32)

    def found():
        return model.approximate(model.embed_history(item_seq, layout), x_t, t, layout.pack(lam), layout)

    model.eval()
    before = found()
    blocks = model.approximator.blocks if name == "DiffuRec" else [each.block for each in model.approximator]
    assert [(each.act_dropout.p, each.block_dropout.p) for each in blocks] == [(0.25, 0.35)] * 2
    for dropout in ("act_dropout", "block_dropout"):
        for each in blocks:
            setattr(each, dropout, Halved())
        assert not torch.allclose(found(), before)
        torch.testing.assert_close(found(), plain(model, item_seq, item_seq_len, x_t, t, lam), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["act_dropout_prob", "block_dropout_prob"])
def test_each_of_them_drops_in_training_alone(key):
    it = toy("DiffuRec", **{key: 0.5}, **NO_DROPOUT, lambda_uncertainty=0.0)
    batch = batch_of(it.train, 20)
    it.model.train()
    assert loss_with_seed(it.model, batch, 0) != loss_with_seed(it.model, batch, 1)
    it.model.eval()
    assert loss_with_seed(it.model, batch, 0) == loss_with_seed(it.model, batch, 1)


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_items_start_from_a_scale_of_their_own_where_asked(name):
    left, asked = (toy(name, initializer="xavier", embedding_std=std).model for std in (None, 1.0))
    assert left.item_embedding.weight.std() < 0.2
    assert asked.item_embedding.weight[1:].std().item() == pytest.approx(1.0, abs=0.05)
    assert not asked.item_embedding.weight[0].any()
    rest = dict(asked.named_parameters())
    assert all(torch.equal(p, rest[key]) for key, p in left.named_parameters() if key != "item_embedding.weight")


@pytest.mark.parametrize("switch", [{"cross_attention": True}, {"offset_noise": 1.0}])
def test_each_change_changes_the_loss(switch):
    off = {"cross_attention": False, "offset_noise": 0}
    losses = []
    for switches in (off, {**off, **switch}):
        it = toy("DiffuRecSys", **TWIN, **NO_DROPOUT, lambda_uncertainty=0.5, **switches)
        losses.append(loss_with_seed(it.model, batch_of(it.train)))
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_the_noised_target_enters_the_network_and_receives_gradient(name):
    """With the paper's delta of 0.001 no metric would tell."""
    it = toy(name, **NO_DROPOUT)
    batch, model = batch_of(it.train, 30), it.model
    item_seq, item_seq_len = model.history(batch)
    layout = model.layout(item_seq_len, item_seq.shape[1])
    h = model.embed_history(item_seq, layout).detach()
    lam = model.delta + model.delta * torch.randn_like(h)
    t = torch.zeros(30, dtype=torch.long)
    x_t = torch.randn(30, 32, requires_grad=True)
    out = model.approximate(h, x_t, t, lam, layout)
    assert (out - model.approximate(h, x_t + 5.0, t, lam, layout)).abs().max() > 1e-5
    [grad] = torch.autograd.grad(out.square().sum() + out[:, 0].sum(), x_t)
    # Attention over a single key does not ask the query (Eq. 16): there the target has no say.
    reached = item_seq_len > 1 if name == "DiffuRecSys" else item_seq_len > 0
    assert reached.sum() > 20 and torch.equal(grad.abs().sum(1) > 0, reached)
    # The target's embedding enters raw: the gradient flows through the forward process into it.
    target = batch[model.ITEM_ID]
    out = model.approximate(h, model.diffuse(target, t), t, lam, layout)
    [grad] = torch.autograd.grad(out[:, 0].sum(), model.item_embedding.weight)
    assert (grad[target[reached].unique()].abs().sum(1) > 0).all()


def test_without_lambda_the_diffusion_is_off():
    it = toy("DiffuRec", lambda_uncertainty=0.0, **NO_DROPOUT)
    batch = batch_of(it.train)
    assert loss_with_seed(it.model, batch, 0) == loss_with_seed(it.model, batch, 1)


def test_lambda_has_the_papers_moments(monkeypatch):
    it = toy("DiffuRec", lambda_uncertainty=0.3)
    seen = []
    approximate = it.model.approximate
    it.model.approximate = lambda h, x_t, t, lam, layout: seen.append(lam) or approximate(h, x_t, t, lam, layout)
    it.model.calculate_loss(batch_of(it.train))
    it.model.eval()
    it.model.full_sort_predict(batch_of(it.test))
    for lam in (seen[0], torch.cat(seen[1:])):
        assert abs(lam.mean() - 0.3) < 0.03 and abs(lam.std() - 0.3) < 0.03
    assert len(seen) == 1 + it.model.diffusion.num_steps and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.0])
def test_offset_noise_shifts_the_forward_process_alone(offset):
    it = toy("DiffuRecSys", offset_noise=offset)
    noise = it.model.forward_noise(torch.empty(4000, 32))
    assert abs(noise.mean() - 0.1 * offset) < 0.01 and abs(noise.std() - 1) < 0.01
    reverse = SeedNoise([0])(torch.empty(1, 20000))
    assert abs(reverse.mean()) < 0.02


def test_the_forward_process_has_its_moments():
    for extra in (False, True):
        it = toy("DiffuRec", noise_schedule="linear", beta_start=0.3, beta_end=0.4, num_steps=2, noise_x_start=extra)
        abar = it.model.diffusion.alphas_cumprod
        signal, variance = abar[1].sqrt(), 1 - abar[1]
        if extra:  # Eq. 19: x_0 = sqrt(abar_0) e + noise, then Eq. 18 from there
            signal, variance = signal * abar[0].sqrt(), variance + abar[1] * (1 - abar[0])
        target = torch.full((20000,), 5)
        x_t = it.model.diffuse(target, torch.ones_like(target)).detach()
        torch.testing.assert_close(x_t.mean(0), signal * it.model.item_embedding.weight[5].detach(), atol=0.03, rtol=0)
        torch.testing.assert_close(x_t.var(0), variance.expand(32), atol=0.03, rtol=0)


@pytest.mark.parametrize("reverse_variance", ["posterior", "beta"])
@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_the_reverse_phase_is_algorithm_2(name, reverse_variance):
    settings = {"num_steps": 5, "inference_seeds": [11], "lambda_uncertainty": 0.4}
    it = toy(name, reverse_variance=reverse_variance, **settings)
    batch, model = batch_of(it.test, 9), it.model
    item_seq, item_seq_len = model.history(batch)
    model.eval()
    generator = torch.Generator().manual_seed(11)
    diffusion = model.diffusion
    with torch.no_grad():
        x_t = torch.randn(32, generator=generator).expand(9, 32)
        for step in reversed(range(5)):
            lam = 0.4 + 0.4 * torch.randn(model.max_seq_length, 32, generator=generator)
            lam = lam[: item_seq.shape[1]].expand(9, -1, -1)
            x_0 = plain(model, item_seq, item_seq_len, x_t, torch.full((9,), step), lam)
            beta, abar = diffusion.betas[step], diffusion.alphas_cumprod[step]
            before = diffusion.alphas_cumprod[step - 1] if step else torch.ones(())
            x_t = before.sqrt() * beta / (1 - abar) * x_0 + (1 - beta).sqrt() * (1 - before) / (1 - abar) * x_t
            if step:
                variance = beta if reverse_variance == "beta" else (1 - before) / (1 - abar) * beta
                x_t = x_t + variance.sqrt() * torch.randn(32, generator=generator)
        expected = x_t @ model.item_embedding.weight.T
        torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_one_step_inference_is_algorithm_3():
    seeds = [3, 4, 5]
    it = toy("DiffuRecSys", num_steps=5, inference="one_step", inference_seeds=seeds, lambda_uncertainty=0.4)
    batch, model = batch_of(it.test, 9), it.model
    item_seq, item_seq_len = model.history(batch)
    model.eval()
    total = 0
    with torch.no_grad():
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            x_t = torch.randn(32, generator=generator).expand(9, 32)
            lam = 0.4 + 0.4 * torch.randn(model.max_seq_length, 32, generator=generator)
            lam = lam[: item_seq.shape[1]].expand(9, -1, -1)
            x_0 = plain(model, item_seq, item_seq_len, x_t, torch.full((9,), 4), lam)
            total = total + (x_0 @ model.item_embedding.weight[1:].T).softmax(-1)
        scores = model.full_sort_predict(batch)
        torch.testing.assert_close(scores[:, 1:].exp(), total / 3, rtol=1e-4, atol=1e-6)


def test_the_step_sampler_is_fed():
    it = toy("DiffuRec", step_sampler="loss_aware", num_steps=2)
    it.model.train()
    assert it.model.step_sampler.counts.sum() == 0
    it.model.calculate_loss(batch_of(it.train))
    assert it.model.step_sampler.counts.tolist() == [10, 10]
    assert (it.model.step_sampler.history > 0).all()


@pytest.mark.parametrize("ragged", [True, False])
def test_the_layout_keeps_every_token_once(ragged):
    torch.manual_seed(0)
    item_seq_len = torch.randint(1, 21, (200,))
    layout = TokenLayout(item_seq_len, 20, ragged)
    real = layout.positions < item_seq_len[layout.rows]
    kept = set(zip(layout.rows[real].tolist(), layout.positions[real].tolist(), strict=True))
    assert kept == {(row, place) for row, n in enumerate(item_seq_len.tolist()) for place in range(n)}
    assert real.sum() == item_seq_len.sum()
    assert torch.equal(layout.rows[layout.last], torch.arange(200))
    assert torch.equal(layout.positions[layout.last], item_seq_len - 1)
    x = torch.randn(200, 20, 3) * (torch.arange(20) < item_seq_len[:, None])[..., None]
    packed = layout.pack(x)
    torch.testing.assert_close(layout.unpack(packed, 200, 20), x)
    assert len(packed) < 0.7 * 4000 if ragged else len(packed) == 4000
