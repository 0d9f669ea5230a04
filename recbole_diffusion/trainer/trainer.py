"""RecBole's Trainer plus the optimizers and learning-rate schedules of the papers, mixed precision, exact resume."""

from __future__ import annotations

import math
import secrets
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import get_gpu_usage, set_color
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler as schedulers

from recbole_diffusion.compat.checkpoint import load_checkpoint, save_checkpoint
from recbole_diffusion.compat.distributed import (
    from_rank_zero,
    loss_weight,
    of_all_processes,
    rank_and_world,
    sum_over_processes,
)
from recbole_diffusion.compat.files import lock_file, remove_parts
from recbole_diffusion.compat.finite import check_parameters
from recbole_diffusion.compat.progress import bar
from recbole_diffusion.modules.recommender import AMP_DTYPES
from recbole_diffusion.protocols import BothProtocols
from recbole_diffusion.trainer.checks import check_training_config
from recbole_diffusion.trainer.embeddings import hold_still, is_frozen, start_item_embeddings
from recbole_diffusion.trainer.learning_rate import build_lr_lambda
from recbole_diffusion.trainer.resume import (
    best_file_of,
    check_resumable,
    compare_settings,
    data_checksum,
    load_optimizer,
    load_same_keys,
    load_schedule,
    load_weights,
    lock_of,
    random_state,
    set_random_state,
    take_items,
    take_up,
)

GRAD_NORM_EVERY = 20  # without clipping the norm is for the log alone
# How many steps may pass between two looks at the losses: each look waits for the GPU.
CHECK_EVERY = {"cpu": 1, "cuda": 50}


