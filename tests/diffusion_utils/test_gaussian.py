import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_diffusion.diffusion_utils import SCHEDULES, GaussianDiffusion, get_betas

SMALL = settings(deadline=None, max_examples=40, derandomize=True)
betas_lists = st.lists(st.floats(1e-5, 0.95), min_size=1, max_size=8)
coordinate = st.floats(-3, 3)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def forward_moments(betas, x_start):
    """Means and joint covariance of x_1..x_T given x_0, from x_t = sqrt(1 - beta) x_{t-1} + noise, step by step."""
    mean, cov = double(x_start), torch.zeros(1, 1, dtype=torch.float64)
    for beta in betas:
        row = cov[-1:] * (1 - beta) ** 0.5
        cov = torch.cat([torch.cat([cov, row.T], 1), torch.cat([row, row[:, -1:] * (1 - beta) ** 0.5 + beta], 1)])
        mean = torch.cat([mean, mean[-1:] * (1 - beta) ** 0.5])
    return mean[1:], cov[1:, 1:]


@SMALL
@given(betas_lists, coordinate)
def test_marginals_are_those_of_the_forward_chain(betas, x_start):
    diffusion = GaussianDiffusion(double(*betas))
    mean, cov = forward_moments(betas, x_start)
    t = torch.arange(len(betas))
    x = torch.full((len(betas), 1), x_start, dtype=torch.float64)
    signal = diffusion.q_sample(x, t, torch.zeros_like(x)).squeeze(1)
    noise = diffusion.q_sample(torch.zeros_like(x), t, torch.ones_like(x)).squeeze(1)
    assert torch.allclose(signal, mean, atol=1e-6)
    assert torch.allclose(noise.square(), cov.diagonal(), rtol=1e-6)


