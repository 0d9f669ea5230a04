"""What every diffusion model does the same way: schedule, step sampler, noise, and the chain from noise to the item."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from recbole_diffusion.diffusion_utils import (
    GaussianDiffusion,
    SeedNoise,
    check_sampling,
    get_betas,
    get_step_sampler,
    sample,
)
from recbole_diffusion.modules.recommender import SequenceRecommender

STEP_BUCKETS = 8
BETA_RANGES = {"linear": ("beta_start", "beta_end"), "exponential": ("beta_min", "beta_max")}


class DiffusionRecommender(SequenceRecommender):
    """A sequential recommender that generates the embedding of the next item by a diffusion over embeddings.

    A model defines ``calculate_loss(interaction)`` and ``denoiser(interaction, noise)``; this class draws the noise and
    walks the chain.
    """

    random_inference = True
    shared_props = ("common", "diffusion")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.inference, self.sampler = config["inference"], config["sampler"]
        self.sampling_steps, self.ddim_eta = config["sampling_steps"], config["ddim_eta"]
        self.reverse_variance = config["reverse_variance"]
        self.diffusion = GaussianDiffusion(betas_from_config(config.final_config_dict))
        # A model that trains on every step at once has no such key.
        self.step_sampler = get_step_sampler(config["step_sampler"] or "uniform", config["num_steps"])
        # Sum and number of the losses in each of some equal ranges of steps since they were last read.
        self.register_buffer("step_losses", torch.zeros(2, min(STEP_BUCKETS, config["num_steps"])), persistent=False)

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        super().check_config(config)
        betas_from_config(config)
        for schedule, keys in BETA_RANGES.items():  # also where noise_schedule is another
            if all(key in config for key in keys):
                betas_from_config({**config, "noise_schedule": schedule})
        keys = ("num_steps", "sampler", "sampling_steps", "ddim_eta", "reverse_variance")
        if all(key in config for key in keys):
            check_sampling(*(config[key] for key in keys))
        steps = config.get("valid_sampling_steps")
        if steps is not None and steps > config["num_steps"]:
            raise ValueError(f"valid_sampling_steps [{steps}] must be at most num_steps [{config['num_steps']}].")

    # ------------------------------------------------------------------ training

    @torch.no_grad()
    def record_step_losses(self, t: Tensor, loss: Tensor) -> None:
        """Feed the unweighted losses [B] of the steps t [B] to the step sampler, and to the curves of loss by step."""
        self.step_sampler.update(t, loss)
        self.step_losses.index_add_(1, self.step_bucket(t), torch.stack([loss.float(), torch.ones_like(loss.float())]))

    def step_bucket(self, t: Tensor) -> Tensor:
        """The range of steps that each step of t belongs to, in the curves by step."""
        return t * self.step_losses.shape[1] // self.diffusion.num_steps

    def read_step_losses(self) -> list[float]:
        """Mean loss in each range of steps since the last call (nan where none was drawn)."""
        total, count = self.step_losses
        means = (total / count).tolist()
        self.step_losses.zero_()
        return means

    # ------------------------------------------------------------------ inference

    def denoiser(self, interaction, noise: SeedNoise):
        """Return ``predict_start(x_t, t)`` for a batch [B] and S seeds: x_t [S * B, D] to x_0, seed by seed.

        What does not depend on the step is computed here, once. Further draws that the network needs come from
        ``noise``, so that all users see the same ones.
        """
        raise NotImplementedError

    def sample_start(self, interaction, seeds: list[int]) -> Tensor:
        """Generate the target's embedding from noise for each seed, [S, B, D]; all users share a seed's draws."""
        noise = SeedNoise(seeds)
        with self.chain_autocast():
            return self.run_chain(self.denoiser(interaction, noise), noise, interaction[self.ITEM_SEQ_LEN].shape[0])

    def chain_autocast(self) -> AbstractContextManager:
        """Mixed precision for `denoiser` and the chain that calls what it returns."""
        return self.autocast()

    def run_chain(self, predict_start, noise: SeedNoise, batch: int, steps: int | None = None, callback=None) -> Tensor:
        """Walk from noise to x_0 as the keys ``inference`` and ``sampler`` say: [S, B, D].

        With ``steps`` it is a chain of so many, also where the model infers in one; ``callback`` is that of `sample`.
        """
        like = self.item_embedding.weight.new_empty(len(noise.generators) * batch, self.hidden_size)
        method = "one_step" if self.inference == "one_step" and steps is None else self.sampler
        x_start = sample(
            self.diffusion,
            predict_start,
            noise(like),
            method,
            steps or self.sampling_steps,
            self.ddim_eta,
            draw_noise=noise,
            callback=callback,
            reverse_variance=self.reverse_variance,
        )
        return x_start.float().view(-1, batch, self.hidden_size)


def betas_from_config(config: Mapping[str, Any]) -> Tensor:
    """The betas of the keys ``noise_schedule``, ``num_steps`` and, where the schedule has them, its range."""
    schedule = config["noise_schedule"]
    keys = BETA_RANGES[schedule] if schedule in list(BETA_RANGES) else ()
    return get_betas(schedule, config["num_steps"], **{key: config[key] for key in keys})
