import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffusion.diffusion_utils import SeedNoise, expand_seeds, resolve_seeds, seed_average, seed_log_average

SMALL = settings(deadline=None, max_examples=30, derandomize=True)


def scores_of(seeds, batch_size=3, n_items=4, level=0.0):
    return (
        torch.stack([torch.randn(batch_size, n_items, generator=torch.Generator().manual_seed(s)) for s in seeds])
        + level
    )


def test_resolve_seeds():
    assert resolve_seeds(3) == [0, 1, 2]
    assert resolve_seeds([5, 2]) == [5, 2]
    assert resolve_seeds((7,)) == [7]


@pytest.mark.parametrize(
    "value", [0, -1, True, 2.0, "3", None, [], [1, 1], [0.5], [True], [-1], [2**32], ["1"], [None]]
)
def test_seeds_that_are_none_are_refused(value):
    for function in (resolve_seeds, SeedNoise, lambda seeds: seed_average(scores_of, seeds)):
        with pytest.raises(ValueError, match=r"inference_seeds \[.*\] must be "):
            function(value)


@SMALL
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9, unique=True), st.integers(1, 10), st.booleans())
def test_the_average_does_not_depend_on_the_chunk(seeds, chunk, high):
    level = 100.0 if high else 0.0
    every = scores_of(seeds, level=level).double()
    parts = []

    def score(part):
        parts.append(part)
        return scores_of(part, level=level)

    mean, std = seed_average(score, seeds, chunk, return_std=True)
    assert mean.dtype == std.dtype == torch.float32 and mean.shape == std.shape == (3, 4)
    assert torch.allclose(mean.double(), every.mean(0), atol=1e-6, rtol=1e-6)
    assert torch.allclose(std.double(), every.std(0, correction=0), atol=1e-4 if high else 1e-6)
    assert sum(parts, []) == seeds and max(map(len, parts)) <= chunk
    assert torch.equal(seed_average(lambda part: scores_of(part, level=level), seeds, chunk), mean)


def test_all_seeds_go_in_one_call():
    calls = []
    seed_average(lambda part: calls.append(part) or scores_of(part), 3)
    assert calls == [[0, 1, 2]]


@pytest.mark.parametrize("chunk", [None, 1])
def test_low_precision_is_summed_in_float32(chunk):
    scores = torch.tensor([1.0, 2.0**-9, 2.0**-9]).bfloat16().view(3, 1, 1)
    mean = seed_average(lambda part: scores[part], 3, chunk)
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx((1 + 2**-8) / 3, rel=1e-6)


def test_one_seed_has_no_spread_and_masked_scores_stay_masked():
    mean, std = seed_average(scores_of, [4], return_std=True)
    assert torch.equal(mean, scores_of([4])[0]) and (std == 0).all()
    masked, spread = seed_average(lambda part: torch.full((len(part), 2, 2), -torch.inf), 4, chunk=1, return_std=True)
    assert (masked == -torch.inf).all() and spread.isnan().all()


@SMALL
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9, unique=True), st.integers(1, 10))
def test_the_average_of_logarithms_neither_underflows_nor_depends_on_the_chunk(seeds, chunk):
    def score(part):
        return 300 * scores_of(part) - 400

    found = seed_log_average(score, seeds, chunk)
    expected = score(seeds).double().logsumexp(0) - math.log(len(seeds))
    assert found.dtype == torch.float32 and torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-4)
    lost = seed_log_average(lambda part: torch.full((len(part), 2, 2), -torch.inf), seeds, chunk)
    assert (lost == -torch.inf).all()


def test_errors_of_seed_average():
    with pytest.raises(ValueError, match=r"chunk \[0\] must"):
        seed_average(scores_of, 2, chunk=0)
    with pytest.raises(ValueError, match=r"shape \[\(3, 4\)\] must have the 2 seeds"):
        seed_average(lambda part: torch.zeros(3, 4), 2)


@SMALL
@given(st.integers(1, 4), st.integers(1, 7), st.lists(st.integers(1, 5), min_size=1, max_size=2))
def test_noise_depends_on_the_seed_alone(num_seeds, batch_size, shape):
    noise, alone = SeedNoise(num_seeds), [SeedNoise([seed]) for seed in range(num_seeds)]
    for _ in range(3):  # draw after draw
        drawn = noise(torch.empty(num_seeds * batch_size, *shape)).view(num_seeds, batch_size, *shape)
        for seed in range(num_seeds):
            expected = alone[seed](torch.empty(1, *shape))
            assert torch.equal(drawn[seed], expected.expand(batch_size, *shape))


def test_draws_differ_between_seeds_and_in_time_and_repeat_with_a_new_start():
    noise = SeedNoise([1, 2])
    first, second = noise.draw(1000), noise.draw(1000)
    assert first.shape == (2, 1000) and first.std().item() == pytest.approx(1, abs=0.05)
    for a, b in ((first[0], first[1]), (first[0], second[0])):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.1
    assert torch.equal(SeedNoise([1, 2]).draw(1000), first)
    assert torch.equal(SeedNoise([1, 2]).draw(1000, dtype=torch.float64), first.double())
    assert SeedNoise([1]).draw(3, device="meta").is_meta


def test_the_largest_seeds_have_their_own_draws():
    noise = SeedNoise([0, 2**31, 2**32 - 1]).draw(5)
    assert len(noise.unique(dim=0)) == 3


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    noise = SeedNoise(4)
    seed_average(lambda part: expand_seeds(noise.draw(5), 2).view(4, 2, 5), 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_expand_is_seed_by_seed_and_copies_no_single_seed():
    draw = torch.arange(6.0).view(3, 2)
    assert torch.equal(expand_seeds(draw, 4), draw.repeat_interleave(4, 0))
    assert expand_seeds(draw[:1], 4).data_ptr() == draw.data_ptr()
    assert expand_seeds(torch.randn(3, 2, 5), 4).shape == (12, 2, 5)


def test_rows_that_the_seeds_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"rows \[7\] must be a multiple of the 2 seeds"):
        SeedNoise(2)(torch.empty(7, 3))