class DiffusionTrainer(BothProtocols, Trainer):
    """RecBole's Trainer for any model that returns one loss, with what diffusion models need beside.

    Config keys beyond RecBole's: ``lr_scheduler``, ``amp_dtype`` (with RecBole's ``enable_amp`` and
    ``enable_scaler``), ``limit_train_batches``. After every epoch ``<name>-last.pth`` is written beside the best
    checkpoint; ``resume_checkpoint`` on it continues the run to the same result to the last bit.

    Raises
    ------
    ValueError
        A training key is out of range, or a loss is not finite (naming epoch and step).
    """

    def __init__(self, config, model):
        check_training_config(config.final_config_dict)
        try:
            Path(config["checkpoint_dir"]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"checkpoint_dir [{config['checkpoint_dir']}] cannot be used: {error}") from error
        super().__init__(config, model)
        # RecBole names the file by the second, and another run may have begun in it.
        path = Path(self.saved_model_file)
        self.saved_model_file = from_rank_zero(lambda: str(path.with_stem(f"{path.stem}-{secrets.token_hex(3)}")))
        self.lr_scheduler = schedulers.LambdaLR(self.optimizer, build_lr_lambda(config["lr_scheduler"], self.epochs))
        self.amp_dtype = AMP_DTYPES[config["amp_dtype"] or "bf16"]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        self.limit_train_batches = config["limit_train_batches"]
        self.curve: list[dict[str, Any]] = []  # what a caller notes after each validation; kept with the state
        self.item_embedding_file = config["item_embedding_file"]
        self.from_scratch = True  # False: somebody has put trained weights in
        self._train_data, self._frozen = None, False
        self._save_last = True
        self._resume_state, self._data_checksum = None, None

    @property
    def last_model_file(self) -> str:
        """Where the state of the last epoch lies: beside the best checkpoint."""
        path = Path(self.saved_model_file)
        return str(path if path.stem.endswith("-last") else path.with_name(f"{path.stem}-last.pth"))

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """Train for one epoch and return the sum of the batch losses, as RecBole's does."""
        self._train_data, self._frozen = train_data, is_frozen(self.model, self.config, epoch_idx)
        if epoch_idx > self.start_epoch and self._save_last:
            self.save_last_checkpoint(epoch_idx - 1)
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        steps = min(len(train_data), self.limit_train_batches or len(train_data))
        progress = bar(train_data, total=steps, desc=f"epoch {epoch_idx + 1}", disable=None if show_progress else True)
        total, pending, grad_norms = None, [], []
        for step, interaction in enumerate(progress):
            if step == steps:
                break
            self.optimizer.zero_grad()
            losses, sync_loss = self._losses(loss_func, interaction.to(self.device))
            weight, share = loss_weight(self.model, interaction, train_data, step)
            pending.append(torch.stack([loss.detach().float() * share for loss in losses]))
            if len(pending) == CHECK_EVERY.get(self.device.type, 1) or step + 1 == steps:
                total = self._add_finite(total, pending, epoch_idx, step)
                pending = []
            grad_norms += self._update(sum(losses) * weight + sync_loss, step)
            if self.gpu_available and show_progress:
                progress.set_postfix_str(set_color("GPU RAM: " + get_gpu_usage(self.device), "yellow"))
        check_parameters(self.model, f"after epoch {epoch_idx}")
        total = sum_over_processes(torch.tensor(total, dtype=torch.float64)).tolist()
        self.tensorboard.add_scalar("Train/gradient_norm", torch.stack(grad_norms).mean().item(), epoch_idx)
        self.tensorboard.add_scalar("Train/learning_rate", self.lr_scheduler.get_last_lr()[0], epoch_idx)
        self._log_steps(epoch_idx)
        self.lr_scheduler.step()
        return total[0] if len(total) == 1 else tuple(total)

    def _losses(self, loss_func, interaction) -> tuple[list[Tensor], Tensor | float]:
        """The parts of a batch's loss, and what keeps the processes of a distributed run in step."""
        sync_loss = 0
        if not self.config["single_spec"]:
            self.set_reduce_hook()
            sync_loss = self.sync_grad_loss()
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.enable_amp):
            losses = loss_func(interaction)
        # Some of RecBole's models return a loss of the shape [1].
        return [loss.reshape(()) for loss in (losses if isinstance(losses, tuple) else (losses,))], sync_loss

    def _update(self, loss: Tensor, step: int) -> list[Tensor]:
        """One step of the optimizer; returns the gradients' norm where it is taken."""
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if self._frozen:
            hold_still(self.model.item_embedding.weight, self.config["freeze_mode"])
        grad_norm = []
        if self.clip_grad_norm or step % GRAD_NORM_EVERY == 0:
            clip = self.clip_grad_norm or {"max_norm": math.inf}
            grad_norm = [clip_grad_norm_(self.model.parameters(), **clip)]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return grad_norm

    def _log_steps(self, epoch_idx: int) -> None:
        """Write to TensorBoard, by range of diffusion steps, the loss and how often the step sampler draws it."""
        if not hasattr(self.model, "read_step_losses"):
            return  # a model of RecBole's own
        losses = self.model.read_step_losses()
        p = self.model.step_sampler.probabilities
        bucket_of = self.model.step_bucket(torch.arange(len(p), device=p.device))
        drawn = p.new_zeros(len(losses)).index_add_(0, bucket_of, p).tolist()
        for bucket, (loss, share) in enumerate(zip(losses, drawn, strict=True)):
            if math.isfinite(loss):
                self.tensorboard.add_scalar(f"Loss/Step_range_{bucket}", loss, epoch_idx)
            self.tensorboard.add_scalar(f"Step_sampler/Step_range_{bucket}", share, epoch_idx)

    def _add_finite(self, total, pending, epoch_idx, step):
        """Add losses that wait on the device to the total, or raise for the first that is not finite."""
        values = torch.stack(pending).double().cpu()
        bad = (~values.isfinite().all(dim=1)).nonzero()
        if len(bad):
            at = step + 1 - len(pending) + int(bad[0])
            raise ValueError(
                f"Training loss is {values[at - step - 1].tolist()} at epoch {epoch_idx}, step {at}. "
                "The last good checkpoint is kept. A lower learning_rate or clip_grad_norm may help."
            )
        sums = values.sum(dim=0).tolist()
        return sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """Train as RecBole's ``fit`` does, keeping the state of the last epoch beside the best checkpoint."""
        self._save_last = saved
        take_items(self.model, train_data._dataset)
        self._data_checksum = data_checksum(self.config) if saved else None
        if self._resume_state is not None:
            (file, states), self._resume_state = self._resume_state, None
            take_up("random_state", file, partial(set_random_state, train_data, self.device), states)
        if not self.start_epoch:
            start_item_embeddings(self.model, self.config, self.item_embedding_file, self.from_scratch)
        # A resumed run may have ended already; RecBole would then overwrite the best checkpoint with the last state.
        ended = self.cur_step > self.stopping_step or 0 < self.epochs <= self.start_epoch
        if ended and valid_data and self.eval_step > 0 and self.best_valid_result is None:  # measured otherwise before
            self._best_weights(valid_data)
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
        if not ended:
            with self._alone() if saved else nullcontext():
                super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
                if saved and self.train_loss_dict:
                    self.save_last_checkpoint(max(self.train_loss_dict))
        return self.best_valid_score, self.best_valid_result

    @contextmanager
    def _alone(self):
        """Hold the run's files for this process, and remove what a killed one left half written.

        Raises ValueError where another process trains the same run, and OSError, before the first epoch rather than
        after it, where nothing can be written.
        """
        if rank_and_world()[0] != 0:
            yield
            return
        path = Path(self.saved_model_file)
        with lock_file(lock_of(path), f"the run of [{path}]"):
            for file in (path, self.last_model_file):
                remove_parts(file)
            yield

    def save_last_checkpoint(self, epoch: int) -> None:
        """Write everything that the next epoch depends on."""
        own, *others = of_all_processes(random_state(self._train_data))
        if rank_and_world()[0] != 0:
            return
        state = {
            "config": self.config,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": dict(self.best_valid_result or {}),
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "train_loss_dict": self.train_loss_dict,
            "curve": self.curve,
            "data_checksum": self._data_checksum,
            "random_state": own,
            "other_random_states": others,
        }
        save_checkpoint(state, self.last_model_file)

    def resume_checkpoint(self, resume_file) -> None:
        """Continue from a checkpoint; from a ``-last.pth`` file the run goes on as if it had never stopped.

        Warns where other parameters than those of the checkpoint are set. The best score so far stands as long as it
        was measured as this run measures.

        Raises
        ------
        FileNotFoundError, ValueError
            As ``compat.load_checkpoint``: missing, truncated, foreign, or of another model; or of another dataset.
        """
        checkpoint = load_checkpoint(resume_file, model=self.config["model"])
        comparable = compare_settings(checkpoint, self.config, resume_file)
        check_resumable(checkpoint, resume_file)
        self.saved_model_file = best_file_of(resume_file)
        self.start_epoch = checkpoint["epoch"] + 1
        if comparable:
            self.cur_step, self.best_valid_score = checkpoint["cur_step"], checkpoint["best_valid_score"]
        load_weights(self.model, checkpoint, resume_file)
        take_up("optimizer", resume_file, partial(load_optimizer, self.optimizer), checkpoint["optimizer"])
        if "random_state" in checkpoint:
            self.best_valid_result = (comparable and checkpoint["best_valid_result"]) or None
            take_up("lr_scheduler", resume_file, partial(load_schedule, self.lr_scheduler), checkpoint["lr_scheduler"])
            take_up("scaler", resume_file, partial(load_same_keys, self.scaler), checkpoint["scaler"])
            self.train_loss_dict = checkpoint["train_loss_dict"]
            self.curve = checkpoint.get("curve", [])
            states = [checkpoint["random_state"], *checkpoint.get("other_random_states", ())]
            self._resume_state = resume_file, states
        else:  # a best checkpoint: the schedule goes on from its epoch
            for group in self.optimizer.param_groups:
                group.setdefault("initial_lr", self.learning_rate)
            factor = self.lr_scheduler.lr_lambdas[0]
            self.lr_scheduler = schedulers.LambdaLR(self.optimizer, factor, last_epoch=self.start_epoch - 1)
        self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")

    def _valid_epoch(self, valid_data, show_progress=False):
        """Validate as RecBole does, with ``valid_sampling_steps`` of the reverse process where the key is set."""
        steps = self.config["valid_sampling_steps"]
        if steps is None or not hasattr(self.model, "sampling_steps"):  # RecBole's own models take no steps
            return super()._valid_epoch(valid_data, show_progress)
        in_test, self.model.sampling_steps = self.model.sampling_steps, steps
        try:
            return super()._valid_epoch(valid_data, show_progress)
        finally:
            self.model.sampling_steps = in_test

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Evaluate as RecBole's ``evaluate`` does, reading the best checkpoint with the safe loader."""
        if eval_data and load_best_model:
            self._best_weights(eval_data, model_file)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def _best_weights(self, data, model_file=None) -> None:
        """Load those of a checkpoint, or of the best one, which must be of the items of ``data``."""
        path = model_file or self.saved_model_file
        best = from_rank_zero(lambda: {**load_checkpoint(path, model=self.config["model"]), "config": None})
        load_weights(self.model, best, path, data._dataset)
        self.logger.info(f"Loading model structure and parameters from {path}")
