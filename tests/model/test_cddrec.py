"""CDDRec against its equations written out, position by position, and its switches on the computation itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from recbole_diffusion.model.cddrec import StepQueryAttention
from recbole_diffusion.modules import losses as fast
from recbole_diffusion.modules.augmentations import AUGMENTATIONS, crop, mask, reorder
from recbole_diffusion.modules.ragged import TokenLayout

from ..conftest import batch_of, loss_with_seed, toy, toy_config

T = 4
PLAIN = {
    # What is printed, where the defaults are the public code's or were chosen on validation.
    "decoder_residual": False,
    "similarity": "dot",
    "temperature": 0.5,
    "num_steps": T,
    "beta_start": 0.05,
    "beta_end": 0.3,
    "emb_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
}
STILL = {**PLAIN, "sample_target": False, "sample_preference": False, "reorder_ratio": 0.0}


def make(scale=5, **overrides):
    """A model with weights large enough that every part of it shows in the result."""
    it = toy("CDDRec", **{**PLAIN, **overrides})
    with torch.no_grad():
        for parameter in it.model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1)
    it.model.train()
    return it


def alpha_bar(model, t: int) -> float:
    """The paper's abar_t: the product of the first t of 1 - beta, in float64."""
    return math.prod(1 - beta for beta in model.diffusion.betas.double().tolist()[:t])


def posterior_variance(model, t: int) -> float:
    """The paper's beta-hat_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t, t from 1."""
    beta = model.diffusion.betas[t - 1].double().item()
    return (1 - alpha_bar(model, t - 1)) / (1 - alpha_bar(model, t)) * beta


# ---------------------------------------------------------------------- Eq. 3


def quadratic_attention(module: StepQueryAttention, e_s, t: int):
    """Eq. 3 of one history e_s [n, D], position by position."""
    query = module.step_embedding.weight[t] @ module.query.weight.T
    out = []
    for n in range(1, len(e_s) + 1):
        key, value = e_s[:n] @ module.key.weight.T, e_s[:n] @ module.value.weight.T
        out.append((query @ key.T / math.sqrt(e_s.shape[1])).softmax(-1) @ value)
    return torch.stack(out)


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_attention_is_the_quadratic_one_also_where_exp_alone_would_overflow(ragged, scale):
    torch.manual_seed(0)
    module = StepQueryAttention(16, T, dropout=0.0)
    torch.nn.init.normal_(module.step_embedding.weight, std=scale)
    n = torch.tensor([3, 9, 1, 9, 6])
    e_s = torch.randn(5, 9, 16, requires_grad=True)
    scores = module.query(module.step_embedding.weight) @ module.key(e_s.flatten(0, 1)).T / 4
    assert scale == 1.0 or scores.max() - scores.min() > 90  # exp of the difference is 0 in float32
    layout = TokenLayout(n, 9, ragged)
    found = module(layout.pack(e_s), layout, torch.arange(T))
    probe, total, plain = torch.randn(T, 5, 9, 16), 0, 0
    for row, length in enumerate(n.tolist()):
        first = layout.last[row] - length + 1
        for t in range(T):
            expected = quadratic_attention(module, e_s[row, :length], t)
            torch.testing.assert_close(found[t, first : first + length], expected, atol=1e-5, rtol=1e-5)
            total = total + (found[t, first : first + length] * probe[t, row, :length]).sum()
            plain = plain + (expected * probe[t, row, :length]).sum()
    parameters = [e_s, *module.parameters()]
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * scale, rtol=1e-4)


def test_dropout_hides_a_key_from_every_position_at_once():
    module, scores, value = StepQueryAttention(8, T, dropout=0.5), torch.randn(T, 2, 6), torch.randn(2, 6, 8)
    torch.manual_seed(2)
    found = module.running_mean(scores, value)
    torch.manual_seed(2)
    kept = torch.nn.functional.dropout(torch.ones(T, 2, 6), 0.5)
    for n in range(6):
        weight = scores[..., : n + 1].softmax(-1) * kept[..., : n + 1]
        expected = (weight.unsqueeze(-1) * value[:, : n + 1]).sum(-2)
        torch.testing.assert_close(found[:, :, n], expected, atol=1e-5, rtol=1e-5)
    assert 0 < (kept == 0).sum() < kept.numel()


# ---------------------------------------------------------------------- Eq. 2 and 4


