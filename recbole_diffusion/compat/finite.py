"""NaN and infinity end in an error: RecBole's top-k takes NaN for the greatest score, so that every target is a hit."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

ADVICE = "A lower learning_rate, clip_grad_norm, or settings of a usual size may help."


def bridge_scores() -> None:
    """Check the scores and the parameters of every evaluation, of RecBole's own models as well.

    ``Trainer.evaluate`` hands scores to ``torch.topk`` as they are. NaN there counts as the greatest: a model that
    diverged reaches metrics above those of a healthy one.
    """
    from recbole.trainer import Trainer

    Trainer._full_sort_batch_eval = _checked(Trainer._full_sort_batch_eval)
    Trainer._neg_sample_batch_eval = _checked(Trainer._neg_sample_batch_eval)
    Trainer.evaluate = _with_finite_parameters(Trainer.evaluate)


def _checked(batch_eval):
    @functools.wraps(batch_eval)
    def wrapper(self, batched_data):
        interaction, scores, positive_u, positive_i = batch_eval(self, batched_data)
        check_scores(scores, type(self.model).__name__)
        return interaction, scores, positive_u, positive_i

    return wrapper


def _with_finite_parameters(evaluate):
    """An infinite weight may well give minus infinity, which is no candidate, to the items that it spoils alone."""

    @functools.wraps(evaluate)
    def wrapper(self, *args, **kwargs):
        result = evaluate(self, *args, **kwargs)
        check_parameters(self.model, f"evaluating model [{type(self.model).__name__}]")
        return result

    return wrapper


def check_scores(scores: Tensor, model: str, may_be_empty: bool = False, model_file=None) -> None:
    """Raise ValueError unless the best of each row of scores [B, n] is a finite number.

    Minus infinity marks what is no candidate; with ``may_be_empty`` a row may have no other. The error names the model,
    and where it is given its ``model_file``.
    """
    best = scores.amax(-1)  # of a row with NaN it is NaN
    bad = ~(best.isfinite() | (best == -torch.inf)) if may_be_empty else ~best.isfinite()
    if bad.any():
        kinds = sorted({str(value) for value in best[bad].tolist()})
        whose = f"model [{model}] of model_file [{model_file}]" if model_file else f"model [{model}]"
        raise ValueError(
            f"the scores of {whose} are {', '.join(kinds)} for {int(bad.sum())} of {bad.numel()} rows of a "
            f"batch: it has diverged, or its settings overflow. {ADVICE}"
        )


def check_parameters(model: nn.Module, what: str) -> None:
    """Raise ValueError, beginning with ``what``, unless every parameter is finite."""
    parameters = dict(model.named_parameters())
    if not parameters:
        return
    finite = torch.stack([value.detach().isfinite().all() for value in parameters.values()])
    if not finite.all():
        names = [name for name, good in zip(parameters, finite.tolist(), strict=True) if not good]
        raise ValueError(
            f"{what}: {len(names)} of {len(parameters)} parameters hold NaN or infinity, the first is [{names[0]}]. "
            f"{ADVICE}"
        )
