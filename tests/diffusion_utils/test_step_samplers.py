import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffusion.diffusion_utils import LossAwareStepSampler, UniformStepSampler, get_step_sampler

SMALL = settings(deadline=None, max_examples=60, derandomize=True)


class Reference:
    """The loss-aware sampler with lists and loops."""

    def __init__(self, num_steps, history_per_step, uniform_prob):
        self.history = [[] for _ in range(num_steps)]
        self.length, self.uniform_prob = history_per_step, uniform_prob

    def update(self, t, loss):
        for step, value in zip(t, loss, strict=True):
            self.history[step] = [*self.history[step], value][-self.length :]

    def probabilities(self):
        total = len(self.history)
        if any(len(losses) < self.length for losses in self.history):
            return [1 / total] * total
        root = [(sum(loss**2 for loss in losses) / self.length) ** 0.5 for losses in self.history]
        return [(1 - self.uniform_prob) * r / sum(root) + self.uniform_prob / total for r in root]


batches = st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(0.1, 9)), min_size=1, max_size=40), max_size=6)


@SMALL
@given(batches, st.integers(1, 10), st.sampled_from([0.0, 0.001, 0.5]))
def test_loss_aware_sampler_equals_the_naive_one(batches, history_per_step, uniform_prob):
    sampler = LossAwareStepSampler(4, history_per_step, uniform_prob)
    reference = Reference(4, history_per_step, uniform_prob)
    for batch in batches:
        t, loss = zip(*batch, strict=True)
        sampler.update(torch.tensor(t), torch.tensor(loss))
        reference.update(t, loss)
        for losses, row, count in zip(reference.history, sampler.history, sampler.counts, strict=True):
            assert count == len(losses)
            assert row[len(row) - len(losses) :].tolist() == pytest.approx(losses)
        assert sampler.probabilities.tolist() == pytest.approx(reference.probabilities(), rel=1e-4)


def warm(num_steps=5, **kwargs):
    sampler = LossAwareStepSampler(num_steps, **kwargs)
    t = torch.arange(num_steps).repeat(10)
    sampler.update(t, 1.0 + t)
    return sampler


def test_uniform_until_the_last_step_has_its_ten():
    sampler = LossAwareStepSampler(3)
    sampler.update(torch.tensor([0] * 10 + [1] * 30 + [2] * 9), torch.rand(49))
    assert sampler.probabilities.tolist() == pytest.approx([1 / 3] * 3)
    assert sampler.sample(8)[1].tolist() == pytest.approx([1] * 8)
    sampler.update(torch.tensor([2]), torch.tensor([50.0]))
    assert sampler.probabilities[2] > 0.8


def test_steps_are_drawn_by_their_probability_and_weighted_by_its_inverse():
    sampler = warm(uniform_prob=0.0)
    p = torch.arange(1.0, 6.0) / 15
    assert sampler.probabilities.tolist() == pytest.approx(p.tolist())
    t, weight = sampler.sample(100_000, generator=torch.Generator().manual_seed(0))
    assert t.dtype == torch.long and t.shape == weight.shape == (100_000,)
    assert (t.bincount(minlength=5) / len(t)).tolist() == pytest.approx(p.tolist(), abs=0.01)
    assert torch.allclose(weight, 1 / (5 * p[t]))
    loss = (t + 2.0) ** 2  # the weighted mean is the mean over uniform steps
    assert (weight * loss).mean().item() == pytest.approx(sum((n + 2) ** 2 for n in range(5)) / 5, rel=0.02)


def test_losses_of_zero_are_uniform_and_not_nan():
    sampler = LossAwareStepSampler(4)
    sampler.update(torch.arange(4).repeat(10), torch.zeros(40))
    assert sampler.probabilities.tolist() == pytest.approx([0.25] * 4)


def test_every_step_keeps_its_uniform_share():
    sampler = LossAwareStepSampler(4, uniform_prob=0.2)
    sampler.update(torch.arange(4).repeat(10), torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(10))
    assert sampler.probabilities.tolist() == pytest.approx([0.05, 0.05, 0.05, 0.85])


def test_the_history_is_saved_and_restored():
    sampler, other = warm(), LossAwareStepSampler(5)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.probabilities, sampler.probabilities) and other.probabilities[4] > 0.3
    for s in (sampler, other):  # both go on alike
        s.update(torch.tensor([1, 1]), torch.tensor([7.0, 8.0]))
    assert torch.equal(other.history, sampler.history)
    assert UniformStepSampler(5).state_dict() == {}


def test_losses_are_recorded_without_their_graph():
    sampler = LossAwareStepSampler(2)
    loss = torch.ones(3, requires_grad=True) * 2
    sampler.update(torch.tensor([0, 1, 1]), loss)
    assert not sampler.history.requires_grad and sampler.counts.tolist() == [1, 2]
    assert not sampler.sample(4)[1].requires_grad


def test_nothing_reads_the_device():
    """A meta tensor has no values: any read of one on the host raises."""
    sampler = LossAwareStepSampler(5).to("meta")
    sampler.update(torch.zeros(7, dtype=torch.long, device="meta"), torch.zeros(7, device="meta"))
    t, weight = sampler.sample(7)
    assert t.is_meta and weight.is_meta


def test_uniform_sampler():
    sampler = UniformStepSampler(4)
    t, weight = sampler.sample(40_000, generator=torch.Generator().manual_seed(0))
    assert t.dtype == torch.long and (weight == 1).all()
    assert (t.bincount(minlength=4) / len(t)).tolist() == pytest.approx([0.25] * 4, abs=0.01)
    sampler.update(t, weight)
    assert sampler.probabilities.tolist() == [0.25] * 4


@pytest.mark.parametrize("name", ["uniform", "loss_aware"])
def test_samplers_follow_device_and_generator(name):
    sampler = get_step_sampler(name, 50)
    draws = [sampler.sample(20, generator=torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert sampler.sample(3, device="cpu")[0].device.type == "cpu"
    assert sampler.to("meta").sample(3)[0].is_meta


def test_get_step_sampler():
    assert isinstance(get_step_sampler("uniform", 7), UniformStepSampler)
    assert isinstance(get_step_sampler("loss_aware", 7), LossAwareStepSampler)
    with pytest.raises(ValueError, match=r"step_sampler \[best\] is unknown: choose one of uniform, loss_aware\."):
        get_step_sampler("best", 7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformStepSampler(0), r"num_steps \[0\]"),
        (lambda: LossAwareStepSampler(1.5), r"num_steps \[1.5\]"),
        (lambda: LossAwareStepSampler(5, history_per_step=0), r"history_per_step \[0\]"),
        (lambda: LossAwareStepSampler(5, uniform_prob=1.5), r"uniform_prob \[1.5\] must be a number from 0 to 1\."),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()
