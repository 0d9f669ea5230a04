import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffusion.diffusion_utils import (
    SAMPLERS,
    GaussianDiffusion,
    SeedNoise,
    check_sampling,
    get_betas,
    sample,
    sample_ddim,
    sample_ddpm,
    strided_steps,
)

SMALL = settings(deadline=None, max_examples=40, derandomize=True)


def network(x_t, t):
    """A prediction that depends on both its inputs, row by row."""
    return torch.tanh(0.7 * x_t + 0.01 * t.to(x_t.dtype).view(-1, *[1] * (x_t.ndim - 1))) - 0.2


def fixed_noise(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def x_noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@SMALL
@given(st.integers(1, 300), st.data())
def test_strided_steps_are_even_and_hold_the_ends(total, data):
    num = data.draw(st.integers(1, total))
    steps = strided_steps(total, num)
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert len(steps) == num and steps[-1] == total - 1
    assert num == 1 or steps[0] == 0
    assert all(gap >= 1 for gap in gaps) and (not gaps or max(gaps) - min(gaps) <= 1)
    assert strided_steps(total) == strided_steps(total, total) == list(range(total))


@pytest.mark.parametrize("num_steps", [None, 12])
def test_ddpm_over_all_steps_is_the_plain_chain(num_steps):
    diffusion = GaussianDiffusion(get_betas("trunc_linear", 12))
    x = x_noise(4, 3)
    draw = fixed_noise()
    expected = x
    for step in reversed(range(12)):
        t = torch.full((4,), step)
        mean, variance = diffusion.q_posterior(network(expected, t), expected, t)
        expected = mean + variance.sqrt() * draw(expected) if step else mean
    assert torch.equal(sample(diffusion, network, x, num_steps=num_steps, draw_noise=fixed_noise()), expected)
    # The same betas found by way of the kept steps, as any shorter subset finds them.
    shortened = GaussianDiffusion(torch.cat([get_betas("trunc_linear", 12), torch.tensor([0.5])])).respaced(range(12))
    assert torch.allclose(sample(shortened, network, x, draw_noise=fixed_noise()), expected, atol=1e-5)


@pytest.mark.parametrize("num_steps", [None, 4])
def test_ddpm_draws_with_beta_where_asked(num_steps):
    diffusion, draw = GaussianDiffusion(get_betas("trunc_linear", 9)), fixed_noise()
    steps = strided_steps(9, num_steps)
    abar = diffusion.alphas_cumprod.double()
    expected = x_noise(4, 3)
    for place in reversed(range(len(steps))):
        now, before = abar[steps[place]], abar[steps[place - 1]] if place else torch.ones((), dtype=torch.float64)
        beta, x_start = 1 - now / before, network(expected, torch.full((4,), steps[place]))
        mean = before.sqrt() * beta * x_start + (now / before).sqrt() * (1 - before) * expected
        expected = mean / (1 - now) + (beta.sqrt() * draw(expected) if place else 0)
    kwargs = {"num_steps": num_steps, "reverse_variance": "beta"}
    found = sample(diffusion, network, x_noise(4, 3), draw_noise=fixed_noise(), **kwargs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    kwargs["reverse_variance"] = "posterior"
    assert not torch.allclose(sample(diffusion, network, x_noise(4, 3), draw_noise=fixed_noise(), **kwargs), expected)


@pytest.mark.parametrize("method, value", [("ddpm", "betas"), ("ddim", "beta")])
def test_a_reverse_variance_that_is_not_known_or_not_the_samplers_is_refused(method, value):
    with pytest.raises(ValueError, match=rf"reverse_variance \[{value}\]"):
        check_sampling(20, method, reverse_variance=value)


def transition(sampler, diffusion, steps, x_t, x_start, **kwargs):
    """Mean and standard deviation of the sampler's first step, seen by the second call of the network."""

    def second_state(noise):
        seen = []
        sampler(diffusion, lambda x, t: seen.append(x) or torch.full_like(x, x_start), x_t, steps, noise, **kwargs)
        return seen[1]

    mean = second_state(torch.zeros_like)
    return mean, second_state(torch.ones_like) - mean


@pytest.mark.slow
@SMALL
@given(
    st.sampled_from(["linear", "cosine", "sqrt", "trunc_linear", "trunc_cosine", "exponential"]),
    st.integers(2, 40),
    st.floats(-2, 2),
    st.data(),
)
def test_ddim_with_eta_one_has_the_moments_of_ddpm_at_each_step(name, total, x_start, data):
    diffusion = GaussianDiffusion(get_betas(name, total))
    kept = strided_steps(total, data.draw(st.integers(2, total)))
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for last in range(2, len(kept) + 1):
        mean, std = transition(sample_ddpm, diffusion, kept[:last], x_t, x_start)
        ddim_mean, ddim_std = transition(sample_ddim, diffusion, kept[:last], x_t, x_start, eta=1.0)
        assert torch.allclose(ddim_mean, mean, atol=2e-4)
        assert torch.allclose(ddim_std, std, atol=1e-6)
        assert (std > 0).all()


def test_ddim_step_by_hand():
    """Eq. 12 and 16 written out, over a subset of steps and an eta between its ends."""
    betas, eta, x_start = get_betas("sqrt", 10), 0.4, 0.3
    abar = (1 - betas).cumprod(0)
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    now, before = abar[9].item(), abar[4].item()
    sigma = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
    noise = (x_t - math.sqrt(now) * x_start) / math.sqrt(1 - now)
    expected = math.sqrt(before) * x_start + math.sqrt(1 - before - sigma**2) * noise
    mean, std = transition(sample_ddim, GaussianDiffusion(betas), [0, 4, 9], x_t, x_start, eta=eta)
    assert torch.allclose(mean, expected, atol=1e-5)
    assert torch.allclose(std, torch.full_like(std, sigma), atol=1e-6)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_samplers_draw_a_gaussian_that_is_known(method):
    """With the exact E[x_0 | x_t] of x_0 ~ N(2, 0.25), all steps bring x_T ~ N(0, 1) back to it."""
    diffusion = GaussianDiffusion(get_betas("linear", 400, beta_end=0.05))
    abar = diffusion.alphas_cumprod.double()

    def posterior_mean(x_t, t):
        a = abar[t][:, None]
        return 2 + 0.25 * a.sqrt() / (0.25 * a + 1 - a) * (x_t - 2 * a.sqrt())

    x = sample(diffusion, posterior_mean, x_noise(20_000, 1), method, draw_noise=fixed_noise(1))
    assert x.mean().item() == pytest.approx(2, abs=0.02) and x.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", ["ddpm", "ddim", "one_step"])
@pytest.mark.parametrize("num_steps", [None, 1, 2, 7])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_the_network_is_asked_at_the_trained_steps(method, num_steps, shape):
    diffusion = GaussianDiffusion(get_betas("linear", 20))
    asked = []

    def predict_start(x_t, t):
        assert t.shape == shape[:1] and t.dtype == torch.long and x_t.shape == shape
        asked.append(t.unique().item())
        return network(x_t, t)

    result = sample(diffusion, predict_start, x_noise(*shape), method, num_steps)
    steps = [19] if method == "one_step" else strided_steps(20, num_steps)
    assert asked == steps[::-1] and result.shape == shape


@pytest.mark.parametrize("method", ["ddpm", "ddim", "one_step"])
def test_a_perfect_prediction_is_returned_as_it_is(method):
    target = x_noise(3, 4)
    diffusion = GaussianDiffusion(get_betas("cosine", 20))
    assert torch.equal(sample(diffusion, lambda x, t: target, torch.zeros(3, 4), method, eta=0.5), target)


def test_one_step_equals_a_chain_of_one_step():
    diffusion, x = GaussianDiffusion(get_betas("sqrt", 20)), x_noise(3, 4)
    expected = network(x, torch.full((3,), 19))
    assert torch.equal(sample(diffusion, network, x, "one_step"), expected)
    for method in ("ddpm", "ddim"):
        assert torch.equal(sample(diffusion, network, x, method, num_steps=1, eta=1.0), expected)


def test_noise_comes_from_the_generator_the_global_state_or_the_caller():
    diffusion, x = GaussianDiffusion(get_betas("sqrt", 20)), x_noise(4, 3)
    state = torch.get_rng_state()
    runs = [sample(diffusion, network, x, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(runs[0], sample(diffusion, network, x, draw_noise=fixed_noise(1)))
    sample(diffusion, network, x, "ddim")
    assert torch.equal(torch.get_rng_state(), state)  # eta = 0 draws nothing
    sample(diffusion, network, x)
    assert not torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="generator and draw_noise"):
        sample(diffusion, network, x, generator=torch.Generator(), draw_noise=torch.randn_like)


@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 1.0)])
def test_shared_noise_gives_equal_rows_equal_results(method, eta):
    diffusion = GaussianDiffusion(get_betas("sqrt", 20))

    def run(batch_size):
        noise = SeedNoise([3, 4])
        x = noise(torch.empty(2 * batch_size, 5))
        return sample(diffusion, network, x, method, eta=eta, draw_noise=noise).view(2, batch_size, 5)

    one, many = run(1), run(6)
    assert torch.allclose(many, one.expand(2, 6, 5), atol=1e-6)
    assert not torch.allclose(one[0], one[1], atol=1e-2)