def test_targets_are_corrupted_by_t_betas_and_the_first_is_the_embedding_itself():
    model = make().model
    x_0 = torch.randn(6, model.hidden_size)
    torch.manual_seed(3)
    x = model.corrupt(x_0)
    torch.manual_seed(3)
    eps = torch.randn(T, 6, model.hidden_size)
    assert torch.equal(x[0], x_0) and len(x) == T + 1
    for t in range(1, T + 1):
        a = alpha_bar(model, t)
        torch.testing.assert_close(x[t], math.sqrt(a) * x_0 + math.sqrt(1 - a) * eps[t - 1])


def test_preferences_are_drawn_with_the_posterior_variance_of_the_next_step():
    model = make().model
    mu, eps = torch.randn(T, 6, 8), torch.randn(T, 6, 8)
    x_hat = model.preference(mu, eps)
    assert torch.equal(x_hat[0], mu[0])
    for t in range(1, T):
        torch.testing.assert_close(x_hat[t], mu[t] + math.sqrt(posterior_variance(model, t + 1)) * eps[t])
    torch.manual_seed(1)
    drawn = model.preference(torch.zeros(T, 4000, 8))
    for t in range(T):
        assert drawn[t].std().item() == pytest.approx(math.sqrt(posterior_variance(model, t + 1)), rel=0.03)


@pytest.mark.parametrize("switch", ["sample_target", "sample_preference"])
def test_each_ablation_takes_its_noise_away_and_leaves_the_other(switch):
    model = make(**{switch: False}).model
    x_0 = torch.randn(5, model.hidden_size)
    mu = torch.randn(T, 5, model.hidden_size)
    assert torch.equal(model.corrupt(x_0), x_0.expand(T + 1, -1, -1)) == (switch == "sample_target")
    assert torch.equal(model.preference(mu), mu) == (switch == "sample_preference")


@pytest.mark.parametrize("divergence", ["dot", "kl"])
def test_each_ablation_changes_the_loss(divergence):
    losses = {}
    for switches in ((True, True), (True, False), (False, True), (False, False)):
        it = make(divergence=divergence, sample_target=switches[0], sample_preference=switches[1])
        losses[switches] = loss_with_seed(it.model, batch_of(it.train, 8)).item()
    assert len({round(loss, 4) for loss in losses.values()}) == 4


# ---------------------------------------------------------------------- Eq. 5


def plain_posterior(model, x_0, x_next, t: int):
    """q(x_t | x_{t+1}, x_0) by Bayes' rule: the product of q(x_t | x_0) and of the likelihood of x_{t+1}."""
    beta, a = model.diffusion.betas[t].double().item(), alpha_bar(model, t)
    precision = (1 - beta) / beta + 1 / (1 - a)
    mean = (math.sqrt(1 - beta) / beta * x_next + math.sqrt(a) / (1 - a) * x_0) / precision
    return mean, 1 / precision


def test_kl_is_that_of_the_two_normal_distributions():
    model = make(divergence="kl").model
    x_0, x_next, mu = torch.randn(6, 32), torch.randn(T, 6, 32), torch.randn(T, 6, 32)
    found = model.kl(x_0, x_next, mu)
    for t in range(1, T):
        mean, variance = plain_posterior(model, x_0, x_next[t], t)
        expected = kl_divergence(Normal(mean, math.sqrt(variance)), Normal(mu[t], math.sqrt(variance))).sum(-1)
        torch.testing.assert_close(found[t], expected, rtol=1e-4, atol=1e-4)
    # At t = 0 the mean is x_0, and the variance, which is zero, is taken from the next step.
    expected = (x_0 - mu[0]).square().sum(-1) / (2 * posterior_variance(model, 2))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


def test_parts_of_a_batch_weigh_by_their_positions():
    """As several processes hold them; what is drawn is turned off."""
    keys = {"sample_target": False, "sample_preference": False, "lambda_contrastive": 0.0}
    it = make(**keys)
    model, batch = it.model, batch_of(it.train, 10)
    negative = torch.full((int(model.history(batch)[1].sum()),), 3), None
    model.unseen_items.sample = lambda users: (negative[0][: len(users)], torch.ones(len(users), dtype=torch.bool))
    parts = [batch[:2], batch[2:]]
    terms = torch.tensor([float(model.loss_terms(part)) for part in parts])
    assert terms.sum() == model.loss_terms(batch) and terms[0] / terms.sum() != 0.2
    whole, losses = model.calculate_loss(batch), torch.stack([model.calculate_loss(part) for part in parts])
    torch.testing.assert_close((terms * losses).sum() / terms.sum(), whole)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt", "trunc_linear", "trunc_cosine", "exponential"])
