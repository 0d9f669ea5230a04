import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffusion.diffusion_utils import SCHEDULES, get_betas

SMALL = settings(deadline=None, max_examples=40, derandomize=True)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [*range(1, 51), 100, 500, 1000, 2000])
def test_betas_are_inside_the_unit_interval_and_abar_falls(name, num_steps):
    betas = get_betas(name, num_steps)
    assert betas.shape == (num_steps,) and betas.dtype == torch.float64
    assert ((betas > 0) & (betas <= 0.999)).all()
    assert ((1 - betas).cumprod(0).diff(prepend=torch.ones(1, dtype=torch.float64)) < 0).all()


@SMALL
@given(st.integers(1, 300), st.floats(1e-6, 0.5), st.floats(0.0, 0.49))
def test_linear_spans_its_ends(num_steps, beta_start, width):
    betas = get_betas("linear", num_steps, beta_start=beta_start, beta_end=beta_start + width)
    end = beta_start + width if num_steps > 1 else beta_start
    assert betas[0].item() == pytest.approx(beta_start) and betas[-1].item() == pytest.approx(end)
    assert torch.allclose(betas.diff(), torch.tensor(width / max(num_steps - 1, 1), dtype=torch.float64), atol=1e-12)


def test_linear_defaults():
    assert get_betas("linear", 1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])


def cosine_abar(u, shift):
    return math.cos((u + shift) / (1 + shift) * math.pi / 2) ** 2


@pytest.mark.parametrize("num_steps", [2, 7, 32, 1000])
def test_cumulative_products_follow_the_formulas(num_steps):
    """Before the last, possibly clipped step, the product of 1 - beta gives abar(u) back, up to abar(0)."""
    abars = {
        "cosine": [cosine_abar((i + 1) / num_steps, 0.008) / cosine_abar(0, 0.008) for i in range(num_steps - 1)],
        "sqrt": [(1 - math.sqrt((i + 1) / num_steps + 1e-4)) / 0.99 for i in range(num_steps - 1)],
        "trunc_cosine": [cosine_abar(i / num_steps, 0.1) for i in range(num_steps)],
    }
    for name, expected in abars.items():
        actual = (1 - get_betas(name, num_steps)).cumprod(0)[: len(expected)]
        assert actual.tolist() == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("name", ["cosine", "sqrt"])
@pytest.mark.parametrize("num_steps", [1, 10, 1000])
def test_a_formula_that_reaches_one_is_clipped(name, num_steps):
    assert get_betas(name, num_steps)[-1].item() == 0.999


@pytest.mark.parametrize(("num_steps", "ends"), [(32, (0.013125, 0.635)), (20, (0.015, 0.06)), (1000, (0.0101, 0.03))])
def test_trunc_linear_ends(num_steps, ends):
    assert get_betas("trunc_linear", num_steps)[[0, -1]].tolist() == pytest.approx(ends)


@SMALL
@given(st.integers(2, 200), st.floats(0.01, 1), st.floats(0, 10))
def test_exponential_follows_its_formula(num_steps, beta_min, width):
    betas = get_betas("exponential", num_steps, beta_min=beta_min, beta_max=beta_min + width)
    for i in range(num_steps):
        x = 1 + 2 * num_steps * i / (num_steps - 1)
        beta = 1 - math.exp(-beta_min / num_steps - width * x / (2 * num_steps**2))
        assert betas[i].item() == pytest.approx(min(beta, 0.999), rel=1e-9)


def test_a_steep_exponential_is_clipped():
    assert get_betas("exponential", 2, beta_max=1000.0)[-1].item() == 0.999


@pytest.mark.parametrize(
    ("name", "num_steps", "kwargs", "message"),
    [
        (
            "quadratic",
            10,
            {},
            r"noise_schedule \[quadratic\] is unknown: choose one of linear, cosine, sqrt, .*, exponential",
        ),
        ("linear", 0, {}, r"num_steps \[0\] must be an integer >= 1\."),
        ("linear", 2.0, {}, r"num_steps \[2.0\]"),
        ("linear", True, {}, r"num_steps \[True\]"),
        ("linear", None, {}, r"num_steps \[None\]"),
        ("linear", 10, {"beta_start": 0.0}, r"beta_start \[0.0\] must be a number > 0 and < 1\."),
        ("linear", 10, {"beta_end": 1.0}, r"beta_end \[1.0\] must be a number > 0 and < 1\."),
        ("linear", 10, {"beta_end": math.nan}, r"beta_end \[nan\]"),
        ("linear", 10, {"beta_end": "0.02"}, r"beta_end \['0.02'\]"),
        ("linear", 10, {"beta_end": None}, r"beta_end \[None\]"),
        ("linear", 10, {"beta_start": 0.2, "beta_end": 0.1}, r"beta_start \[0.2\] must be at most beta_end \[0.1\]"),
        (
            "linear",
            10,
            {"beta_min": 0.1},
            r"beta_min \[0.1\] is unknown to .* linear: choose one of beta_start, beta_end\.",
        ),
        ("cosine", 10, {"beta_end": 0.1}, r"beta_end \[0.1\] is unknown to .* cosine: it takes no keyword\."),
        ("exponential", 10, {"beta_end": 0.1}, r"beta_end \[0.1\] is unknown .*: choose one of beta_min, beta_max"),
        ("exponential", 10, {"beta_min": 0}, r"beta_min \[0\] must be a number > 0\."),
        ("exponential", 10, {"beta_max": math.inf}, r"beta_max \[inf\]"),
        ("exponential", 10, {"beta_min": 3.0, "beta_max": 2.0}, r"beta_min \[3.0\] must be at most beta_max \[2.0\]"),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(name, num_steps, kwargs, message):
    with pytest.raises(ValueError, match=message):
        get_betas(name, num_steps, **kwargs)