@SMALL
@given(betas_lists, coordinate, coordinate)
def test_posterior_is_the_conditioned_joint_gaussian(betas, x_start, x_t):
    diffusion = GaussianDiffusion(double(*betas))
    mean, cov = forward_moments(betas, x_start)
    for t in range(1, len(betas)):
        gain = cov[t - 1, t] / cov[t, t]
        expected_mean = mean[t - 1] + gain * (x_t - mean[t])
        expected_variance = cov[t - 1, t - 1] - gain * cov[t, t - 1]
        actual_mean, actual_variance = diffusion.q_posterior(
            double(x_start)[None], double(x_t)[None], torch.tensor([t])
        )
        assert actual_mean.item() == pytest.approx(expected_mean.item(), abs=2e-6)
        assert actual_variance.item() == pytest.approx(expected_variance.item(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_at_step_zero_is_the_start(name):
    diffusion = GaussianDiffusion(get_betas(name, 50))
    x_start, x_t = torch.randn(2, 4, 6)
    mean, variance = diffusion.q_posterior(x_start, x_t, torch.zeros(4, dtype=torch.long))
    assert torch.equal(mean, x_start) and (variance == 0).all()
    assert variance.expand_as(x_t).shape == x_t.shape


def test_simulated_chain_has_the_moments_of_q_sample():
    generator = torch.Generator().manual_seed(0)
    betas = get_betas("trunc_linear", 32)[:6]
    x = torch.full((200_000,), 1.5, dtype=torch.float64)
    for beta in betas:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = (1 - beta).sqrt() * x + beta.sqrt() * noise
    drawn = GaussianDiffusion(betas).q_sample(
        torch.full((200_000, 1), 1.5), 5, torch.randn(200_000, 1, generator=generator)
    )
    assert drawn.mean().item() == pytest.approx(x.mean().item(), abs=0.01)
    assert drawn.std().item() == pytest.approx(x.std().item(), abs=0.01)


def test_q_sample_draws_its_own_noise():
    torch.manual_seed(0)
    drawn = GaussianDiffusion(get_betas("cosine", 10)).q_sample(torch.zeros(50_000, 1), 9)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02) and drawn.std().item() == pytest.approx(1, abs=0.02)


@SMALL
@given(st.sampled_from(["linear", "sqrt", "trunc_linear"]), st.integers(2, 40), st.integers(0, 2**16))
def test_conversions_round_trip(name, num_steps, seed):
    diffusion = GaussianDiffusion(get_betas(name, num_steps))
    generator = torch.Generator().manual_seed(seed)
    x_start, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    t = torch.randint(num_steps, (5,), generator=generator)
    x_t = diffusion.q_sample(x_start, t, noise)
    velocity = diffusion.predict_velocity(x_start, t, noise)
    assert torch.allclose(diffusion.predict_start(x_t, t, noise), x_start, atol=1e-5)
    assert torch.allclose(diffusion.predict_noise(x_t, t, x_start), noise, atol=1e-5)
    assert torch.allclose(diffusion.predict_start_from_velocity(x_t, t, velocity), x_start, atol=1e-5)


def test_velocity_is_the_derivative_of_x_t_along_the_angle():
    diffusion = GaussianDiffusion(double(0.36))  # sqrt(abar) = 0.8, sqrt(1 - abar) = 0.6
    x_start, noise = double(2.0), double(1.0)
    assert diffusion.predict_velocity(x_start, 0, noise).item() == pytest.approx(0.8 * 1 - 0.6 * 2, abs=1e-6)


def test_t_may_be_per_row_per_position_or_shared():
    diffusion = GaussianDiffusion(get_betas("sqrt", 20))
    x, noise = torch.randn(2, 3, 4, 5)
    t = torch.tensor([0, 7, 19])
    rows = diffusion.q_sample(x, t, noise)
    positions = diffusion.q_sample(x, t[:, None].expand(3, 4), noise)
    assert torch.equal(rows, positions)
    for b, step in enumerate(t.tolist()):
        assert torch.equal(rows[b], diffusion.q_sample(x[b], torch.tensor(step), noise[b]))
        assert torch.equal(rows[b], diffusion.q_sample(x[b], step, noise[b]))
    mean, variance = diffusion.q_posterior(x, noise, t)
    assert mean.shape == x.shape and variance.shape == (3, 1, 1)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_no_step_is_read_back_from_the_device(shape):
    """A meta tensor has no values: any read of one on the host raises."""
    diffusion = GaussianDiffusion(get_betas("linear", 10)).to("meta")
    x, t = torch.empty(4, 3, device="meta"), torch.zeros(shape, dtype=torch.long, device="meta")
    assert diffusion.q_sample(x, t).is_meta and diffusion.q_posterior(x, x, t)[0].is_meta


def test_precision_survives_tiny_betas():
    """1 - abar would be 0 in float64 by products; here it is the sum of the betas."""
    diffusion = GaussianDiffusion(double(1e-18, 1e-18))
    assert diffusion.sqrt_one_minus_alphas_cumprod[1].item() == pytest.approx((2e-18) ** 0.5)
    assert diffusion.posterior_variance[1].item() == pytest.approx(0.5e-18)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_casting_a_model_leaves_the_tables_alone(cast):
    model = nn.ModuleDict({"diffusion": GaussianDiffusion(get_betas("linear", 1000)), "net": nn.Linear(2, 2)})
    before = copy.deepcopy(dict(model["diffusion"].named_buffers()))
    cast(model)
    assert model["net"].weight.dtype != torch.float32
    for name, table in model["diffusion"].named_buffers():
        assert table.dtype == torch.float32 and torch.equal(table, before[name])
    x = torch.randn(3, 2).to(model["net"].weight.dtype)
    assert model["diffusion"].q_sample(x, torch.tensor([0, 5, 9])).dtype == x.dtype


def test_tables_follow_the_device_and_stay_out_of_the_state_dict():
    diffusion = GaussianDiffusion(get_betas("linear", 10))
    assert diffusion.state_dict() == {}
    assert {table.device.type for table in copy.deepcopy(diffusion).to("meta").buffers()} == {"meta"}
    assert not list(diffusion.parameters())


@SMALL
@given(betas_lists.filter(lambda b: len(b) > 2), st.data())
def test_respaced_keeps_the_marginals_of_its_steps(betas, data):
    diffusion = GaussianDiffusion(double(*betas))
    steps = sorted(data.draw(st.sets(st.integers(0, len(betas) - 1), min_size=1)))
    chain = diffusion.respaced(steps)
    assert chain.num_steps == len(steps)
    assert torch.allclose(chain.alphas_cumprod, diffusion.alphas_cumprod[steps], rtol=1e-6)
    _, cov = forward_moments(betas, 0.0)
    for i in range(1, len(steps)):  # the posterior between two kept steps, conditioned on the full chain
        s, t = steps[i - 1], steps[i]
        expected = cov[s, s] - cov[s, t] ** 2 / cov[t, t]
        assert chain.posterior_variance[i].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-9)


def test_respaced_over_all_steps_is_the_diffusion_itself_and_survives_a_jump_into_noise():
    diffusion = GaussianDiffusion(get_betas("linear", 2000, beta_end=0.1))
    assert diffusion.respaced(range(2000)) is diffusion
    assert all(table.isfinite().all() for table in diffusion.respaced([0, 1999]).buffers())


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0], [0.5, 1.0], [0.1, float("nan")]])
def test_betas_outside_the_unit_interval_are_refused(betas):
    with pytest.raises(ValueError, match=r"betas \[\[.*\] must be a vector of numbers > 0 and < 1\."):
        GaussianDiffusion(torch.tensor(betas))
