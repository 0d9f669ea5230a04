"""SeqDiffRec against its equations written out on the padded batch, and its switches."""

from __future__ import annotations

import math

import pytest
import torch

from recbole_diffusion.trainer import DiffusionTrainer

from ..conftest import batch_of, loss_with_seed, toy, toy_config

NO_DROPOUT = {"emb_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
T = 8
# The sum of Eq. 14 and the output layer of Eq. 8 as they are printed.
PRINTED = {"initializer": "torch", "embedding_norm": False, "step_scale": None, "tie_weights": False}


def tiny(**overrides):
    """A model without dropout on short sequences, so that some are full; and some rows of each kind of batch."""
    settings = {"num_steps": T, "MAX_ITEM_LIST_LENGTH": 6, "inference_seeds": [3, 4], **NO_DROPOUT}
    it = toy("SeqDiffRec", **{**settings, **PRINTED, **overrides})
    return it.model, batch_of(it.train, 60), batch_of(it.test, 40)


def extended(interaction, last, limit=6):
    """Prefix and last item as lists, cut to the limit on the left, then padded: [B, L] and lengths [B]."""
    rows = zip(interaction["item_id_list"].tolist(), interaction["item_length"].tolist(), last.tolist(), strict=True)
    rows = [([*items[:n], item])[-limit:] for items, n, item in rows]
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def attention(module, h, mask):
    """Multi-head attention head by head on the padded batch; mask [B, L] True at real keys."""
    q, (k, v) = module.query(h), module.key_value(h).chunk(2, -1)
    size, heads = q.shape[-1] // module.n_heads, []
    for head in range(module.n_heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., part])
    return module.out(torch.cat(heads, -1))


