"""Inference averaged over seeds: the same draws for every user under one seed, whatever the batch and the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .schedules import check_int

MAX_SEED = 2**32 - 1  # the CPU generator reads no more than 32 bits of a seed


def resolve_seeds(inference_seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds that `inference_seeds` names: a list as it is, a count n as 0 .. n - 1.

    Raises ValueError on a count below 1, an empty list, a seed outside 0 .. 2^32 - 1 or given twice.
    """
    if not isinstance(inference_seeds, list | tuple):
        return list(range(check_int("inference_seeds", inference_seeds, 1)))
    seeds = [check_int("inference_seeds", seed, 0, MAX_SEED) for seed in inference_seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"inference_seeds [{inference_seeds}] must be at least one seed, each given once.")
    return seeds


class SeedNoise:
    """Standard normal noise of `seeds`, each from its own generator; the global random state is not touched.

    Create one per batch: the k-th draw of a seed is then the same in every batch, for every user, however the seeds are
    grouped. Noise is drawn in float32 on the CPU and moved, so a GPU sees the same values. A draw depends on its whole
    shape: draw noise per position for the longest sequence, then cut it.

    Raises ValueError as `resolve_seeds` does.
    """

    def __init__(self, seeds: int | Sequence[int]):
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in resolve_seeds(seeds)]

    def draw(self, *shape: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the next draw of every seed, [S, *shape]."""
        noise = [torch.randn(shape, generator=g, device="cpu", dtype=torch.float32) for g in self.generators]
        return torch.stack(noise).to(device, dtype, non_blocking=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the next draw in the shape of x [S * B, ...], which lies seed by seed: the `draw_noise` of a sampler.

        Raises ValueError where the rows of x are not a multiple of the seeds.
        """
        batch_size = x.shape[0] // len(self.generators)
        if x.shape[0] % len(self.generators):
            raise ValueError(f"rows [{len(x)}] must be a multiple of the {len(self.generators)} seeds.")
        return expand_seeds(self.draw(*x.shape[1:], device=x.device, dtype=x.dtype), batch_size)


def expand_seeds(draw: Tensor, batch_size: int) -> Tensor:
    """Give each of `batch_size` rows its seed's draw: [S, ...] to [S * B, ...], seed by seed.

    With one seed the result is a view, whose rows share memory: do not write into it.
    """
    return draw.unsqueeze(1).expand(-1, batch_size, *draw.shape[1:]).flatten(0, 1)


def seed_average(
    score_fn: Callable[[list[int]], Tensor],
    seeds: int | Sequence[int],
    chunk: int | None = None,
    return_std: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the scores averaged over `seeds`, float32 [B, n_items] (DiffuRecSys, Algorithm 3).

    `score_fn(part)` gives the scores [len(part), B, n_items] of some of the seeds. All go in one call unless `chunk`
    limits how many; that bounds memory and leaves the result as it is. With `return_std`, the standard deviation of
    each score over the seeds comes second (population: 0 for one seed; nan for a score of minus infinity). The scores
    of one seed come back as they are, without a copy.

    Raises ValueError as `resolve_seeds` does, on `chunk` below 1 and on scores of another number of seeds.
    """
    count, total, squares = 0, None, 0.0
    for scores in _seed_parts(score_fn, seeds, chunk):
        part_total = scores[0] if len(scores) == 1 else scores.sum(0)
        if return_std:
            # Squares about each part's own mean, then between the means: no cancellation (Chan et al. 1979).
            squares = squares + (scores - part_total / len(scores)).square().sum(0)
            if count:
                between = part_total / len(scores) - total / count
                squares = squares + between.square() * (count * len(scores) / (count + len(scores)))
        total = total + part_total if count else part_total
        count += len(scores)
    mean = total if count == 1 else total / count
    return (mean, (squares / count).sqrt()) if return_std else mean


def seed_log_average(
    score_fn: Callable[[list[int]], Tensor], seeds: int | Sequence[int], chunk: int | None = None
) -> Tensor:
    """Return the logarithm of the average over `seeds`, where `score_fn` gives logarithms; float32 [B, n_items].

    As `seed_average` otherwise, and without an underflow: what is minus infinity under every seed stays that.
    """
    count, total = 0, None
    for scores in _seed_parts(score_fn, seeds, chunk):
        part_total = scores.logsumexp(0)
        total = part_total if total is None else torch.logaddexp(total, part_total)
        count += len(scores)
    return total - math.log(count)


def _seed_parts(score_fn, seeds: int | Sequence[int], chunk: int | None) -> Iterator[Tensor]:
    """The scores of at most `chunk` seeds at a time, in float32, their number checked."""
    seeds = resolve_seeds(seeds)
    chunk = len(seeds) if chunk is None else check_int("chunk", chunk, 1)
    for first in range(0, len(seeds), chunk):
        part = seeds[first : first + chunk]
        scores = score_fn(part).float()
        if len(scores) != len(part):
            raise ValueError(f"scores of the shape [{tuple(scores.shape)}] must have the {len(part)} seeds first.")
        yield scores
