"""PreferDiff's loss against its formula, sample by sample; few steps at large widths; the split over users."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recbole_diffusion.model.preferdiff import DISTANCES
from recbole_diffusion.modules import recommender
from recbole_diffusion.quick_start import build_config, prepare_data, train_and_test
from recbole_diffusion.recommend import Recommender
from recbole_diffusion.recommend.users import known_users

from ..conftest import ROOT, TINY, batch_of, loss_with_seed, toy

NO_DROPOUT = {"emb_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


def preferdiff(**overrides):
    return toy("PreferDiff", **{"num_steps": 30, "sampling_steps": 5, "n_layers": 1, **NO_DROPOUT, **overrides})


def plain_distance(name, a, b):
    if name.startswith("cosine"):
        cosine = a @ b / (a.norm() * b.norm())
        return (1 - cosine) ** (2 if name.endswith("squared") else 1)
    difference = (a - b).abs()
    if name == "l2":
        return (difference**2).mean()
    if name == "l1":
        return difference.mean()
    return torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()


def plain_loss(model, batch, distance, ranking, lam, gamma, ce):
    """The loss with its draws in the order of the model's: dropped conditions, negatives, steps, noise."""
    target, b = batch[model.ITEM_ID], len(batch)
    c = model.encode(batch)
    dropped = torch.rand(b) < model.condition_dropout_prob
    c = torch.stack([model.null if drop else row for drop, row in zip(dropped, c, strict=True)])
    e = model.item_embedding.weight
    if model.negatives == "centroid":
        others = [[int(item) for item in target if item != own] for own in target]
        negative = [sum(e[item] for item in items) / len(items) for items in others]
    else:
        draws = [1 + int(u * (model.n_items - 2)) for u in torch.rand(b)]
        negative = [e[r + (r >= own)] for r, own in zip(draws, target.tolist(), strict=True)]
        assert all(0 < r + (r >= own) < model.n_items for r, own in zip(draws, target.tolist(), strict=True))
    t, noise = torch.randint(30, (b,)), torch.randn(2 * b, 32)
    abar = (1 - model.diffusion.betas).cumprod(0)[t]
    errors, entropies = [], []
    for i in range(b):
        pair = []
        for x, eps in ((e[target[i]], noise[i]), (negative[i], noise[b + i])):
            x_t = abar[i].sqrt() * x + (1 - abar[i]).sqrt() * eps
            x_hat = model.f(x_t[None], c[i][None], t[i][None])[0]
            pair.append(plain_distance(distance, x_hat, x))
            if len(pair) == 1:
                entropies.append(F.cross_entropy((e[1:] @ x_hat)[None], target[i][None] - 1))
        errors.append(torch.stack(pair))
    positive, negative = torch.stack(errors).unbind(1)
    if ranking == "batch":
        rank = -torch.log(torch.sigmoid(-gamma * (positive.mean() - negative.mean())))
    else:
        rank = -torch.log(torch.sigmoid(-gamma * (positive - negative))).mean()
    return lam * positive.mean() + (1 - lam) * rank + ce * torch.stack(entropies).mean()


def test_weights_start_as_in_the_public_code():
    model = toy("PreferDiff", hidden_size=64).model
    for weight, std in ((model.item_embedding.weight[1:], 1.0), (model.f.dense_1.weight, (3 * 3 * 64) ** -0.5)):
        assert abs(weight.std() / std - 1) < 0.05
    assert model.f.dense_1.weight.abs().max() <= (3 * 64) ** -0.5