def eq15(n, dim):
    """z_n of Eq. 15, with the even dimensions (sines) moved behind the odd ones (cosines)."""
    z = torch.empty(len(n), dim)
    for row, step in enumerate(n.tolist()):
        for j in range(dim // 2):
            z[row, 2 * j] = math.sin(step / 10000 ** (2 * j / dim))
            z[row, 2 * j + 1] = math.cos(step / 10000 ** (2 * j / dim))
    return torch.cat([z[:, 1::2], z[:, 0::2]], dim=1)


def plain_f(model, h_n, lengths, t):
    """f(h_T^n, n) of Eq. 14 to 16 for h_n [B, L, D]; a switched-off embedding is left out."""
    mask = torch.arange(h_n.shape[1]) < lengths[:, None]
    x = h_n
    if model.position_embedding is not None:
        y = model.position_embedding.weight
        x = x + torch.stack([places(model.position_embedding.from_start, y, n, x.shape[1]) for n in lengths.tolist()])
    if model.use_step_embedding:
        z = eq15(t + 1, x.shape[-1])
        if (net := model.step_embedding) is not None:
            z = net.dense_1(z) * torch.sigmoid(net.dense_1(z)) @ net.dense_2.weight.T + net.dense_2.bias
        x = x + (z if model.step_scale is None else model.step_scale * z)[:, None]
    if isinstance(model.norm, torch.nn.LayerNorm):
        x = (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, correction=0).sqrt()
        x = x * model.norm.weight + model.norm.bias
    for block in model.encoder.blocks:
        x = block.norm_1(x + attention(block.attention, x, mask))
        x = block.norm_2(x + block.dense_2(block.act(block.dense_1(x))))
    return x[torch.arange(len(x)), lengths - 1]


def places(from_start, y, n, width):
    """The position embedding of each of n items, the target last, then what padding may hold: [width, D]."""
    rows = list(range(n)) if from_start else list(range(n))[::-1]
    return y[rows + [0] * (width - n)]


def noised(lengths, width, k):
    """True at the last k real positions, [B, L]."""
    position = torch.arange(width)
    return (position < lengths[:, None]) & (position >= lengths[:, None] - k)


def eq7(model, h, lengths, t, noise, k):
    """The last k positions of h [B, L, D] noised to step t, by Eq. 2; noise [B, L, D]."""
    abar = torch.cumprod(1 - model.diffusion.betas.double(), 0)[t].float()[:, None, None]
    h_n = abar.sqrt() * h + (1 - abar).sqrt() * noise
    return torch.where(noised(lengths, h.shape[1], k)[..., None], h_n, h)


@pytest.mark.parametrize("width", [3, 5, 6])
def test_the_last_item_is_appended_and_a_full_history_drops_its_oldest(width):
    model, _, _ = tiny()
    lengths = torch.tensor([1, 2, width, width - 1])
    item_seq = torch.arange(10, 10 + 4 * width).view(4, width) * (torch.arange(width) < lengths[:, None])
    last = torch.tensor([90, 91, 92, 93])
    found, found_lengths = model.append(item_seq, lengths, last)
    expected, expected_lengths = extended({"item_id_list": item_seq, "item_length": lengths}, last)
    assert torch.equal(found, expected) and torch.equal(found_lengths, expected_lengths)


@pytest.mark.parametrize("k", [1, 3, "all"])
@pytest.mark.parametrize("ragged", [True, False])
def test_network_and_forward_process_are_the_equations(ragged, k):
    model, batch, _ = tiny(ragged=ragged, noised_items=k, inner_size=48)
    item_seq, lengths = extended(batch, batch[model.ITEM_ID])
    layout = model.layout(lengths, item_seq.shape[1])
    torch.manual_seed(0)
    noise, t = torch.randn(*item_seq.shape, 32), torch.randint(0, T, (60,))
    h = model.item_embedding(item_seq)
    h_n = model.diffuse(layout.pack(h), t, layout.pack(noise), layout)
    expected = eq7(model, h, lengths, t, noise, 6 if k == "all" else k)
    real = torch.arange(h.shape[1]) < lengths[:, None]
    torch.testing.assert_close(layout.unpack(h_n, 60, h.shape[1])[real], expected[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        model.denoise(h_n, model.positions(layout), t, layout),
        plain_f(model, expected, lengths, t),
        rtol=1e-5,
        atol=1e-5,
    )


SCALES = [
    {"step_projection": True},
    {"step_scale": 0.3},
    {"embedding_norm": True},
    {"step_projection": True, "step_scale": 0.3, "embedding_norm": True},
]


@pytest.mark.parametrize("positions_from", ["target", "start"])
@pytest.mark.parametrize("scales", [{}, *SCALES])
@pytest.mark.parametrize("ragged", [True, False])
def test_every_way_to_add_up_eq_14_is_its_plain_form(ragged, scales, positions_from):
    model, batch, _ = tiny(ragged=ragged, positions_from=positions_from, **scales)
    with torch.no_grad():  # large enough that each part shows
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    item_seq, lengths = extended(batch, batch[model.ITEM_ID])
    layout = model.layout(lengths, item_seq.shape[1])
    h, t = model.item_embedding(item_seq), torch.arange(60) % T
    found = model.denoise(layout.pack(h), model.positions(layout), t, layout)
    torch.testing.assert_close(found, plain_f(model, h, lengths, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scales", SCALES)
def test_every_scale_is_learned(scales):
    model, batch, _ = tiny(**scales)
    loss_with_seed(model, batch).backward()
    names = {"step_projection": "step_embedding.", "step_scale": "step_scale", "embedding_norm": "norm."}
    for key in scales:
        learned = [p for name, p in model.named_parameters() if name.startswith(names[key])]
        assert learned and all((p.grad != 0).any() for p in learned)


def test_the_target_has_the_same_position_whatever_the_length_of_the_history():
    for start in (False, True):
        model, _, _ = tiny(positions_from="start" if start else "target")
        layout = model.layout(torch.tensor([2, 5, 3, 6]), 6)
        y = model.positions(layout)[layout.last]
        assert len(y.unique(dim=0)) == (4 if start else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_eq_18(reduction, tied):
    model, batch, _ = tiny(mse_reduction=reduction, tie_weights=tied, ragged=False)
    model.step_sampler.history.copy_(torch.rand(T, 10) + torch.arange(T)[:, None])
    model.step_sampler.counts.fill_(10)
    before = model.step_sampler.history.clone()
    probability = model.step_sampler.probabilities
    loss = loss_with_seed(model, batch)

    torch.manual_seed(0)
    t = torch.multinomial(probability, 60, replacement=True)
    item_seq, lengths = extended(batch, batch[model.ITEM_ID])
    h = model.item_embedding(item_seq)
    noise = torch.randn(h.shape)
    f = plain_f(model, eq7(model, h, lengths, t, noise, 1), lengths, t)
    target = batch[model.ITEM_ID]
    mse = (model.item_embedding(target) - f).square().sum(1) / (32 if reduction == "mean" else 1)
    weight = model.item_embedding.weight if tied else model.output.weight
    rec = -(f @ weight[1:].T + model.output.bias[1:]).log_softmax(1)[torch.arange(60), target - 1]
    expected = (mse / (T * probability[t])).mean() + rec.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    # The target's embedding learns as what is read and as what is to be restored.
    gradients = [torch.autograd.grad(each, model.item_embedding.weight)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert tied == (model.output.weight is model.item_embedding.weight)

    # The history takes L_n itself, without its weight.
    assert len(t.unique()) > 2
    for step in range(T):
        drawn = mse[t == step][-10:].detach()
        newest = torch.cat([before[step], drawn])[-10:]
        torch.testing.assert_close(model.step_sampler.history[step], newest, rtol=1e-4, atol=1e-4)


def test_padding_is_no_class_of_the_loss():
    model, batch, _ = tiny()
    loss = loss_with_seed(model, batch)
    with torch.no_grad():
        model.output.weight[0], model.output.bias[0] = 100.0, 100.0
    assert loss_with_seed(model, batch) == loss


def test_a_uniform_step_sampler_weighs_every_step_alike_and_keeps_no_history():
    model, batch, _ = tiny(step_sampler="uniform")
    assert not [key for key in model.state_dict() if "step_sampler" in key]
    _, weight = model.step_sampler.sample(100)
    assert (weight == 1).all() and loss_with_seed(model, batch).isfinite()


def test_the_loss_history_is_saved_and_restored_with_the_checkpoint():
    it = toy("SeqDiffRec", num_steps=T, **PRINTED)
    trainer = DiffusionTrainer(it.config, it.model)
    for seed in range(4):
        loss_with_seed(it.model, batch_of(it.train), seed)
    probability = it.model.step_sampler.probabilities
    assert probability.std() > 1e-3
    trainer._save_checkpoint(0, verbose=False)
    fresh = toy("SeqDiffRec", num_steps=T, **PRINTED)
    assert fresh.model.step_sampler.probabilities.std() == 0
    DiffusionTrainer(fresh.config, fresh.model).resume_checkpoint(trainer.saved_model_file)
    assert torch.equal(fresh.model.step_sampler.probabilities, probability)


# ---------------------------------------------------------------------- inference


def plain_inference(model, interaction, seed, k, reverse):
    """Algorithm 3, or Algorithm 2 with the posterior of Eq. 3, for one seed: probabilities [B, n_items - 1]."""
    item_seq, lengths = extended(interaction, torch.zeros_like(interaction["item_length"]))
    h0, rows = model.item_embedding(item_seq), torch.arange(len(item_seq))
    betas = model.diffusion.betas.double()
    abar = torch.cumprod(1 - betas, 0)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, generator=generator).expand(len(h0), -1)
    for n in range(T - 1, -1, -1):
        h = h0
        t = torch.full((len(h0),), n)
        if k > 1:
            noise = torch.randn(6, 32, generator=generator)[: h0.shape[1]].expand_as(h0)
            h = eq7(model, h0, lengths, t, noise, k)
        h = h.clone()
        h[rows, lengths - 1] = x
        f = plain_f(model, h, lengths, t)
        if not reverse or n == 0:
            break
        start = (abar[n - 1].sqrt() * betas[n] / (1 - abar[n])).float()
        keep = ((1 - betas[n]).sqrt() * (1 - abar[n - 1]) / (1 - abar[n])).float()
        sigma = ((1 - abar[n - 1]) / (1 - abar[n]) * betas[n]).sqrt().float()
        x = start * f + keep * x + sigma * torch.randn(32, generator=generator)
    return (f @ model.output.weight[1:].T + model.output.bias[1:]).softmax(1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("inference", ["one_step", "reverse"])
def test_inference_is_the_algorithm_averaged_over_seeds(inference, k):
    model, _, batch = tiny(inference=inference, noised_items=k)
    model.eval()
    with torch.no_grad():
        found = model.full_sort_predict(batch)[:, 1:]
        each = [plain_inference(model, batch, seed, k, inference == "reverse") for seed in (3, 4)]
    assert (each[0] - each[1]).abs().max() > 1e-4
    torch.testing.assert_close(found.exp(), (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-6)


def test_the_papers_inference_is_one_step_of_ten_seeds():
    config = toy_config("SeqDiffRec")
    assert (config["inference"], config["inference_seeds"], config["num_steps"]) == ("one_step", 10, 1000)
    model = toy("SeqDiffRec").model
    assert model.inference_seeds == list(range(10)) and model.diffusion.num_steps == 1000


# ---------------------------------------------------------------------- what the target and each switch do


def test_the_noised_target_enters_the_network_and_receives_gradient():
    model, batch, _ = tiny()
    item_seq, lengths = extended(batch, batch[model.ITEM_ID])
    layout = model.layout(lengths, item_seq.shape[1])
    h = model.item_embedding(layout.pack(item_seq))
    t = torch.full((60,), 3)
    first, second = (
        model.denoise(model.diffuse(h, t, noise, layout), model.positions(layout), t, layout)
        for noise in (torch.zeros_like(h), torch.ones_like(h))
    )
    assert ((first - second).abs().amax(dim=1) > 1e-4).all()
    [grad] = torch.autograd.grad(first[:, 0].sum(), h)
    assert (grad[layout.last].abs().sum(dim=1) > 0).all()


def output(model, item_seq, t=2):
    """f for sequences [B, L] without padding whose last item is noised by zeros."""
    layout = model.layout(torch.full((len(item_seq),), item_seq.shape[1]), item_seq.shape[1])
    h, t = model.item_embedding(layout.pack(item_seq)), torch.full((len(item_seq),), t)
    return model.denoise(model.diffuse(h, t, torch.zeros_like(h), layout), model.positions(layout), t, layout)


@pytest.mark.parametrize("on", [True, False])
def test_without_the_position_embedding_the_order_of_the_history_is_lost(on):
    model, _, _ = tiny(position_embedding=on)
    item_seq = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    same = torch.allclose(output(model, item_seq), output(model, item_seq[:, [2, 0, 1, 3]]), atol=1e-5)
    assert same != on and any("position" in key for key, _ in model.named_parameters()) == on


@pytest.mark.parametrize("on", [True, False])
def test_without_the_step_embedding_the_step_shows_in_the_noise_alone(on):
    model, _, _ = tiny(step_embedding=on)
    item_seq = torch.tensor([[5, 6, 7, 8]])
    layout = model.layout(torch.tensor([4]), 4)
    h = model.item_embedding(item_seq[0])
    first, second = (model.denoise(h, model.positions(layout), torch.tensor([step]), layout) for step in (0, 5))
    assert torch.allclose(first, second, atol=1e-5) != on


def test_noising_all_items_hides_the_history_from_one_step():
    """At step N hardly anything is left of a noised item: users whose sequences are as long get the same scores."""
    spread = {}
    for k in (1, "all"):
        model, _, batch = tiny(noised_items=k)
        batch = batch[batch["item_length"] == batch["item_length"].max()]
        model.eval()
        with torch.no_grad():
            spread[k] = model.full_sort_predict(batch)[:, 1:].std(dim=0).mean()
    assert len(batch) > 5 and spread["all"] < 0.05 * spread[1]


@pytest.mark.parametrize(
    "name, abar",
    [
        ("sqrt", lambda u: 1 - math.sqrt(u + 1e-4)),
        ("cosine", lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2),
    ],
)
def test_the_schedule_and_the_number_of_steps_reach_the_forward_process(name, abar):
    model, _, _ = tiny(noise_schedule=name, num_steps=20)
    found = model.diffusion.alphas_cumprod[:19].tolist()
    assert found == pytest.approx([abar(n / 20) / abar(0) for n in range(1, 20)], rel=1e-4)
    assert len(model.step_sampler.probabilities) == 20


@pytest.mark.parametrize(
    "key, value",
    [
        ("MAX_ITEM_LIST_LENGTH", 1),
        ("noised_items", 0),
        ("noised_items", "last"),
        ("noised_items", True),
        ("mse_reduction", "none"),
        ("position_embedding", 1),
        ("positions_from", "end"),
        ("step_projection", 2),
        ("step_scale", -1),
        ("step_scale", "small"),
        ("embedding_norm", "layer"),
        ("step_embedding", "no"),
        ("tie_weights", None),
        ("step_sampler", "importance"),
        ("inference", "two_step"),
        ("inference_seeds", 0),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(key, value):
    with pytest.raises(ValueError, match=f"{key}.*{value}"):
        toy_config("SeqDiffRec", **{key: value})


def test_a_network_behind_the_step_embedding_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"step_embedding \[False\] must be True"):
        toy_config("SeqDiffRec", step_embedding=False, step_projection=True)
