"""Which diffusion step each training sample gets, and the weight of its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .schedules import check_int


class UniformStepSampler(nn.Module):
    """Draw every one of `num_steps` steps equally often; every weight is 1 (Ho et al. 2020, Algorithm 1)."""

    probabilities: Tensor

    def __init__(self, num_steps: int):
        super().__init__()
        self.num_steps = check_int("num_steps", num_steps, 1)
        self.register_buffer("probabilities", torch.full((num_steps,), 1 / num_steps), persistent=False)

    def sample(
        self, batch: int, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return steps, long [batch], and weights, float [batch], on `device` (None: where the module is)."""
        device = self.probabilities.device if device is None else device
        t = torch.randint(self.num_steps, (batch,), generator=generator, device=device)
        return t, torch.ones(batch, device=device)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Do nothing: the steps stay uniform."""


class LossAwareStepSampler(nn.Module):
    """Draw step n with p_n proportional to sqrt(E[L_n^2]) over its last losses (Nichol and Dhariwal 2021, Eq. 18).

    Until each of the `num_steps` steps has `history_per_step` losses, all are equally likely. After that, a share
    `uniform_prob` of the draws stays uniform, as in the authors' code, so that no step is ever forgotten. The weight
    1 / (num_steps * p_n) keeps the expected loss that of uniform steps.

    The history is part of the state_dict. Under distributed data parallel each rank records the losses it sees, unless
    the wrapper broadcasts buffers from rank 0. The loss stays unbiased either way: a weight belongs to its own draw.

    Raises ValueError unless both counts are >= 1 and 0 <= `uniform_prob` <= 1.
    """

    history: Tensor  # [num_steps, history_per_step], the newest loss last
    counts: Tensor  # [num_steps], how many of them are recorded

    def __init__(self, num_steps: int, history_per_step: int = 10, uniform_prob: float = 0.001):
        super().__init__()
        self.num_steps = check_int("num_steps", num_steps, 1)
        self.history_per_step = check_int("history_per_step", history_per_step, 1)
        if not 0 <= uniform_prob <= 1:
            raise ValueError(f"uniform_prob [{uniform_prob!r}] must be a number from 0 to 1.")
        self.uniform_prob = uniform_prob
        self.register_buffer("history", torch.zeros(num_steps, history_per_step))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.long))

    @property
    def probabilities(self) -> Tensor:
        """The probability of each step, float [num_steps]."""
        # The floor makes losses that are all 0 uniform.
        root = self.history.float().square().mean(1).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        uniform = 1 / self.num_steps
        p = (1 - self.uniform_prob) * root / root.sum() + self.uniform_prob * uniform
        return torch.where(self.counts.min() == self.history_per_step, p, uniform)

    def sample(
        self, batch: int, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return steps, long [batch], and weights, float [batch], on `device` (None: where the module is)."""
        p = self.probabilities
        t = torch.multinomial(p, batch, replacement=True, generator=generator)
        weight = 1 / (self.num_steps * p[t])
        return t.to(device), weight.to(device)

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the unweighted losses [B] of the steps `t` [B], in the order of the batch."""
        t, loss = t.to(self.history.device), loss.to(self.history)
        added = torch.zeros_like(self.counts).scatter_add_(0, t, torch.ones_like(t))
        # A step's new history is the end of (its history, then its losses in the batch); `place` counts along that row.
        place = added.unsqueeze(1) + torch.arange(self.history_per_step, device=t.device)
        start = (added.cumsum(0) - added).unsqueeze(1) - self.history_per_step
        new = loss[t.argsort(stable=True)][(start + place).clamp(0, len(t) - 1)]
        old = self.history.gather(1, place.clamp(max=self.history_per_step - 1))
        self.history.copy_(torch.where(place < self.history_per_step, old, new))
        self.counts.copy_((self.counts + added).clamp(max=self.history_per_step))


STEP_SAMPLERS = {"uniform": UniformStepSampler, "loss_aware": LossAwareStepSampler}


def get_step_sampler(name: str, num_steps: int) -> UniformStepSampler | LossAwareStepSampler:
    """Return the step sampler `name`: `uniform` or `loss_aware`. Raises ValueError on any other."""
    if name not in list(STEP_SAMPLERS):
        raise ValueError(f"step_sampler [{name}] is unknown: choose one of {', '.join(STEP_SAMPLERS)}.")
    return STEP_SAMPLERS[name](num_steps)
