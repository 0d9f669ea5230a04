"""DreamRec against its two algorithms written out, step by step and with two passes through the denoiser."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_diffusion.diffusion_utils import SeedNoise, get_betas

from ..conftest import batch_of, toy

NO_DROPOUT = {"emb_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
DENOISERS = ["mlp1", "mlp2"]


def dreamrec(**overrides):
    """A DreamRec whose denoiser has weights as large as trained ones, so that no part of it drowns in another."""
    it = toy("DreamRec", **{"num_steps": 30, **NO_DROPOUT, **overrides})
    with torch.no_grad():
        for parameter in it.model.f.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    it.model.eval()
    return it


# ---------------------------------------------------------------------- the equations, written out


def plain_condition(model, item_seq, item_seq_len):
    """c of Eq. 10, one user after another and without padding."""
    rows = []
    for items, n in zip(item_seq, item_seq_len, strict=True):
        h = model.encoder.norm(model.item_embedding(items[:n]) + model.encoder.position_embedding.weight[:n])
        for block in model.encoder.encoder.blocks:
            heads = block.attention.n_heads
            q, (k, v) = block.attention.query(h), block.attention.key_value(h).chunk(2, -1)
            q, k, v = (x.view(n, heads, -1).transpose(0, 1) for x in (q, k, v))
            logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            logits = logits.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
            out = (logits.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
            h = block.norm_1(h + block.attention.out(out))
            h = block.norm_2(h + block.dense_2(F.gelu(block.dense_1(h))))
        rows.append(h[-1])
    return torch.stack(rows)


def plain_f(f, x_t, c, t):
    """f(x_t, c, t): the network over what is put side by side, for each row's own step."""
    half = x_t.shape[1] // 2
    angles = torch.tensor([[step * 10000 ** (-i / half) for i in range(half)] for step in t.tolist()])
    s = torch.cat([angles.cos(), angles.sin()], 1).to(x_t)
    s = f.step_embedding.dense_2(F.gelu(f.step_embedding.dense_1(s)))
    h = torch.cat([x_t, c, s], 1) @ f.dense_1.weight.T + f.dense_1.bias
    return h if f.dense_2 is None else F.gelu(h) @ f.dense_2.weight.T + f.dense_2.bias


def plain_generation(model, interaction, seed, w):
    """Algorithm 2 to the letter: two passes a step, the posterior of each row's own step; in float64."""
    model = copy.deepcopy(model).double()
    c = plain_condition(model, *model.history(interaction))
    null, betas = model.null.expand_as(c), get_betas("linear", model.diffusion.num_steps)
    abar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(c.shape[1], generator=generator).double().expand_as(c)
    for step in reversed(range(len(betas))):
        t = torch.full((len(c),), step)
        f = (1 + w) * plain_f(model.f, e, c, t) - w * plain_f(model.f, e, null, t)
        start, previous = before[t].sqrt() * betas[t] / (1 - abar[t]), (1 - before[t]) / (1 - abar[t])
        e = start[:, None] * f + ((1 - betas[t]).sqrt() * previous)[:, None] * e
        if step > 0:
            e = e + (previous * betas[t]).sqrt()[:, None] * torch.randn(c.shape[1], generator=generator)
    return e.float()