@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("one_step", 0.0)])
def test_nothing_in_the_loop_reads_the_device(method, eta):
    """A meta tensor has no values: any read of one on the host raises."""
    diffusion = GaussianDiffusion(get_betas("linear", 20)).to("meta")
    result = sample(diffusion, network, torch.empty(4, 3, device="meta"), method, num_steps=5, eta=eta)
    assert result.shape == (4, 3) and result.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 1.0), ("one_step", 0.0)])
def test_gpu_agrees_with_cpu_and_does_not_wait(method, eta):
    diffusion = GaussianDiffusion(get_betas("linear", 20))
    noise = SeedNoise([3, 4])
    expected = sample(diffusion, network, noise(torch.empty(8, 5)), method, eta=eta, draw_noise=noise)
    noise, diffusion = SeedNoise([3, 4]), diffusion.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = sample(diffusion, network, noise(torch.empty(8, 5, device="cuda")), method, eta=eta, draw_noise=noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(actual.cpu(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_keep_the_dtype(dtype):
    diffusion = GaussianDiffusion(get_betas("linear", 20))
    for method in ("ddpm", "ddim", "one_step"):
        assert sample(diffusion, network, x_noise(2, 3).to(dtype), method, num_steps=4, eta=0.5).dtype == dtype


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "euler"}, r"sampler \[euler\] is unknown: choose one of ddpm, ddim, one_step\."),
        ({"num_steps": 0}, r"sampling_steps \[0\] must be an integer from 1 to 20\."),
        ({"num_steps": 21}, r"sampling_steps \[21\] must be an integer from 1 to 20\."),
        ({"num_steps": 2.5}, r"sampling_steps \[2.5\] must"),
        ({"num_steps": True}, r"sampling_steps \[True\] must"),
        ({"eta": -0.1}, r"ddim_eta \[-0.1\] must be a number from 0 to 1\."),
        ({"eta": 1.1}, r"ddim_eta \[1.1\] must"),
        ({"eta": math.nan}, r"ddim_eta \[nan\] must"),
        ({"eta": None}, r"ddim_eta \[None\] must"),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample(GaussianDiffusion(get_betas("linear", 20)), network, torch.zeros(2, 3), **kwargs)
    with pytest.raises(ValueError, match=message):
        check_sampling(20, **kwargs)


def test_check_sampling_accepts_what_sample_runs():
    for method in ("ddpm", "ddim", "one_step"):
        for num_steps in (None, 1, 20):
            check_sampling(20, method, num_steps, 1)


@pytest.mark.parametrize("method", SAMPLERS)
def test_the_callback_sees_every_visited_step_and_changes_nothing(method):
    diffusion, called, seen = GaussianDiffusion(get_betas("trunc_linear", 12)), [], []

    def watched(x_t, t):
        called.append((int(t[0]), x_t))
        return network(x_t, t)

    options = {"method": method, "num_steps": 5, "eta": 0.5}
    plain = sample(diffusion, watched, x_noise(4, 3), draw_noise=fixed_noise(), **options)
    found = sample(
        diffusion, network, x_noise(4, 3), draw_noise=fixed_noise(), callback=lambda *args: seen.append(args), **options
    )
    assert torch.equal(found, plain)
    assert [step for step, *_ in seen] == ([11] if method == "one_step" else [11, 8, 5, 2, 0])
    for (step, x_t), (shown, shown_x_t, x_start) in zip(called, seen, strict=True):
        assert step == shown and torch.equal(x_t, shown_x_t)
        assert torch.equal(x_start, network(x_t, torch.full((4,), step)))
