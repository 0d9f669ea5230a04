"""What every model here does the same way: item embedding, loss over the items, scoring, seeds, ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_diffusion.diffusion_utils import resolve_seeds, seed_average, seed_log_average
from recbole_diffusion.modules.losses import full_cross_entropy, sampled_cross_entropy
from recbole_diffusion.modules.ragged import TokenLayout, last_items
from recbole_diffusion.modules.ranking import topk
from recbole_diffusion.modules.seen import Seen, SeenItems, without_targets

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class SequenceRecommender(SequentialRecommender):
    """A sequential recommender that puts the next item's embedding beside those of all items.

    A model defines ``calculate_loss(interaction)`` and ``sample_start(interaction, seeds)``; this class embeds items,
    offers the loss over them, averages over seeds, scores and ranks.
    """

    input_type = InputType.POINTWISE
    dataset_class: type | None = None  # a RecBole dataset of its own, where the model trains on other rows
    shared_props: tuple[str, ...] = ("common",)  # files of default parameters below the model's own
    position_origins: tuple[str, ...] = ("start", "end")  # what the key positions_from may say
    random_inference = False  # whether inference draws, so that inference_seeds reaches the scores

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.hidden_size = config["hidden_size"]
        self.initializer, self.initializer_range = config["initializer"], config["initializer_range"]
        self.ragged = config["ragged"]
        self.inference_seeds = resolve_seeds(config["inference_seeds"] if "inference_seeds" in config else [0])
        self.item_loss, self.n_sampled_items = config["item_loss"], config["n_sampled_items"]
        self.logits_chunk = config["logits_chunk"]
        self.enable_amp, self.amp_dtype = bool(config["enable_amp"]), AMP_DTYPES[config["amp_dtype"] or "bf16"]
        # Who only ranks with a trained model needs no interactions (see `recommend.Catalogue`).
        if self.item_loss == "sampled" and hasattr(dataset, "inter_feat"):
            counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items).float()
            counts[1:] += 1  # an item never seen as a target may still be drawn
            self.register_buffer("item_log_q", (counts / counts.sum()).log(), persistent=False)
        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.seen_items = SeenItems(config["seen_items"], config["seen_buckets"])

    # ------------------------------------------------------------------ configuration

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Raise ValueError, naming key, value and what is allowed, where keys do not fit each other.

        What each may hold by itself has been checked before, by the table of keys.
        """
        if config.get("train_neg_sample_args") not in (None, "None"):
            raise ValueError(
                f"train_neg_sample_args [{config['train_neg_sample_args']}] must be null for {cls.__name__}: "
                "its loss needs no sampled negatives from the data loader."
            )
        if config.get("transform"):
            raise ValueError(
                f"transform [{config['transform']}] must be null for {cls.__name__}, which reads nothing of it."
            )
        if config["positions_from"] not in cls.position_origins:
            raise ValueError(
                f"positions_from [{config['positions_from']}] must be one of {', '.join(cls.position_origins)} for "
                f"{cls.__name__}."
            )
        if config["hidden_size"] % config["n_heads"]:
            raise ValueError(
                f"hidden_size [{config['hidden_size']}] must be a multiple of n_heads [{config['n_heads']}]."
            )

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

    def advise_from_scratch(self) -> None:
        """Called where training starts and no checkpoint gave the items; a model that needs one logs a warning."""

    def history(self, interaction) -> tuple[Tensor, Tensor]:
        """``item_seq`` [B, L] and ``item_seq_len`` [B], of longer histories the last MAX_ITEM_LIST_LENGTH items."""
        return last_items(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], self.max_seq_length)

    def layout(self, item_seq_len: Tensor, length: int) -> TokenLayout:
        """The flat order of the tokens of a batch, ragged unless the key ``ragged`` turns it off."""
        return TokenLayout(item_seq_len, length, self.ragged)

    def output_layer(self, items: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Weight [n_items, D] and bias [n_items] (or None) that score items: the embeddings, unless a paper differs."""
        return self.item_embedding.weight[items], None

    def seen(self, interaction) -> Seen | None:
        """What ``seen_items`` adds to the logits of the item after each history; None where nothing is added."""
        return self.seen_items.at_last(*self.history(interaction))

    def item_cross_entropy(self, x: Tensor, target: Tensor, seen: Seen | None = None) -> Tensor:
        """Cross-entropy of x [B, D] against target [B] over all items but the padding; per row, [B].

        With ``item_loss: sampled`` over ``n_sampled_items`` items drawn by popularity instead, for catalogues too large
        to score in training. ``seen`` is added to the logits of items of the histories.
        """
        return self._cross_entropy(x, *self.output_layer(), target, without_targets(seen, target))

    def _cross_entropy(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, seen: Seen | None
    ) -> Tensor:
        if self.item_loss == "sampled" and self.training:
            return sampled_cross_entropy(x, weight, bias, target, self.item_log_q, self.n_sampled_items, seen)
        return full_cross_entropy(x, weight, bias, target, self.logits_chunk, seen)

    def seen_loss(self, x: Tensor, target: Tensor, seen: Seen | None) -> Tensor | float:
        """For a loss without a softmax: the cross-entropy by which ``seen_items: learned`` learns its values.

        x [B, D], target [B]; nothing else gets a gradient. 0 where no value is learnt.
        """
        if seen is None or not seen.values.requires_grad:
            return 0.0
        weight, bias = (None if part is None else part.detach() for part in self.output_layer())
        return self._cross_entropy(x.detach(), weight, bias, target, seen).mean()

    # ------------------------------------------------------------------ inference

    def sample_start(self, interaction, seeds: list[int]) -> Tensor:
        """Embedding of the item each user would want next under each seed, [S, B, D]; all users share its draws."""
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        """Mixed precision for the network at inference, as the trainer has it in training; scores stay in float32."""
        device = self.item_embedding.weight.device.type
        return torch.autocast(device, dtype=self.amp_dtype, enabled=self.enable_amp)

    def generate(self, interaction) -> Tensor:
        """Embedding of the item each user would want next, [B, D]: the mean over ``inference_seeds``."""
        return seed_average(lambda part: self.sample_start(interaction, part), self.inference_seeds)

    def query(self, x_start: Tensor) -> Tensor:
        """What ranking multiplies the items' vectors by: x_start itself, [..., D]."""
        return x_start

    def item_scores(self, x_start: Tensor, items: slice = slice(None)) -> Tensor:
        """Score items by their inner product with x_start (DiffuRecSys, Eq. 26): [..., D] to [..., n_items].

        Padding gets minus infinity.
        """
        scores = F.linear(self.query(x_start), *self.output_layer(items)).float()
        if not items.start:
            scores[..., 0] = -torch.inf
        return scores

    def seen_when_ranking(self, interaction) -> Seen | None:
        """As ``seen``; ValueError where nothing is left to rank."""
        seen = self.seen(interaction)
        if self.seen_items.seen_items == "excluded" and seen.rows.bincount().max() >= self.n_items - 1:
            raise ValueError("seen_items [excluded] leaves nothing to rank: a history holds every item.")
        return seen

    def full_sort_predict(self, interaction) -> Tensor:
        """Scores of all items, [B, n_items]; the padding item has minus infinity.

        With one seed these are inner products; with several, the logarithm of the probabilities' mean over the seeds.
        """
        seen = self.seen_when_ranking(interaction)

        def score(part: list[int]) -> Tensor:
            scores = self.item_scores(self.sample_start(interaction, part))
            if seen is not None:
                seen.add_to(scores)
            return scores

        if len(self.inference_seeds) == 1:
            return score(self.inference_seeds)[0]
        # As many seeds in a call as `logits_chunk` holds scores of.
        chunk = max(1, self.logits_chunk // (len(interaction[self.ITEM_SEQ_LEN]) * self.n_items))
        # In a wide model the probabilities themselves would be 0 in float32 for most of the items.
        return seed_log_average(lambda part: score(part).log_softmax(dim=-1), self.inference_seeds, chunk)

    @torch.no_grad()
    def topk(self, interaction, k: int, exclude: Tensor | None = None, return_std: bool = False):
        """The k best items of each user as (scores, items), [B, k] each, without ever holding all scores.

        The scores are those of ``full_sort_predict``. ``exclude`` [B, M] holds items that are no candidates (0: none).
        With ``return_std``, the standard deviation of each item's probability over the seeds comes third.
        """
        x_start = torch.cat([self.sample_start(interaction, [seed]) for seed in self.inference_seeds])
        part_size, seen = max(1, self.logits_chunk // x_start.shape[:2].numel()), self.seen_when_ranking(interaction)

        if self.seen_items.seen_items == "excluded":
            histories = self.history(interaction)[0]
            exclude = histories if exclude is None else torch.cat([exclude, histories], 1)

        def score_part(items: slice) -> Tensor:
            scores = self.item_scores(x_start, items)
            if seen is not None:
                seen.add_to(scores, items)
            return scores

        best = topk(score_part, self.n_items, part_size, k, exclude)
        return tuple(best) if return_std else (best.scores, best.items)

    def predict(self, interaction) -> Tensor:
        """Score of one given item a row, [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)
