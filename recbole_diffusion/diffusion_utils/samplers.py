"""Samplers: from noise x_T to x_0, given a function that predicts x_0. Each is a plain function, to read by its paper.

`predict_start_fn(x_t, t)` gets x_t [B, ...] and t, a LongTensor [B] that holds the step on the trained scale, also when
only a subset of the steps is visited. `draw_noise(x_t)` gives standard normal noise that broadcasts to x_t, once for
each visited step but the last: whoever passes it decides which rows share a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor

from .gaussian import GaussianDiffusion
from .schedules import check_int

PredictStart = Callable[[Tensor, Tensor], Tensor]
DrawNoise = Callable[[Tensor], Tensor]
REVERSE_VARIANCES = ("posterior", "beta")


def sample_ddpm(
    diffusion: GaussianDiffusion,
    predict_start_fn: PredictStart,
    x_t: Tensor,
    steps: Sequence[int],
    draw_noise: DrawNoise = torch.randn_like,
    eta: float = 0.0,
    reverse_variance: str = "posterior",
) -> Tensor:
    """Walk the ascending `steps` backwards, drawing from the posterior (Ho et al. 2020, Algorithm 2 and Eq. 6, 7).

    Over a subset it is the posterior of the shortened chain (Nichol and Dhariwal 2021, Eq. 19). `reverse_variance`
    `beta` draws with beta_t in place of the posterior's variance (Ho et al. 2020, section 3.2). Shapes: [B, ...].
    """
    chain = diffusion.respaced(steps)
    for i in reversed(range(len(steps))):
        x_start = predict_start_fn(x_t, _rows(x_t, steps[i]))
        x_t, variance = chain.q_posterior(x_start, x_t, i)
        if i > 0:
            variance = chain.betas[i] if reverse_variance == "beta" else variance
            x_t = x_t + variance.sqrt() * draw_noise(x_t)
    return x_t


def sample_ddim(
    diffusion: GaussianDiffusion,
    predict_start_fn: PredictStart,
    x_t: Tensor,
    steps: Sequence[int],
    draw_noise: DrawNoise = torch.randn_like,
    eta: float = 0.0,
    reverse_variance: str = "posterior",
) -> Tensor:
    """Walk the ascending `steps` backwards by Song et al. 2021 (DDIM), Eq. 12 with the sigma of Eq. 16.

    `eta` = 0 draws nothing, `eta` = 1 is as random as `sample_ddpm`. Shapes: [B, ...].
    """
    chain = diffusion.respaced(steps)
    variance = eta**2 * chain.posterior_variance
    for i in reversed(range(1, len(steps))):
        x_start = predict_start_fn(x_t, _rows(x_t, steps[i]))
        noise = chain.predict_noise(x_t, i, x_start)
        kept = (chain.sqrt_one_minus_alphas_cumprod[i - 1] ** 2 - variance[i]).clamp(min=0).sqrt()
        x_prev = chain.sqrt_alphas_cumprod[i - 1] * x_start + kept * noise
        x_t = x_prev + variance[i].sqrt() * draw_noise(x_t) if eta > 0 else x_prev
    return predict_start_fn(x_t, _rows(x_t, steps[0]))


def sample_one_step(
    diffusion: GaussianDiffusion,
    predict_start_fn: PredictStart,
    x_t: Tensor,
    steps: Sequence[int],
    draw_noise: DrawNoise = torch.randn_like,
    eta: float = 0.0,
    reverse_variance: str = "posterior",
) -> Tensor:
    """Take the prediction at the last of the `steps` as x_0 (DiffuRecSys, Algorithm 3). Shapes: [B, ...]."""
    return predict_start_fn(x_t, _rows(x_t, steps[-1]))


# name -> function; all take the same, also what they do not use.
SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim, "one_step": sample_one_step}


def sample(
    diffusion: GaussianDiffusion,
    predict_start_fn: PredictStart,
    x_T: Tensor,
    method: str = "ddpm",
    num_steps: int | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    draw_noise: DrawNoise | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    reverse_variance: str = "posterior",
) -> Tensor:
    """Return x_0 [B, ...] from noise `x_T` [B, ...] by the named method, one of SAMPLERS.

    `num_steps` visits that many evenly spaced steps (None: all), save by `one_step`. `eta` is for `ddim` alone,
    `reverse_variance` (posterior or beta) for `ddpm`.
    Noise is one independent draw per element from `generator` (None: the global state), or what `draw_noise` gives,
    for example a `SeedNoise`. Nothing in the loop waits for the device, and gradients are up to the caller.
    `callback(step, x_t, x_start)` sees each visited step with the state there and the prediction made from it.

    Raises ValueError on what `check_sampling` does, and where both `generator` and `draw_noise` are given.
    """
    check_sampling(diffusion.num_steps, method, num_steps, eta, reverse_variance)
    if draw_noise is None:
        draw_noise = _generator_noise(generator)
    elif generator is not None:
        raise ValueError("generator and draw_noise must not be given both.")
    steps = strided_steps(diffusion.num_steps, num_steps)
    if callback is not None:
        predict_start_fn = _watched(predict_start_fn, steps, callback)
    return SAMPLERS[method](diffusion, predict_start_fn, x_T, steps, draw_noise, eta, reverse_variance)


def check_sampling(
    total: int,
    method: str = "ddpm",
    num_steps: int | None = None,
    eta: float = 0.0,
    reverse_variance: str = "posterior",
) -> None:
    """Raise ValueError where `sample` would not run on `total` trained steps; for use before any training is spent.

    The messages name the configuration's keys: `sampler` (method), `sampling_steps` (num_steps), `ddim_eta` (eta),
    `reverse_variance`.
    """
    if method not in list(SAMPLERS):
        raise ValueError(f"sampler [{method}] is unknown: choose one of {', '.join(SAMPLERS)}.")
    strided_steps(total, num_steps)
    if not isinstance(eta, Real) or isinstance(eta, bool) or not 0 <= eta <= 1:
        raise ValueError(f"ddim_eta [{eta!r}] must be a number from 0 to 1.")
    if reverse_variance not in REVERSE_VARIANCES:
        raise ValueError(
            f"reverse_variance [{reverse_variance}] is unknown: choose one of {', '.join(REVERSE_VARIANCES)}."
        )
    if method == "ddim" and reverse_variance != "posterior":
        raise ValueError(f"reverse_variance [{reverse_variance}] must be posterior for ddim: ddim_eta sets its noise.")


def strided_steps(total: int, num: int | None = None) -> list[int]:
    """Return `num` evenly spaced steps of 0 .. total - 1 in ascending order (None: all of them).

    The last step is always among them, so that sampling starts from the noise that was trained for, and step 0 where
    `num` > 1. Raises ValueError (key `sampling_steps`) unless 1 <= `num` <= `total`.
    """
    num = total if num is None else check_int("sampling_steps", num, 1, total)
    return [total - 1] if num == 1 else [i * (total - 1) // (num - 1) for i in range(num)]


def _watched(predict_start_fn: PredictStart, steps: Sequence[int], callback) -> PredictStart:
    """Show each prediction to `callback`; every sampler asks for one a step, from the last step on."""
    remaining = reversed(steps)  # plain numbers: reading t would wait for the device

    def predict_start(x_t: Tensor, t: Tensor) -> Tensor:
        x_start = predict_start_fn(x_t, t)
        callback(next(remaining), x_t, x_start)
        return x_start

    return predict_start


def _rows(x: Tensor, step: int) -> Tensor:
    return torch.full((x.shape[0],), step, dtype=torch.long, device=x.device)


def _generator_noise(generator: torch.Generator | None) -> DrawNoise:
    if generator is None:
        return torch.randn_like
    # Drawn where the generator lives, so that a CPU generator gives a GPU the same noise.
    return lambda x: torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