def test_every_schedule_that_is_offered_can_be_taken(schedule):
    assert len(toy("CDDRec", noise_schedule=schedule).model.diffusion.betas) == toy_config("CDDRec")["num_steps"]


def unit(x):
    """x at length 1."""
    return x / x.square().sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("similarity", ["dot", "cosine", "mixed"])
@pytest.mark.parametrize("divergence", ["dot", "kl"])
def test_cross_divergence_is_eq_5(divergence, similarity):
    model = make(divergence=divergence, similarity=similarity).model
    mu, x_hat, x, x_negative = (torch.randn(*shape, 32) / 8 for shape in ((T, 6), (T, 6), (T + 1, 6), (6,)))
    unseen = torch.tensor([True] * 5 + [False])
    found = model.cross_divergence(mu, x_hat, x, x_negative, unseen)
    for t in range(T):
        total = 0.0
        for n in range(6):
            if divergence == "dot":
                measure = unit if similarity == "cosine" else lambda x: x
                near, far = (-(measure(x_hat[t, n]) @ measure(y)) for y in (x[t, n], x_negative[n]))
            else:
                near = model.kl(x[0], x[1:], mu)[t, n]
                far = model.kl(x_negative, x[1:], mu)[t, n]
            total -= torch.log(torch.sigmoid(-near))
            total -= torch.log(1 - torch.sigmoid(-far)) if unseen[n] else 0
        torch.testing.assert_close(found[t], total / 6, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- Eq. 6 and 7


def plain_info_nce(x_hat, key, origin, tau):
    """Eq. 6 (origin: every position itself) and Eq. 7 of one step, in float64: x_hat [P, D], key [V, D]."""
    x_hat, key, total = x_hat.double(), key.double(), 0
    for v, i in enumerate(origin.tolist()):
        others = torch.cat([x_hat[:i], x_hat[i + 1 :]])
        logits = torch.cat([key @ x_hat[i], others @ x_hat[i]]) / tau
        total = total - (key[v] @ x_hat[i] / tau - logits.logsumexp(0))
    return total / len(key)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "mixed"])
