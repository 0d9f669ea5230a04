"""What every model here does the same way: item embedding, loss over the items, scoring, seeds, config checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_diffusion.diffusion_utils import (
    GaussianDiffusion,
    SeedNoise,
    check_sampling,
    get_betas,
    get_step_sampler,
    resolve_seeds,
    sample,
    seed_average,
)
from recbole_diffusion.model.layers import ACTIVATIONS, TokenLayout

STEP_BUCKETS = 8
ITEM_LOSSES = ("full", "sampled")
INFERENCE = ("reverse", "one_step")
INITIALIZERS = ("normal", "xavier", "torch")
BETA_RANGES = {"linear": ("beta_start", "beta_end"), "exponential": ("beta_min", "beta_max")}
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DiffusionRecommender(SequentialRecommender):
    """A sequential recommender that generates the embedding of the next item by a diffusion over embeddings.

    A model defines ``calculate_loss(interaction)`` and ``denoiser(interaction, noise)``; this class draws, samples,
    averages over seeds, scores and ranks.
    """

    input_type = InputType.POINTWISE
    dataset_class: type | None = None  # a RecBole dataset of its own, where the model trains on other rows
    random_inference = True  # False where no draw reaches the scores, so that inference_seeds does not either

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.hidden_size = config["hidden_size"]
        self.initializer, self.initializer_range = config["initializer"], config["initializer_range"]
        self.ragged = config["ragged"]
        self.inference, self.sampler = config["inference"], config["sampler"]
        self.sampling_steps, self.ddim_eta = config["sampling_steps"], config["ddim_eta"]
        self.inference_seeds = resolve_seeds(config["inference_seeds"])

        self.item_loss, self.n_sampled_items = config["item_loss"], config["n_sampled_items"]
        self.logits_chunk = config["logits_chunk"]
        self.enable_amp, self.amp_dtype = bool(config["enable_amp"]), AMP_DTYPES[config["amp_dtype"] or "bf16"]
        # Who only ranks with a trained model needs no interactions (see `recommend.Catalogue`).
        if self.item_loss == "sampled" and hasattr(dataset, "inter_feat"):
            counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items).float()
            counts[1:] += 1  # an item never seen as a target may still be drawn
            self.register_buffer("item_log_q", (counts / counts.sum()).log(), persistent=False)

        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.diffusion = GaussianDiffusion(betas_from_config(config.final_config_dict))
        # A model that trains on every step at once has no such key.
        self.step_sampler = get_step_sampler(config["step_sampler"] or "uniform", config["num_steps"])
        # Sum and number of the losses in each of some equal ranges of steps since they were last read.
        self.register_buffer("step_losses", torch.zeros(2, min(STEP_BUCKETS, config["num_steps"])), persistent=False)

    # ------------------------------------------------------------------ configuration

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Raise ValueError, naming key, value and what is allowed, for what no model here can run with."""
        if config.get("train_neg_sample_args") not in (None, "None"):
            raise ValueError(
                f"train_neg_sample_args [{config['train_neg_sample_args']}] must be null for {cls.__name__}: "
                "its loss needs no sampled negatives from the data loader."
            )
        positive = ("hidden_size", "n_layers", "n_heads", "inner_size", "MAX_ITEM_LIST_LENGTH", "num_steps")
        for key in positive:
            check_number(config, key, Integral, 1)
        for key in config:
            if key.endswith("dropout_prob"):
                check_number(config, key, Real, 0, 1)
        check_number(config, "initializer_range", Real, 0)
        check_number(config, "layer_norm_eps", Real, 0)
        if config["hidden_size"] % config["n_heads"]:
            raise ValueError(
                f"hidden_size [{config['hidden_size']}] must be a multiple of n_heads [{config['n_heads']}]."
            )
        check_choice(config, "hidden_act", ACTIVATIONS)
        check_flags(config, "ragged")
        check_number(config, "logits_chunk", Integral, 1)
        if config.get("amp_dtype") is not None:
            check_choice(config, "amp_dtype", AMP_DTYPES)
        if "n_sampled_items" in config:
            check_choice(config, "item_loss", ITEM_LOSSES)
            check_number(config, "n_sampled_items", Integral, 1)
        check_choice(config, "initializer", INITIALIZERS)
        check_choice(config, "inference", INFERENCE)
        betas_from_config(config)
        for schedule, keys in BETA_RANGES.items():  # also where noise_schedule is another
            if all(key in config for key in keys):
                betas_from_config({**config, "noise_schedule": schedule})
        if "step_sampler" in config:
            get_step_sampler(config["step_sampler"], config["num_steps"])
        if "sampling_steps" in config:
            check_choice(config, "sampler", ("ddpm", "ddim"))
            check_sampling(config["num_steps"], config["sampler"], config["sampling_steps"], config["ddim_eta"])
        if config.get("valid_sampling_steps") is not None:
            check_number(config, "valid_sampling_steps", Integral, 1, config["num_steps"] + 1)
        resolve_seeds(config["inference_seeds"])

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as RecBole's models do (normal), by Glorot and Bengio 2010 (xavier), or as PyTorch does (torch).

        The padding item's embedding stays zero. PyTorch's embeddings are N(0, 1), the scale of the diffusion's noise.
        """
        if self.initializer == "torch":
            return
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if self.initializer == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=self.initializer_range)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    # ------------------------------------------------------------------ training

    def history(self, interaction) -> tuple[Tensor, Tensor]:
        """``item_seq`` [B, L] and ``item_seq_len`` [B]; padding beyond the model's longest history is cut off."""
        return interaction[self.ITEM_SEQ][:, : self.max_seq_length], interaction[self.ITEM_SEQ_LEN]

    def layout(self, item_seq_len: Tensor, length: int) -> TokenLayout:
        """The flat order of the tokens of a batch, ragged unless the key ``ragged`` turns it off."""
        return TokenLayout(item_seq_len, length, self.ragged)

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """Weight [n_items, D] and bias [n_items] (or None) that score items: the embeddings, unless a paper differs."""
        return self.item_embedding.weight, None

    def item_cross_entropy(self, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of x [B, D] against target [B] over all items but the padding; per row, [B].

        With ``item_loss: sampled`` over ``n_sampled_items`` items drawn by popularity instead, for catalogues too large
        to score in training.
        """
        weight, bias = self.output_layer()
        if self.item_loss == "sampled" and self.training:
            return sampled_cross_entropy(x, weight, bias, target, self.item_log_q, self.n_sampled_items)
        return full_cross_entropy(x, weight, bias, target, self.logits_chunk)

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

    def autocast(self) -> torch.autocast:
        """Mixed precision for the network at inference, as the trainer has it in training; scores stay in float32."""
        device = self.item_embedding.weight.device.type
        return torch.autocast(device, dtype=self.amp_dtype, enabled=self.enable_amp)

    def sample_start(self, interaction, seeds: list[int]) -> Tensor:
        """Generate the target's embedding from noise for each seed, [S, B, D]; all users share a seed's draws."""
        noise = SeedNoise(seeds)
        with self.autocast():
            return self.run_chain(self.denoiser(interaction, noise), noise, len(interaction[self.ITEM_SEQ_LEN]))

    def run_chain(self, predict_start, noise: SeedNoise, batch: int) -> Tensor:
        """Walk from noise to x_0 as the keys ``inference`` and ``sampler`` say: [S, B, D]."""
        like = self.item_embedding.weight.new_empty(len(noise.generators) * batch, self.hidden_size)
        method = "one_step" if self.inference == "one_step" else self.sampler
        x_start = sample(
            self.diffusion, predict_start, noise(like), method, self.sampling_steps, self.ddim_eta, draw_noise=noise
        )
        return x_start.float().view(-1, batch, self.hidden_size)

    def generate(self, interaction) -> Tensor:
        """Embedding of the item each user would want next, [B, D]: the mean over ``inference_seeds``."""
        return seed_average(lambda part: self.sample_start(interaction, part), self.inference_seeds)

    def item_scores(self, x_start: Tensor, items: slice = slice(None)) -> Tensor:
        """Score items by their inner product with x_start (DiffuRecSys, Eq. 26): [..., D] to [..., n_items].

        Padding gets minus infinity.
        """
        weight, bias = self.output_layer()
        scores = F.linear(x_start, weight[items], None if bias is None else bias[items]).float()
        if not items.start:
            scores[..., 0] = -torch.inf
        return scores

    def full_sort_predict(self, interaction) -> Tensor:
        """Scores of all items, [B, n_items]; the padding item has minus infinity.

        With one seed these are inner products; with several, probabilities averaged over the seeds.
        """
        return self.seed_scores(interaction)

    def seed_scores(self, interaction, return_std: bool = False):
        """Scores as ``full_sort_predict``, with ``return_std`` also their standard deviation over the seeds."""
        probabilities = len(self.inference_seeds) > 1

        def score(part: list[int]) -> Tensor:
            scores = self.item_scores(self.sample_start(interaction, part))
            return scores.softmax(dim=-1) if probabilities else scores

        # As many seeds in a call as `logits_chunk` holds scores of.
        chunk = max(1, self.logits_chunk // (len(interaction[self.ITEM_SEQ_LEN]) * self.n_items))
        result = seed_average(score, self.inference_seeds, chunk, return_std)
        scores = result[0] if return_std else result
        scores[:, 0] = -torch.inf
        return result

    @torch.no_grad()
    def topk(self, interaction, k: int, exclude: Tensor | None = None, return_std: bool = False):
        """The k best items of each user as (scores, items), [B, k] each, without ever holding all scores.

        The scores are those of ``full_sort_predict``. ``exclude`` [B, M] holds items that are no candidates (0: none).
        With ``return_std``, the standard deviation of each score over the seeds comes third.
        """
        x_start = torch.cat([self.sample_start(interaction, [seed]) for seed in self.inference_seeds])
        step = max(1, self.logits_chunk // x_start.shape[:2].numel())
        parts = [slice(first, min(first + step, self.n_items)) for first in range(0, self.n_items, step)]
        if len(self.inference_seeds) > 1:
            # Probabilities need the sum over all items first.
            log_sum = torch.stack([self.item_scores(x_start, part).logsumexp(-1) for part in parts]).logsumexp(0)
        best = items = std = None
        for part in parts:
            every = self.item_scores(x_start, part)
            every = every if len(every) == 1 else (every - log_sum[..., None]).exp_()
            scores = every[0] if len(every) == 1 else every.mean(0)
            if not part.start:
                scores[:, 0] = -torch.inf
            if exclude is not None:
                inside = (exclude >= part.start) & (exclude < part.stop)
                row, _ = inside.nonzero(as_tuple=True)
                scores[row, exclude[inside] - part.start] = -torch.inf
            found, place = scores.topk(min(k, scores.shape[1]))
            spread = every.gather(2, place.expand(len(every), -1, -1)).std(0, correction=0)
            if best is not None:
                found, place = torch.cat([best, found], 1), torch.cat([items, place + part.start], 1)
                spread = torch.cat([std, spread], 1)
                found, order = found.topk(min(k, found.shape[1]))
                place, spread = place.gather(1, order), spread.gather(1, order)
            best, items, std = found, place, spread
        return (best, items, std) if return_std else (best, items)

    def predict(self, interaction) -> Tensor:
        """Score of one given item a row, [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def full_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int) -> Tensor:
    """Cross-entropy of each row, [B], over every item but the padding: x [B, D], weight [n_items, D], target [B].

    At most ``chunk`` logits are held at once: larger batches go in groups of rows, computed again in the backward pass.
    """
    weight, bias, target = weight[1:], None if bias is None else bias[1:], target - 1

    def rows(x: Tensor, target: Tensor) -> Tensor:
        return _CrossEntropy.apply(F.linear(x, weight, bias), target)

    step = max(1, chunk // len(weight))
    if len(x) <= step:
        return rows(x, target)
    pairs = zip(x.split(step), target.split(step), strict=True)
    return torch.cat([checkpoint(rows, *pair, use_reentrant=False) for pair in pairs])


class _CrossEntropy(torch.autograd.Function):
    """``F.cross_entropy`` of each row, in float32, whose gradient overwrites what its forward pass kept."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        log_p, target = logits.log_softmax(-1, dtype=torch.float32), target[:, None]
        ctx.save_for_backward(log_p, target)
        ctx.dtype = logits.dtype
        return -log_p.gather(1, target).squeeze(1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        log_p, target = ctx.saved_tensors
        p = log_p.exp_().scatter_add_(1, target, grad.new_full((1, 1), -1.0).expand_as(target))
        return p.mul_(grad[:, None]).to(ctx.dtype), None


def sampled_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_q: Tensor, n_samples: int
) -> Tensor:
    """Sampled softmax, [B]: the target against ``n_samples`` items drawn from q, each logit less log(n_samples * q).

    The correction makes the sum over the sample an unbiased estimate of the full softmax's denominator (Bengio and
    Senecal 2008). The batch shares the samples; a row's own target does not count among its samples.
    """
    sampled = torch.multinomial(log_q.exp(), n_samples, replacement=True)
    positive, negative = (x * weight[target]).sum(-1), x @ weight[sampled].T
    if bias is not None:
        positive, negative = positive + bias[target], negative + bias[sampled]
    negative = negative - log_q[sampled] - math.log(n_samples)
    negative = negative.masked_fill(sampled == target[:, None], -torch.inf)
    return torch.cat([positive[:, None], negative], dim=1).logsumexp(1) - positive


def betas_from_config(config: Mapping[str, Any]) -> Tensor:
    """The betas of the keys ``noise_schedule``, ``num_steps`` and, where the schedule has them, its range."""
    schedule = config["noise_schedule"]
    keys = BETA_RANGES[schedule] if schedule in list(BETA_RANGES) else ()
    return get_betas(schedule, config["num_steps"], **{key: config[key] for key in keys if key in config})


def check_choice(config: Mapping[str, Any], key: str, allowed) -> None:
    """Raise ValueError unless the key's value is one of ``allowed``."""
    if config[key] not in list(allowed):
        raise ValueError(f"{key} [{config[key]}] is unknown: choose one of {', '.join(map(str, allowed))}.")


def check_flags(config: Mapping[str, Any], *keys: str) -> None:
    """Raise ValueError unless the value of each key is True or False."""
    for key in keys:
        if not isinstance(config[key], bool):
            raise ValueError(f"{key} [{config[key]}] must be True or False.")


def check_number(config: Mapping[str, Any], key: str, kind, low: float, below: float | None = None) -> None:
    """Raise ValueError unless the key's value is of a kind (Integral or Real) and low <= value < below."""
    value = config[key]
    if not isinstance(value, kind) or isinstance(value, bool) or value < low or (below is not None and value >= below):
        limit = f">= {low}" + (f" and < {below}" if below is not None else "")
        raise ValueError(f"{key} [{value}] must be {'an integer' if kind is Integral else 'a number'} {limit}.")
