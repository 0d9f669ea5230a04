"""The mathematics that the diffusion models share; it needs PyTorch and nothing else."""

from .ensemble import SeedNoise, expand_seeds, resolve_seeds, seed_average, seed_log_average
from .gaussian import GaussianDiffusion
from .guidance import drop_condition, guided_start
from .samplers import SAMPLERS, check_sampling, sample, sample_ddim, sample_ddpm, sample_one_step, strided_steps
from .schedules import SCHEDULES, get_betas
from .step_samplers import LossAwareStepSampler, UniformStepSampler, get_step_sampler

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "GaussianDiffusion",
    "LossAwareStepSampler",
    "SeedNoise",
    "UniformStepSampler",
    "check_sampling",
    "drop_condition",
    "expand_seeds",
    "get_betas",
    "get_step_sampler",
    "guided_start",
    "resolve_seeds",
    "sample",
    "sample_ddim",
    "sample_ddpm",
    "sample_one_step",
    "seed_average",
    "seed_log_average",
    "strided_steps",
]
