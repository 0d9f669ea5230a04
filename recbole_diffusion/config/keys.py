"""The keys of this package."""

from __future__ import annotations

# What depends on the machine or on how a run is watched, and on no result.
MACHINE_KEYS = {
    *("data_path", "checkpoint_dir", "dataset_save_path", "dataloaders_save_path", "save_dataset", "save_dataloaders"),
    *("device", "gpu_id", "use_gpu", "worker", "local_rank", "world_size", "nproc", "offset", "ip", "port"),
    *("single_spec", "resume", "show_progress", "state", "verbose", "log_wandb", "wandb_project", "config_files"),
}