def assert_agree(found, expected):
    """To 1e-5 of the size of what is compared: guidance subtracts large numbers from each other."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


# ---------------------------------------------------------------------- learning phase


@pytest.mark.parametrize("ragged", [True, False])
def test_the_condition_is_that_of_a_user_alone(ragged):
    it = dreamrec(ragged=ragged)
    batch = batch_of(it.train, 60)
    expected = plain_condition(it.model, *it.model.history(batch))
    torch.testing.assert_close(it.model.encode(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("target_gradient", [False, True])
def test_loss_and_gradient_are_algorithm_1(denoiser, target_gradient):
    it = dreamrec(denoiser=denoiser, target_gradient=target_gradient, condition_dropout_prob=0.3)
    batch, model = batch_of(it.train, 50), it.model
    item_seq, item_seq_len = model.history(batch)
    target = batch[model.ITEM_ID]
    torch.manual_seed(3)
    loss = model.calculate_loss(batch)

    torch.manual_seed(3)
    dropped, t, noise = torch.rand(50) < 0.3, torch.randint(30, (50,)), torch.randn(50, 32)
    c = plain_condition(model, item_seq, item_seq_len)
    c = torch.stack([model.null if drop else row for drop, row in zip(dropped, c, strict=True)])
    e = model.item_embedding.weight[target]
    e = e if target_gradient else e.detach()
    abar = (1 - model.diffusion.betas).cumprod(0)[t, None]
    prediction = plain_f(model.f, abar.sqrt() * e + (1 - abar).sqrt() * noise, c, t)
    expected = sum((e[i] - prediction[i]).norm() ** 2 for i in range(50)) / 50
    assert dropped.any() and not dropped.all()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    for key, a, b in zip(parameters, found, torch.autograd.grad(expected, list(parameters.values())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_the_noised_target_enters_the_network_and_takes_gradient_where_the_switch_says():
    batch = None
    reached = {}
    for switch in (False, True):
        it = dreamrec(target_gradient=switch)
        model, batch = it.model, batch_of(it.train, 20)
        target, t = batch[model.ITEM_ID], torch.zeros(20, dtype=torch.long)
        x_t, c = model.diffuse(model.item_embedding(target), t), model.encode(batch).detach()
        out = model.f(x_t, c, t)
        assert ((out - model.f(x_t + 1, c, t)).abs().sum(1) > 1e-3).all()
        [grad] = torch.autograd.grad(out.sum(), model.item_embedding.weight)
        assert (grad[target.unique()].abs().sum(1) > 0).all()
        [grad] = torch.autograd.grad(model.calculate_loss(batch), model.item_embedding.weight)
        reached[switch] = set(grad.abs().sum(1).nonzero().flatten().tolist())
    history = set(batch[model.ITEM_SEQ].unique().tolist()) - {0}
    targets = set(target.tolist())
    assert targets - history
    assert reached[False] <= history and reached[True] >= targets


@pytest.mark.parametrize("p", [0.0, 0.25, 0.99])
def test_the_condition_is_dropped_as_often_as_said(p):
    it = dreamrec(condition_dropout_prob=p, guidance_scale=0)
    model, batch = it.model, batch_of(it.train, 200)
    seen = []
    model.f.forward = lambda x_t, c, t: seen.append(c) or x_t * c
    for _ in range(10):
        loss = model.calculate_loss(batch)
    share = (torch.cat(seen) == model.null).all(1).float().mean()
    assert abs(share - p) < 0.04
    loss.backward()
    assert model.null.requires_grad == (p > 0) and (model.null.grad is not None) == (p > 0)


def test_embeddings_start_at_the_scale_of_the_noise():
    it = toy("DreamRec", hidden_size=64)
    for weight, std in (
        (it.model.item_embedding.weight[1:], 1.0),
        (it.model.encoder.position_embedding.weight, 1.0),
        (it.model.null, 1.0),
        (it.model.f.dense_1.weight, 0.02),
    ):
        assert abs(weight.std() / std - 1) < 0.35
    assert not it.model.item_embedding.weight[0].any()
    assert toy("DreamRec", embedding_std=0.1).model.item_embedding.weight.abs().max() < 0.6


@pytest.mark.parametrize("schedule", ["linear", "exponential", "cosine", "sqrt"])
def test_every_schedule_trains_and_generates(schedule):
    it = dreamrec(noise_schedule=schedule, beta_start=0.001, beta_max=8.0)
    betas, n = it.model.diffusion.betas.double(), 30
    u = torch.arange(n + 1, dtype=torch.double) / n
    expected = {
        "linear": torch.linspace(0.001, 0.02, n, dtype=torch.double),
        "exponential": 1 - (-0.1 / n - 7.9 * torch.linspace(1, 2 * n + 1, n) / (2 * n**2)).double().exp(),
        "cosine": 1 - (lambda a: a[1:] / a[:-1])(((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2),
        "sqrt": 1 - (lambda a: a[1:] / a[:-1])(1 - (u + 1e-4).sqrt()),
    }[schedule]
    torch.testing.assert_close(betas, expected.clamp(max=0.999), rtol=1e-4, atol=1e-6)
    assert it.model.calculate_loss(batch_of(it.train)).isfinite()
    assert it.model.generate(batch_of(it.test)).isfinite().all()


# ---------------------------------------------------------------------- generation phase


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize(("num_steps", "w"), [(500, 2.0), (30, 0.0), (30, 6.0)])
@pytest.mark.parametrize("users", [9, 40])  # fewer and more than the corners of the affine chain
@torch.no_grad()
def test_generation_is_algorithm_2(users, fused, denoiser, num_steps, w):
    it = dreamrec(denoiser=denoiser, fused_denoiser=fused, num_steps=num_steps, guidance_scale=w, inference_seeds=[11])
    batch = batch_of(it.test, users)
    expected = plain_generation(it.model, batch, 11, w)
    assert expected.std(0).min() > 1e-3  # the condition reaches every dimension
    oracle = it.model.generate(batch)
    assert_agree(oracle, expected)
    scores = it.model.full_sort_predict(batch)
    torch.testing.assert_close(scores[:, 1:], oracle @ it.model.item_embedding.weight[1:].T)


def test_mixed_precision_ranks_alike_in_large_and_small_batches():
    it = toy("DreamRec", enable_amp=True, hidden_size=16, num_steps=30)
    it.model.eval()
    interaction = batch_of(it.test, 40)
    with torch.no_grad():
        whole = it.model.sample_start(interaction, [3])  # more users than dimensions: the affine chain
        parts = [it.model.sample_start(interaction[rows], [3]) for rows in (slice(0, 10), slice(10, 20))]
    torch.testing.assert_close(torch.cat(parts, 1), whole[:, :20], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("enable_amp", [False, True])
@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_the_fused_denoiser_is_two_plain_passes(denoiser, enable_amp):
    """In mixed precision, too: guidance would multiply what bf16 rounds off each of the two passes."""
    it = dreamrec(denoiser=denoiser, inference_seeds=[3, 4, 5], num_steps=200, enable_amp=enable_amp)
    model, batch = it.model, batch_of(it.test, 40)
    for method in ("ddpm", "ddim"):
        for steps, inference in ((None, "reverse"), (1, "reverse"), (20, "reverse"), (None, "one_step")):
            model.sampler, model.sampling_steps, model.inference = method, steps, inference
            found = []
            for model.fused_denoiser in (True, False):
                found.append(model.sample_start(batch, model.inference_seeds))
            assert_agree(*found)
            assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)


@torch.no_grad()
def test_one_linear_layer_weighs_x_t_and_c_alike_at_every_step():
    """Where x_t is all noise as where it is all but the target; with two layers the step decides what is heard."""
    x_t, c, dx, dc = torch.randn(4, 30, 32)
    moved = {}
    for denoiser in DENOISERS:
        f = dreamrec(denoiser=denoiser).model.f
        for t in (torch.full((30,), 1), torch.full((30,), 29)):
            for name, x, condition in (("x_t", x_t + dx, c), ("c", x_t, c + dc)):
                moved.setdefault((denoiser, name), []).append(f(x, condition, t) - f(x_t, c, t))
    for name in ("x_t", "c"):
        assert_agree(*moved["mlp1", name])
        assert (moved["mlp2", name][0] - moved["mlp2", name][1]).abs().max() > 0.01


@pytest.mark.parametrize("denoiser", DENOISERS)
@torch.no_grad()
def test_guidance_moves_along_the_difference_of_the_two_predictions(denoiser):
    it = dreamrec(denoiser=denoiser)
    model, batch = it.model, batch_of(it.test, 30)
    x_t, t = torch.randn(30, 32), torch.full((30,), 7)
    cond, uncond = (plain_f(model.f, x_t, c, t) for c in (model.encode(batch), model.null.expand(30, -1)))
    assert (cond - uncond).abs().max() > 0.1
    for w in (0.0, 1.0, 4.0):
        model.guidance_scale = w
        found = model.denoiser(batch, SeedNoise([0]))(x_t, t)
        assert_agree(found, cond + w * (cond - uncond))


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.bmm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("denoiser", "each_step"), [("mlp1", 1), ("mlp2", 2)])
@torch.no_grad()
def test_a_step_is_one_pass_and_the_encoder_runs_once(denoiser, each_step):
    """One product for each layer and step, for condition and null condition, and for all seeds together."""
    counts = []
    for n_steps in (10, 25):
        it = dreamrec(denoiser=denoiser, inference_seeds=3, sampling_steps=n_steps, sampler="ddim")
        encoded = []
        it.model.encoder.register_forward_hook(lambda *args, seen=encoded: seen.append(args[2].shape))
        with CountProducts() as products:
            it.model.full_sort_predict(batch_of(it.test, 12))
        assert encoded == [(12, 32)]
        counts.append(products.count)
    embedding = 3  # of a step, and its part of the first layer: of the steps that are visited alone
    assert counts[1] - counts[0] == 15 * (each_step + embedding)


@torch.no_grad()
def test_oracle_items_are_averaged_over_the_seeds():
    it = dreamrec(inference_seeds=[3, 4])
    batch = batch_of(it.test, 10)
    expected = sum(plain_generation(it.model, batch, seed, 2.0) for seed in (3, 4)) / 2
    found = it.model.generate(batch)
    assert found.shape == (10, 32)
    assert_agree(found, expected)


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"denoiser": "unet"}, r"denoiser \[unet\].*mlp1, mlp2"),
        ({"guidance_scale": -1}, r"guidance_scale \[-1\].*>= 0"),
        ({"guidance_scale": "strong"}, r"guidance_scale \['strong'\].*number"),
        ({"embedding_std": -0.5}, r"embedding_std \[-0.5\].*>= 0"),
        ({"embedding_std": None}, r"embedding_std \[None\] must be a number"),
        ({"fused_denoiser": 1}, r"fused_denoiser \[1\].*True or False"),
        ({"target_gradient": "no"}, r"target_gradient \['no'\].*True or False"),
        ({"condition_dropout_prob": 1.0}, r"condition_dropout_prob \[1.0\].*>= 0 and < 1"),
        ({"condition_dropout_prob": 0}, r"guidance_scale \[2.0\] must be 0 where condition_dropout_prob is 0"),
        ({"noise_schedule": "exponential", "beta_max": 0.01}, "beta_min"),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(overrides, message):
    with pytest.raises(ValueError, match=message):
        toy("DreamRec", **overrides)
