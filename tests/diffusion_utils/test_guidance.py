import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffusion.diffusion_utils import drop_condition, guided_start


def test_no_guidance_is_the_conditional_prediction():
    cond, uncond = torch.randn(2, 4, 3)
    assert torch.equal(guided_start(cond, uncond, 0), cond)
    assert torch.equal(guided_start(cond, uncond, 0.0), cond)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.floats(-1, 10), st.floats(-5, 5), st.floats(-5, 5))
def test_guidance_extrapolates_from_uncond_through_cond(w, cond, uncond):
    actual = guided_start(*torch.tensor([cond, uncond], dtype=torch.float64), w)
    assert actual.item() == pytest.approx(cond + w * (cond - uncond), abs=1e-9)


@pytest.mark.parametrize("shape", [(2000, 4), (2000, 3, 4)])
def test_rows_are_replaced_as_a_whole_at_the_given_rate(shape):
    cond, null = torch.zeros(shape), torch.tensor([1.0, 2.0, 3.0, 4.0])
    dropped = drop_condition(cond, null, 0.3, torch.Generator().manual_seed(0))
    rows = (dropped == null).flatten(1)
    assert torch.equal(rows.all(1), rows.any(1))
    assert rows.all(1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(drop_condition(cond, null, 0.3, torch.Generator().manual_seed(0)), dropped)


def test_the_ends_keep_or_replace_everything():
    cond, null = torch.randn(500, 4), torch.randn(4)
    assert torch.equal(drop_condition(cond, null, 0), cond)
    assert torch.equal(drop_condition(cond, null, 1), null.expand(500, 4))


def test_gradients_reach_both():
    cond, null = torch.randn(100, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    dropped = drop_condition(cond, null, 0.5, torch.Generator().manual_seed(0))
    dropped.sum().backward()
    kept = (dropped == cond).all(1)
    assert 0 < kept.sum() < 100
    assert torch.equal(cond.grad, kept[:, None].float().expand(100, 4))
    assert torch.equal(null.grad, torch.full((4,), float((~kept).sum())))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=rf"p \[{p}\] must be a number from 0 to 1\."):
        drop_condition(torch.zeros(2, 3), torch.zeros(3), p)
