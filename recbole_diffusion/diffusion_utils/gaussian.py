"""The Gaussian diffusion process of Ho et al. 2020: its marginals, its posterior, and what converts x0, noise and v."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class GaussianDiffusion(nn.Module):
    """The closed forms of a diffusion with the given `betas` [T], each inside (0, 1).

    In every method x is [B, ..., D] and `t` counts from 0 to T - 1: a LongTensor whose shape is that of x's leading
    dimensions ([B] for [B, L, D], or [B, L] for a step per position), or one step for all as a 0-d tensor or an int.
    Results have the dtype of x.

    The tables are float32 buffers computed in float64. They follow `.to(device)`, stay float32 under `.half()` and
    `.bfloat16()`, which would round small betas away, and are not in the state_dict, as the configuration gives them.

    Raises ValueError where `betas` is not a vector inside (0, 1).
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    posterior_coef_start: Tensor
    posterior_coef_x_t: Tensor
    posterior_variance: Tensor

    def __init__(self, betas: Tensor):
        super().__init__()
        betas = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas [{betas.tolist()}] must be a vector of numbers > 0 and < 1.")
        self.num_steps = len(betas)
        # By logarithms, 1 - abar keeps its digits where abar itself rounds to 1.
        self._log_alphas_cumprod = log_abar = torch.log1p(-betas).cumsum(0)
        log_abar_prev = torch.cat([log_abar.new_zeros(1), log_abar[:-1]])
        one_minus_abar, one_minus_abar_prev = -torch.expm1(log_abar), -torch.expm1(log_abar_prev)
        tables = {
            "betas": betas,
            "alphas_cumprod": log_abar.exp(),
            "sqrt_alphas_cumprod": (log_abar / 2).exp(),
            "sqrt_one_minus_alphas_cumprod": one_minus_abar.sqrt(),
            "posterior_coef_start": (log_abar_prev / 2).exp() * betas / one_minus_abar,
            "posterior_coef_x_t": (1 - betas).sqrt() * one_minus_abar_prev / one_minus_abar,
            "posterior_variance": betas * one_minus_abar_prev / one_minus_abar,
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(torch.float32), persistent=False)
        self._respaced: dict[tuple, GaussianDiffusion] = {}

    def q_sample(self, x_start: Tensor, t: Tensor | int, noise: Tensor | None = None) -> Tensor:
        """Draw x_t from q(x_t | x_0), with standard normal `noise` unless given (Ho et al. 2020, Eq. 4)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        signal, sigma = self._signal_and_sigma(t, x_start)
        return signal * x_start + sigma * noise

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, Eq. 6 and 7).

        The variance is broadcastable to x. At t = 0 the mean is `x_start` and the variance 0.
        """
        mean = _at(self.posterior_coef_start, t, x_t) * x_start + _at(self.posterior_coef_x_t, t, x_t) * x_t
        return mean, _at(self.posterior_variance, t, x_t)

    def predict_noise(self, x_t: Tensor, t: Tensor | int, x_start: Tensor) -> Tensor:
        """Return the noise that leads from `x_start` to `x_t` (Ho et al. 2020, Eq. 4 solved for the noise)."""
        signal, sigma = self._signal_and_sigma(t, x_t)
        return (x_t - signal * x_start) / sigma

    def predict_start(self, x_t: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Return the x_0 that `noise` leads from to `x_t` (Ho et al. 2020, Eq. 4 solved for x_0)."""
        signal, sigma = self._signal_and_sigma(t, x_t)
        return (x_t - sigma * noise) / signal

    def predict_velocity(self, x_start: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """Return v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans and Ho 2022, section 4)."""
        signal, sigma = self._signal_and_sigma(t, x_start)
        return signal * noise - sigma * x_start

    def predict_start_from_velocity(self, x_t: Tensor, t: Tensor | int, velocity: Tensor) -> Tensor:
        """Return x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v (Salimans and Ho 2022, section 4)."""
        signal, sigma = self._signal_and_sigma(t, x_t)
        return signal * x_t - sigma * velocity

    def respaced(self, steps: Sequence[int]) -> GaussianDiffusion:
        """Return the diffusion that visits only the given ascending `steps` (Nichol and Dhariwal 2021, Eq. 19).

        Its step i is step `steps[i]` of this one: the marginals are the same, the betas are what lies between them. It
        is made once, as a graph that is exported cannot check betas.
        """
        if list(steps) == list(range(self.num_steps)):
            return self
        key = (tuple(steps), self.betas.device)
        if key not in self._respaced:
            self._respaced[key] = self._make_respaced(steps)
        return self._respaced[key]

    def _make_respaced(self, steps: Sequence[int]) -> GaussianDiffusion:
        log_abar = self._log_alphas_cumprod[list(steps)]
        betas = -torch.expm1(log_abar.diff(prepend=log_abar.new_zeros(1)))
        # A long jump into pure noise has a beta that rounds to 1.
        return GaussianDiffusion(betas.clamp(max=1 - torch.finfo(betas.dtype).eps)).to(self.betas.device)

    def _signal_and_sigma(self, t: Tensor | int, x: Tensor) -> tuple[Tensor, Tensor]:
        return _at(self.sqrt_alphas_cumprod, t, x), _at(self.sqrt_one_minus_alphas_cumprod, t, x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GaussianDiffusion:
        # Module.to(), .half() and their like come through here: follow the device, keep the dtype.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


def _at(table: Tensor, t: Tensor | int, x: Tensor) -> Tensor:
    # table[t] would read a 0-d tensor back to the host; take does not.
    value = table[t] if isinstance(t, int) else table.take(t)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)).to(x.dtype)
