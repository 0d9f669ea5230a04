"""The losses that models share: cross-entropy over all or sampled items, and InfoNCE over all pairs of a batch.

Each is computed in parts where it would not fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recbole_diffusion.modules.seen import Seen

# Products computed at once: as many as a CPU's cache holds, or as keep a GPU busy.
BLOCK = {"cpu": 2**19, "cuda": 2**25}


def full_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk: int, seen: Seen | None = None
) -> Tensor:
    """Cross-entropy of each row, [B], over every item but the padding: x [B, D], weight [n_items, D], target [B].

    ``seen`` is added to the logits of items of the histories. At most ``chunk`` logits are held at once: larger batches
    go in groups of rows, computed again in the backward pass.
    """
    n_items = len(weight) - 1

    def rows(x: Tensor, target: Tensor, *seen: Tensor) -> Tensor:
        logits = F.linear(x, weight[1:], None if bias is None else bias[1:])
        return _CrossEntropy.apply(logits, target - 1, *seen)

    step = max(1, chunk // n_items)
    if len(x) <= step:
        return rows(x, target, *_columns(seen))
    parts = []
    for begin in range(0, len(x), step):
        own = None if seen is None else seen.part(begin, begin + step)
        part = slice(begin, begin + step)
        parts.append(checkpoint(rows, x[part], target[part], *_columns(own), use_reentrant=False))
    return torch.cat(parts)


def _columns(seen: Seen | None) -> tuple[Tensor, ...]:
    """Rows, places among the logits without the padding item, and values; nothing where there is nothing to add."""
    return () if seen is None else (seen.rows, seen.items - 1, seen.values)


class _CrossEntropy(torch.autograd.Function):
    """``F.cross_entropy`` of each row, in float32, whose gradient overwrites what its forward pass kept.

    values [M] are added to the logits at rows and columns [M], which are overwritten, too: no one else reads them.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, rows=None, columns=None, values=None) -> Tensor:
        ctx.dtype = logits.dtype
        if values is not None:
            logits = logits.float() if logits.dtype != torch.float32 else logits
            logits[rows, columns] += values.float()
        log_p, target = logits.log_softmax(-1, dtype=torch.float32), target[:, None]
        ctx.save_for_backward(log_p, target, rows, columns)
        return -log_p.gather(1, target).squeeze(1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        log_p, target, rows, columns = ctx.saved_tensors
        p = log_p.exp_().scatter_add_(1, target, grad.new_full((1, 1), -1.0).expand_as(target))
        p = p.mul_(grad[:, None])
        # The values are learnt through the logits they were added to.
        of_values = p[rows, columns] if len(ctx.needs_input_grad) > 2 and ctx.needs_input_grad[4] else None
        return (p.to(ctx.dtype), None, None, None, of_values)[: len(ctx.needs_input_grad)]


def sampled_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    log_q: Tensor,
    n_samples: int,
    seen: Seen | None = None,
) -> Tensor:
    """Sampled softmax, [B]: the target against ``n_samples`` items drawn from q, each logit less log(n_samples * q).

    The correction makes the sum over the sample an unbiased estimate of the full softmax's denominator (Bengio and
    Senecal 2008). The batch shares the samples; a row's own target does not count among its samples. ``seen`` is added
    to the logits of items of the histories.
    """
    sampled = torch.multinomial(log_q.exp(), n_samples, replacement=True)
    positive, negative = (x * weight[target]).sum(-1), x @ weight[sampled].T
    if bias is not None:
        positive, negative = positive + bias[target], negative + bias[sampled]
    if seen is not None:
        own = seen.items == target[seen.rows]
        positive = positive.float().index_put((seen.rows[own],), seen.values[own].float(), accumulate=True)
        rows, columns, values = _among_samples(seen, sampled)
        negative = negative.float().index_put((rows, columns), values.float(), accumulate=True)
    negative = negative - log_q[sampled] - math.log(n_samples)
    negative = negative.masked_fill(sampled == target[:, None], -torch.inf)
    return torch.cat([positive[:, None], negative], dim=1).logsumexp(1) - positive


def _among_samples(seen: Seen, sampled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the seen items among the samples [n], each of which may have been drawn often."""
    ordered, order = sampled.sort()
    begin, end = torch.searchsorted(ordered, seen.items), torch.searchsorted(ordered, seen.items, right=True)
    count = end - begin
    pair = torch.arange(len(count), device=count.device).repeat_interleave(count)
    within = torch.arange(len(pair), device=pair.device) - (count.cumsum(0) - count)[pair]
    return seen.rows[pair], order[begin[pair] + within], seen.values[pair]


def info_nce(query: Tensor, key: Tensor, others: Tensor) -> Tensor:
    """-log exp(q_i . k_i) / (sum_j exp(q_i . k_j) + exp(others_i)), averaged over i: [T, P, D] and [T, P] to [T]."""
    denominator = torch.logaddexp(log_sum_exp_products(query, key), others)
    return (denominator - (query * key).sum(-1)).mean(1)


def log_sum_exp_products(a: Tensor, b: Tensor, skip_diagonal: bool = False) -> Tensor:
    """log sum_j exp(a_i . b_j) for each step: a [T, P, D], b [T, Q, D] to [T, P], in float32.

    With ``skip_diagonal``, for b = a, the sum leaves out j = i; where that leaves nothing, the result is about -1e30.
    Memory is linear in P + Q: the products are made block by block, and once more for the gradient. Under autocast
    they are made in its type, and all that follows in float32.
    """
    device = a.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    with torch.autocast(device, enabled=False):
        return _LogSumExpProducts.apply(a.to(dtype), b.to(dtype), skip_diagonal)


class _LogSumExpProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, skip_diagonal: bool) -> Tensor:
        out = a.new_empty(a.shape[:2], dtype=torch.float32)
        for steps, rows, z in _products(a, b, skip_diagonal):
            top = z.amax(-1, keepdim=True)
            out[steps, rows] = _exp(z.sub_(top)).sum(-1).log_().add_(top.squeeze(-1))
        ctx.save_for_backward(a, b, out)
        ctx.skip_diagonal = skip_diagonal
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        a, b, out = ctx.saved_tensors
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b, dtype=torch.float32)
        for steps, rows, z in _products(a, b, ctx.skip_diagonal):
            z = _exp(z.sub_(out[steps, rows, None])).mul_(grad[steps, rows, None]).to(a.dtype)
            grad_a[steps, rows] = z @ b[steps]
            grad_b[steps] += z.mT @ a[steps, rows]
        return grad_a, grad_b.to(b.dtype), None


def _products(a: Tensor, b: Tensor, skip_diagonal: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Walk over steps, or parts of a step, with their products [steps, rows, Q]."""
    block, (n_steps, n_rows), n_columns = BLOCK.get(a.device.type, BLOCK["cuda"]), a.shape[:2], b.shape[1]
    step_size = max(1, block // (n_rows * n_columns))
    row_size = n_rows if step_size > 1 else max(1, block // n_columns)
    for step in range(0, n_steps, step_size):
        for row in range(0, n_rows, row_size):
            steps, rows = slice(step, step + step_size), slice(row, row + row_size)
            z = (a[steps, rows] @ b[steps].mT).float()
            if skip_diagonal:
                z.diagonal(row, 1, 2).fill_(-1e30)
            yield steps, rows, z


def _exp(z: Tensor) -> Tensor:
    # e^-60 is as good as nothing, and smaller numbers end as denormals, which make a CPU 20 times slower.
    return z.clamp_(min=-60).exp_()
