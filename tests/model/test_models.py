"""What holds for every model: reproducible scores, gradients everywhere, safe checkpoints, a padding item left out."""

from __future__ import annotations

import pytest
import torch

from recbole_diffusion import MODELS
from recbole_diffusion.modules.layers import PositionEmbedding
from recbole_diffusion.trainer import DiffusionTrainer

from ..conftest import batch_of, few_steps, loss_with_seed, toy, toy_config

ALL = sorted(MODELS)


@pytest.fixture(scope="module", params=ALL)
def name(request):
    return request.param


def scores(model, interaction, size=None):
    model.eval()
    size = size or len(interaction)
    with torch.no_grad():
        return torch.cat([model.full_sort_predict(interaction[i : i + size]) for i in range(0, len(interaction), size)])


@pytest.mark.parametrize("inference", ["reverse", "one_step"])
@pytest.mark.parametrize("seeds", [[7], [7, 8, 9]])
def test_scores_are_the_same_for_any_batch_size_twice_and_leave_the_random_state(name, inference, seeds):
    it = toy(name, **few_steps(name, inference=inference, inference_seeds=seeds))
    interaction = batch_of(it.test, 40)
    before = torch.get_rng_state()
    whole = scores(it.model, interaction)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole, scores(it.model, interaction))
    for size in (1, 7):
        torch.testing.assert_close(scores(it.model, interaction, size), whole, rtol=1e-4, atol=1e-5)
    flipped = scores(it.model, interaction[torch.arange(39, -1, -1)])
    torch.testing.assert_close(flipped.flip(0), whole, rtol=1e-4, atol=1e-5)


def test_seeds_in_parts_give_the_same_scores(name):
    it = toy(name, **few_steps(name, inference_seeds=[1, 2, 3]))
    interaction = batch_of(it.test, 5)
    together = scores(it.model, interaction)
    calls, sample_start = [], it.model.sample_start
    it.model.sample_start = lambda batch, seeds: calls.append(seeds) or sample_start(batch, seeds)
    it.model.logits_chunk = 2 * 5 * it.model.n_items
    torch.testing.assert_close(scores(it.model, interaction), together)
    assert calls == ([[1, 2], [3]] if few_steps(name) else [[0]])


def test_scores_do_not_depend_on_the_padding_length(name):
    it = toy(name, **few_steps(name))
    interaction = batch_of(it.test, 30)
    whole = scores(it.model, interaction)
    seq = interaction[it.model.ITEM_SEQ]
    for padded in (seq[:, : int(interaction[it.model.ITEM_SEQ_LEN].max())], torch.nn.functional.pad(seq, (0, 9))):
        interaction.interaction[it.model.ITEM_SEQ] = padded
        torch.testing.assert_close(scores(it.model, interaction), whole, rtol=1e-4, atol=1e-5)


def test_of_a_history_longer_than_the_longest_the_last_items_are_read(name):
    """RecBole's benchmark files may hold such lists; the other rows' scores stay."""
    it = toy(name, **few_steps(name))
    interaction = batch_of(it.test, 12)
    whole, n, seq = scores(it.model, interaction), interaction[it.model.ITEM_SEQ_LEN], interaction[it.model.ITEM_SEQ]
    length = it.model.max_seq_length
    earlier = torch.randint(1, it.model.n_items, (length,))
    long = torch.nn.functional.pad(seq, (0, length))
    for row in (3, 7):  # its items come behind as many others as make it end in all that is read
        own = torch.cat([earlier, seq[row, : n[row]]])
        long[row, : len(own)], n[row] = own, len(own)
    interaction.interaction[it.model.ITEM_SEQ] = long
    found = scores(it.model, interaction)
    others = [row for row in range(12) if row not in (3, 7)]
    torch.testing.assert_close(found[others], whole[others], rtol=1e-4, atol=1e-5)
    cut = torch.stack([long[row, n[row] - length : n[row]] for row in (3, 7)])
    alone = interaction[[3, 7]]
    torch.testing.assert_close(scores(it.model, alone), found[[3, 7]], rtol=1e-4, atol=1e-5)
    alone.interaction.update({it.model.ITEM_SEQ: cut, it.model.ITEM_SEQ_LEN: torch.full((2,), length)})
    torch.testing.assert_close(scores(it.model, alone), found[[3, 7]], rtol=1e-4, atol=1e-5)


