"""Training: RecBole's Trainer with what the papers need beside it, and exact resume."""

from recbole_diffusion.trainer.checks import check_training_config
from recbole_diffusion.trainer.embeddings import check_item_embeddings
from recbole_diffusion.trainer.learning_rate import LR_SCHEDULES, build_lr_lambda
from recbole_diffusion.trainer.resume import load_weights
from recbole_diffusion.trainer.trainer import DiffusionTrainer

__all__ = [
    "LR_SCHEDULES",
    "DiffusionTrainer",
    "build_lr_lambda",
    "check_item_embeddings",
    "check_training_config",
    "load_weights",
]