@pytest.mark.parametrize(
    "distance, negatives, ranking, lam, ce",
    [
        ("cosine_squared", "centroid", "sample", 0.4, 0.0),
        ("cosine", "centroid", "batch", 0.7, 0.5),
        ("l2", "sampled", "sample", 0.4, 1.0),
        ("l1", "sampled", "batch", 0.0, 0.0),
        ("huber", "centroid", "sample", 1.0, 0.0),
    ],
)
def test_loss_and_gradient_are_the_formula(distance, negatives, ranking, lam, ce):
    keys = {"distance": distance, "negatives": negatives, "ranking": ranking, "generation_weight": lam}
    it = preferdiff(**keys, cross_entropy_weight=ce, condition_dropout_prob=0.3, ranking_scale=3.0, embedding_std=0.7)
    batch = batch_of(it.train, 60)
    assert len(batch[it.model.ITEM_ID].unique()) < 60  # some rows share a target
    found = loss_with_seed(it.model, batch, 5)
    torch.manual_seed(5)
    expected = plain_loss(it.model, batch, distance, ranking, lam, 3.0, ce)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    leaves = list(it.model.parameters())
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("ranking", ["sample", "batch"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_batch_without_another_target_is_not_ranked(ranking, distance):
    it = preferdiff(ranking=ranking, distance=distance, condition_dropout_prob=0.0, guidance_scale=0.0)
    batch = batch_of(it.train, 1)
    loss = loss_with_seed(it.model, batch)
    alone = preferdiff(distance=distance, condition_dropout_prob=0.0, guidance_scale=0.0, generation_weight=1.0)
    torch.testing.assert_close(loss, 0.4 * loss_with_seed(alone.model, batch))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in it.model.parameters())


def test_learned_seen_items_take_the_sampled_softmax_where_it_is_asked_for(monkeypatch):
    """The catalogue may be too large to score, also where the softmax serves the values of seen items alone."""
    gradients = {}
    for item_loss in ("full", "sampled"):
        it = preferdiff(seen_items="learned", item_loss=item_loss, n_sampled_items=20_000)
        if item_loss == "sampled":
            monkeypatch.setattr(recommender, "full_cross_entropy", None)
        loss_with_seed(it.model, batch_of(it.train, 40), 3).backward()
        gradients[item_loss] = torch.cat([p.grad.flatten() for p in it.model.seen_items.parameters()])
    assert gradients["full"].abs().max() > 1e-3
    torch.testing.assert_close(gradients["sampled"], gradients["full"], atol=3e-3, rtol=0.1)


def test_the_target_may_be_mere_data():
    moved = {}
    for switch in (True, False):
        it = preferdiff(target_gradient=switch, negatives="sampled", condition_dropout_prob=0.0, guidance_scale=0.0)
        batch = batch_of(it.train, 5)
        it.model.calculate_loss(batch).backward()
        moved[switch] = set(it.model.item_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert moved[False] == set(batch[it.model.ITEM_SEQ].unique().tolist()) - {0} < moved[True]


@pytest.mark.parametrize("denoiser", ["mlp1", "mlp2"])
def test_few_steps_are_embedded_when_they_come_and_give_the_same(denoiser):
    """At large widths the embeddings of all 2000 steps would cost more than the 21 that are visited."""
    it = preferdiff(denoiser=denoiser)
    model, batch = it.model.eval(), batch_of(it.test, 20)
    embedded, embed = [], model.f.step_embedding.forward
    model.f.step_embedding.forward = lambda t: embedded.append(len(t)) or embed(t)
    with torch.no_grad():
        fast = model.sample_start(batch, [1, 2])
        assert embedded == [1] * 5
        model.fused_denoiser = False
        torch.testing.assert_close(model.sample_start(batch, [1, 2]), fast, rtol=1e-4, atol=1e-4)
        model.fused_denoiser, model.sampling_steps = True, None
        embedded.clear()
        model.sample_start(batch, [1])
        assert embedded == [30]


# ---------------------------------------------------------------------- the split over users


@pytest.fixture
def users_split(tmp_path):
    """The lines of the documentation, on markov-toy: the folder that they write to."""
    page = (ROOT / "docs" / "models" / "preferdiff.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    (tmp_path / "markov-toy").symlink_to(ROOT / "dataset" / "markov-toy")
    names = f'source, name, folder = "markov-toy", "toy-users", Path({str(tmp_path)!r})'
    lines, n = re.subn(r"source, name, folder = .*", names, lines)
    assert n == 1
    exec(compile(lines, "preferdiff.md", "exec"), {})
    return tmp_path


def test_users_are_split_as_the_documentation_says(users_split):
    keys = build_config("PreferDiff", "amazon-beauty-users", None, {"state": "ERROR"}).final_config_dict
    split = {key: keys[key] for key in ("benchmark_filename", "load_col", "alias_of_item_id")}
    assert split["load_col"] == {"inter": ["user_id", "item_id_list", "item_id"]}
    common = {**TINY, **split, "data_path": str(users_split), "state": "ERROR", "show_progress": False}
    common["checkpoint_dir"] = str(users_split / "saved")
    config = build_config("PreferDiff", "toy-users", None, {**common, "num_steps": 8, "sampling_steps": 4, "epochs": 1})
    _, *loaders = prepare_data(config)
    users = [set(loader._dataset.inter_feat["user_id"].tolist()) for loader in loaders]
    rows = [len(loader._dataset.inter_feat) for loader in loaders]
    assert [len(part) for part in users] == rows and not (users[0] & users[1] | users[0] & users[2])
    assert abs(rows[0] / sum(rows) - 0.8) < 0.01 and abs(rows[1] / sum(rows) - 0.1) < 0.01
    file = Path(users_split) / "toy-users" / "toy-users.test.inter"
    _, history, target = file.read_text().splitlines()[1].split("\t")
    field = loaders[2]._dataset
    row = field.inter_feat[0]
    assert field.id2token("item_id", row["item_id"].item()) == target
    items = field.id2token("item_id", row["item_id_list"][row["item_id_list"] > 0].numpy())
    assert items.tolist() == history.split()
    result = train_and_test(config)
    assert 0 < result["test_result"]["hit@20"] <= 1
    known = known_users(Recommender(result["model_file"], None, {"data_path": str(users_split)}))
    user, *_ = file.read_text().splitlines()[1].split("\t")
    assert [str(item) for item in known.history(user)] == [*history.split(), target]