@pytest.mark.parametrize("block", [2**19, 100, 7, 1])  # all steps at once, one by one, in parts, row by row
def test_contrast_is_eq_6_and_eq_7_with_its_gradient(monkeypatch, block, similarity):
    monkeypatch.setitem(fast.BLOCK, "cpu", block)
    model, measure = make(temperature=0.3, similarity=similarity).model, unit if similarity != "dot" else torch.clone
    x_hat, x, view = (torch.randn(T, size, 8, requires_grad=True) for size in (9, 9, 6))
    origin = torch.tensor([0, 1, 4, 5, 6, 8])
    found = model.contrast(x_hat, x, view, origin)
    expected = torch.stack(
        [
            plain_info_nce(measure(x_hat[t]), measure(x[t]), torch.arange(9), 0.3)
            + plain_info_nce(measure(x_hat[t]), measure(view[t]), origin, 0.3)
            for t in range(T)
        ]
    )
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    weight = torch.rand(T)
    inputs = [x_hat, x, view]
    plain = torch.autograd.grad((weight * expected).sum(), inputs)
    for a, b in zip(torch.autograd.grad((weight * found).sum(), inputs), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_contrast_neither_overflows_nor_needs_a_second_position():
    model = make().model
    large = torch.randn(T, 5, 8, requires_grad=True)
    loss = model.contrast(large * 300, large * 300, large * 300, torch.arange(5)).sum()
    assert loss.isfinite() and torch.autograd.grad(loss, large)[0].isfinite().all()
    one = torch.randn(T, 1, 8, requires_grad=True)
    loss = model.contrast(one, one, one, torch.zeros(1, dtype=torch.long)).sum()
    torch.testing.assert_close(loss, torch.zeros(()))
    assert torch.autograd.grad(loss, one)[0].isfinite().all()


# ---------------------------------------------------------------------- Eq. 8


def next_items(interaction, row: int) -> list[int]:
    """The item after each position of one history, the row's target last."""
    n = int(interaction["item_length"][row])
    return [*interaction["item_id_list"][row, 1:n].tolist(), int(interaction["item_id"][row])]


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("divergence, residual", [("dot", False), ("dot", True), ("kl", False)])
def test_loss_is_eq_8_over_every_step_and_position(monkeypatch, divergence, residual, ragged):
    scale = {"dot": 5, "kl": 2}[divergence]  # the sigmoid of a large divergence is 0
    settings = {"divergence": divergence, "decoder_residual": residual, "ragged": ragged}
    it = make(scale, **{**STILL, **settings, "lambda_contrastive": 0.7, "temperature": 0.9})
    model, interaction = it.model, batch_of(it.train, 5)
    monkeypatch.setattr(model.unseen_items, "sample", lambda users: (users % 7 + 1, torch.ones_like(users).bool()))
    x_hat, x_0, x_negative = [], [], []
    for row in range(5):
        n = interaction["item_length"][row : row + 1]
        one = TokenLayout(n, int(n), ragged=False)
        items = model.item_embedding(interaction["item_id_list"][row, : int(n)])
        e_s = model.encoder(items, one)
        mu = torch.stack([quadratic_attention(model.decoder, e_s, t) for t in range(T)])
        x_hat.append(mu + e_s if residual else mu)
        x_0.append(model.item_embedding(torch.tensor(next_items(interaction, row))))
        x_negative.append(model.item_embedding((interaction["user_id"][row] % 7 + 1).repeat(int(n))))
    x_hat, x_0, x_negative = torch.cat(x_hat, 1), torch.cat(x_0), torch.cat(x_negative)
    every, expected = torch.arange(len(x_0)), 0
    for t in range(T):
        if divergence == "dot":
            near, far = -(x_hat[t] * x_0).sum(1), -(x_hat[t] * x_negative).sum(1)
        else:
            near, far = (model.kl(start, x_0.expand(T, -1, -1), x_hat)[t] for start in (x_0, x_negative))
        l_cd = -(torch.sigmoid(-near).log() + (1 - torch.sigmoid(-far)).log()).mean()
        l_in, l_cross = (plain_info_nce(x_hat[t], key, every, 0.9) for key in (x_0, x_hat[t]))
        expected = expected + (l_cd + 0.7 * (l_in + l_cross)) / (t + 1)
    torch.testing.assert_close(model.calculate_loss(interaction).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_view_position_is_compared_with_the_position_that_it_shows(monkeypatch, augmentation, ragged):
    """With the item's embedding in place of the decoder's mean, each pair of the cross-view loss can be read off."""
    it = make(**STILL | {f"{augmentation}_ratio": 0.5}, augmentation=augmentation, ragged=ragged)
    model, interaction, seen = it.model, batch_of(it.train, 12), {}

    def decode(item_seq, layout, steps):
        return model.item_embedding(layout.pack(item_seq)).expand(len(steps), -1, -1)

    def contrast(x_hat, x, x_view, origin):
        seen.update(x_hat=x_hat, x=x, x_view=x_view, origin=origin)
        return x_hat.sum((1, 2))

    monkeypatch.setattr(model, "decode", decode)
    monkeypatch.setattr(model, "contrast", contrast)
    model.calculate_loss(interaction)
    rows = [interaction["item_id_list"][row, :n] for row, n in enumerate(interaction["item_length"].tolist())]
    targets = [item for row in range(12) for item in next_items(interaction, row)]
    assert torch.equal(seen["x_hat"][0], model.item_embedding(torch.cat(rows)))
    assert torch.equal(seen["x"][0], model.item_embedding(torch.tensor(targets)))
    shown = seen["x_hat"][0][seen["origin"]]
    same = (shown == seen["x_view"][0]).all(1)
    if augmentation == "crop":
        assert len(shown) == sum(max(1, len(row) // 2) for row in rows) and same.all()
    else:
        assert torch.equal(seen["origin"], torch.arange(len(targets)))
        masked = (seen["x_view"][0] == 0).all(1)
        assert 0 < (~same).sum() and (augmentation == "reorder" or torch.equal(masked, ~same))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("divergence", ["dot", "kl"])
def test_the_augmented_view_has_a_divergence_of_its_own(monkeypatch, divergence, augmentation):
    """Each position of the view against the target, negative and noise of the position that it stands for."""
    settings = {"augmentation": augmentation, "divergence": divergence, f"{augmentation}_ratio": 0.5}
    it = make(**settings, lambda_augmented=0.7)
    model, interaction, calls, seen = it.model, batch_of(it.train, 9), [], {}
    cross_divergence, contrast = model.cross_divergence, model.contrast

    def keep(*inputs):
        calls.append((inputs, cross_divergence(*inputs)))
        return calls[-1][1]

    def keep_contrast(x_hat, x, x_view, origin):
        seen.update(x_view=x_view, origin=origin, value=contrast(x_hat, x, x_view, origin))
        return seen["value"]

    monkeypatch.setattr(model, "cross_divergence", keep)
    monkeypatch.setattr(model, "contrast", keep_contrast)
    loss = model.calculate_loss(interaction)
    ((_, _, x, x_negative, unseen), own), ((_, view, *of_view), other) = calls
    origin = seen["origin"]
    assert torch.equal(view, seen["x_view"]) and len(origin) == view.shape[1]
    for found, expected in zip(of_view, (x[:, origin], x_negative[origin], unseen[origin]), strict=True):
        assert torch.equal(found, expected)
    expected = ((own + 0.3 * seen["value"] + 0.7 * other) / (torch.arange(T) + 1)).sum()
    torch.testing.assert_close(loss, expected)
    model.lambda_augmented, calls[:] = 0.0, []
    model.calculate_loss(interaction)
    assert len(calls) == 1


@pytest.mark.parametrize("similarity", ["dot", "cosine", "mixed"])
@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_items_are_ranked_by_the_similarity(similarity, seeds):
    it = make(similarity=similarity, inference_seeds=seeds, temperature=0.4)
    model, interaction = it.model.eval(), batch_of(it.test, 6)
    with torch.no_grad():
        x_start, items = model.sample_start(interaction, seeds)[0], model.item_embedding.weight[1:]
        expected = (x_start @ items.T) if similarity == "dot" else unit(x_start) @ unit(items).T / 0.4
        if len(seeds) > 1:
            expected = expected.log_softmax(1)
        scores = model.full_sort_predict(interaction)
        torch.testing.assert_close(scores[:, 1:], expected, rtol=1e-4, atol=1e-6)
        best, found = model.topk(interaction, 5)
    torch.testing.assert_close(best, scores.gather(1, found))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_seen_values_are_learned_beside_the_scores_that_rank(monkeypatch, similarity):
    it = make(similarity=similarity, seen_items="learned")
    model, interaction, logits = it.model.eval(), batch_of(it.test, 6), []

    def keep(x, weight, *_):
        logits.append(x @ weight.T)
        return x.new_zeros(len(x))

    monkeypatch.setattr(model, "_cross_entropy", keep)
    model.calculate_loss(interaction)
    last = interaction["item_length"].cumsum(0) - 1
    torch.testing.assert_close(logits[0][last, 1:], model.full_sort_predict(interaction)[:, 1:])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_has_a_share_of_its_own(name):
    model = make(augmentation=name, crop_ratio=0.11, mask_ratio=0.22, reorder_ratio=0.33).model
    assert model.augmentation_ratio == {"crop": 0.11, "mask": 0.22, "reorder": 0.33}[name]


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("divergence", ["dot", "kl"])
def test_the_noised_target_moves_the_loss_and_receives_gradient(monkeypatch, divergence, weight):
    it = make(sample_preference=False, reorder_ratio=0.0, divergence=divergence, lambda_contrastive=weight)
    model, interaction, kept = it.model, batch_of(it.train, 6), []
    fixed = torch.ones(100, dtype=torch.long)
    monkeypatch.setattr(model.unseen_items, "sample", lambda users: (fixed[: len(users)], users > 0))
    corrupt = model.corrupt

    def keep(x_0):
        kept.append(corrupt(x_0))
        kept[-1].retain_grad()
        return kept[-1]

    monkeypatch.setattr(model, "corrupt", keep)
    first, second = (loss_with_seed(model, interaction, seed) for seed in (1, 2))
    assert not torch.isclose(first, second)  # no other draw is left
    first.backward()
    reached = set((kept[0].grad.abs().sum((1, 2)) > 0).nonzero().flatten().tolist())
    every = set(range(T + 1))
    if divergence == "dot":
        assert reached == every - {T}
    else:  # q(x_t | x_{t+1}, x_0) reads x_T as well; at t = 0 it is x_0 and nothing else
        assert reached == (every if weight else every - {1})


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("divergence", ["dot", "kl"])
def test_gradient_reaches_every_parameter_under_every_setting(augmentation, divergence):
    it = make(augmentation=augmentation, divergence=divergence)
    it.model.calculate_loss(batch_of(it.train, 32)).backward()
    assert not [key for key, p in it.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_a_batch_of_one_user_with_one_item_has_a_finite_loss():
    it = make()
    interaction = batch_of(it.train, 1)
    interaction.interaction["item_length"] = torch.ones(1, dtype=torch.long)
    loss = it.model.calculate_loss(interaction)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in it.model.parameters() if p.grad is not None)


# ---------------------------------------------------------------------- augmented views


@pytest.fixture
def histories():
    torch.manual_seed(5)
    n = torch.tensor([1, 2, 5, 9, 9] * 40)
    item_seq = (torch.arange(9) + 1).repeat(len(n), 1) * (torch.arange(9) < n[:, None])
    return item_seq, n


def test_crop_keeps_one_piece(histories):
    item_seq, n = histories
    view, view_n, start = crop(item_seq, n, 0.5)
    assert torch.equal(view_n, torch.tensor([1, 1, 2, 4, 4] * 40))
    for row in range(len(n)):
        assert torch.equal(view[row, : view_n[row]], item_seq[row, start[row] : start[row] + view_n[row]])
    assert set((start[3::5]).tolist()) == set(range(6))  # every place, the last included


def test_mask_hides_a_share(histories):
    item_seq, n = histories
    view, view_n, shift = mask(item_seq, n, 0.5)
    hidden = (view == 0) & (item_seq > 0)
    assert torch.equal(hidden.sum(1), n // 2) and torch.equal(view_n, n) and not shift.any()
    assert torch.equal(view.masked_fill(hidden, 0), item_seq.masked_fill(hidden, 0))
    assert hidden[3::5].any(0).all()


def test_reorder_shuffles_one_piece(histories):
    item_seq, n = histories
    view, view_n, shift = reorder(item_seq, n, 0.5)
    assert torch.equal(view.sort(1).values, item_seq.sort(1).values) and torch.equal(view_n, n) and not shift.any()
    for row in range(len(n)):
        moved = (view[row] != item_seq[row]).nonzero().flatten().tolist()
        assert not moved or moved[-1] - moved[0] < n[row] // 2
    moved = (view != item_seq)[3::5]
    assert moved[:, 0].any() and moved[:, 8].any() and len({tuple(v) for v in view[3::5].tolist()}) > 20


@pytest.mark.parametrize("name", ["mask", "reorder"])
def test_a_share_of_nothing_leaves_the_history_as_it_is(histories, name):
    assert torch.equal(AUGMENTATIONS[name](*histories, 0.0)[0], histories[0])


# ---------------------------------------------------------------------- inference and configuration


def test_one_step_is_the_mean_at_step_0_and_the_chain_ends_there_too():
    it = make(inference="one_step")
    model, interaction = it.model.eval(), batch_of(it.test, 6)
    found = model.sample_start(interaction, [1, 2])
    for row, n in enumerate(interaction["item_length"].tolist()):
        one = TokenLayout(torch.tensor([n]), n, ragged=False)
        e_s = model.encoder(model.item_embedding(interaction["item_id_list"][row, :n]), one)
        expected = quadratic_attention(model.decoder, e_s, 0)[-1]
        torch.testing.assert_close(found[:, row], expected.expand(2, -1), atol=1e-5, rtol=1e-5)
    model.inference = "reverse"
    torch.testing.assert_close(model.sample_start(interaction, [1, 2]), found)


def test_the_stages_are_drawn_once_a_seed_for_all_users():
    it = make()
    model, interaction = it.model.eval(), batch_of(it.test, 6)
    mu, stages = model.decode_last(interaction, model.steps), model.stages(interaction, [1, 2])
    noise = stages - mu[:, None]
    assert stages.shape == (T, 2, 6, model.hidden_size) and not noise[0].any()
    torch.testing.assert_close(noise, noise[:, :, :1].expand_as(noise), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(noise[1:, 0], noise[1:, 1])
    torch.testing.assert_close(model.stages(interaction[:2], [2])[:, 0], stages[:, 1, :2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("divergence", "cosine"),
        ("augmentation", "shuffle"),
        ("crop_ratio", 1.0),
        ("mask_ratio", -0.1),
        ("reorder_ratio", "all"),
        ("similarity", "euclid"),
        ("lambda_augmented", -0.5),
        ("lambda_contrastive", -1),
        ("temperature", 0),
        ("temperature", "warm"),
        ("sample_target", 1),
        ("sample_preference", "no"),
        ("inference", "two_steps"),
        ("beta_end", 1.5),
        ("train_neg_sample_args", {"distribution": "uniform"}),
    ],
)
def test_a_bad_value_is_an_error_that_names_it(key, value):
    with pytest.raises(ValueError, match=key) as error:
        toy_config("CDDRec", **{key: value})
    assert str(value) in str(error.value) or "distribution" in str(error.value)