def test_other_seeds_give_other_scores(name):
    interaction = None
    found = []
    for seeds in ([1], [2]):
        it = toy(name, **few_steps(name, inference_seeds=seeds))
        with torch.no_grad():  # a model that has learnt nothing yet hardly looks at the noise
            for parameter in it.model.parameters():
                parameter.mul_(3)
        interaction = interaction if interaction is not None else batch_of(it.test, 20)
        found.append(scores(it.model, interaction))
    finite = found[0].isfinite()
    assert torch.equal(found[0][finite], found[1][finite]) != MODELS[name].random_inference


def test_mixed_precision_reaches_inference_but_not_the_scores(name):
    it, half = (toy(name, enable_amp=amp, **few_steps(name)) for amp in (False, True))
    half.model.load_state_dict(it.model.state_dict())
    interaction = batch_of(it.test, 30)
    exact, mixed = scores(it.model, interaction), scores(half.model, interaction)
    assert mixed.dtype == torch.float32 and not torch.equal(exact, mixed)
    items = exact[:, 1:] - exact[:, 1:].mean(1, keepdim=True), mixed[:, 1:] - mixed[:, 1:].mean(1, keepdim=True)
    assert torch.cosine_similarity(*items, dim=1).mean() > 0.98
    # Scores in bf16 would tie, and ties rank by chance.
    assert all(len(row.unique()) == len(row) for row in mixed[:, 1:])


def test_the_padding_item_is_no_candidate(name):
    it = toy(name, **few_steps(name))
    found = scores(it.model, batch_of(it.test, 10))
    assert (found[:, 0] == -torch.inf).all() and found[:, 1:].isfinite().all()


def test_predict_is_the_score_of_the_item(name):
    it = toy(name, **few_steps(name))
    interaction = batch_of(it.test, 10)
    it.model.eval()
    with torch.no_grad():
        expected = scores(it.model, interaction)[torch.arange(10), interaction[it.model.ITEM_ID]]
        torch.testing.assert_close(it.model.predict(interaction), expected)


def test_gradient_reaches_every_parameter(name):
    it = toy(name, **few_steps(name))
    it.model.train()
    # Two batches: a random switch, such as dropping the condition, may miss a parameter in one.
    for interaction, _ in zip(it.train, range(2), strict=False):
        it.model.calculate_loss(interaction).backward()
    missing = [key for key, p in it.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing


def test_the_loss_is_reproducible_and_finite(name):
    it = toy(name, **few_steps(name))
    interaction = batch_of(it.train)
    it.model.train()
    first = loss_with_seed(it.model, interaction)
    it = toy(name, **few_steps(name))
    it.model.train()
    assert first.isfinite() and torch.equal(first, loss_with_seed(it.model, interaction))


@pytest.mark.parametrize("origin", [0, 1])
def test_ragged_and_padded_layouts_give_the_same_scores(name, origin):
    keys = {"positions_from": MODELS[name].position_origins[origin]}
    if toy_config(name)["use_position_embedding"] is False:
        keys["use_position_embedding"] = True
    it = toy(name, **few_steps(name), **keys)
    [places] = [module for module in it.model.modules() if isinstance(module, PositionEmbedding)]
    assert places.from_start == (origin == 0)
    interaction = batch_of(it.test, 60)
    fast = scores(it.model, interaction)
    it.model.ragged = False
    torch.testing.assert_close(scores(it.model, interaction), fast, rtol=1e-4, atol=1e-5)


def test_save_and_load_give_the_same_scores(name, tmp_path):
    it = toy(name, **few_steps(name))
    trainer = DiffusionTrainer(it.config, it.model)
    trainer._save_checkpoint(0, verbose=False)
    expected = scores(it.model, batch_of(it.test, 20))
    state = torch.load(trainer.saved_model_file, weights_only=True)
    fresh = toy(name, seed=5, **few_steps(name))
    assert not torch.allclose(scores(fresh.model, batch_of(it.test, 20))[:, 1:], expected[:, 1:])
    fresh.model.load_state_dict(state["state_dict"])
    torch.testing.assert_close(scores(fresh.model, batch_of(it.test, 20)), expected)


def test_no_step_of_inference_is_random_in_training_mode_only(name):
    """Dropout is the only difference between training and evaluation mode in the encoder."""
    it = toy(name, emb_dropout_prob=0.0, hidden_dropout_prob=0.0, attn_dropout_prob=0.0, **few_steps(name))
    interaction = batch_of(it.test, 10)
    expected = scores(it.model, interaction)
    it.model.train()
    with torch.no_grad():
        torch.testing.assert_close(it.model.full_sort_predict(interaction), expected)
