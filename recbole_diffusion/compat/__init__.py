"""What RecBole 1.2.1 needs on today's stack, exact times and ids, and safe checkpoints.

Nothing outside this folder knows of versions.
"""

from collections.abc import Callable
from typing import Any

from recbole_diffusion.compat import (
    atomic_files,
    checkpoint,
    determinism,
    distributed,
    finite,
    pandas_calls,
    pickles,
    progress,
    timestamps,
    values,
    versions,
)


def apply(settings_of: Callable[[Any], dict[str, Any]]) -> None:
    """Put up every bridge the installed versions need. Called once, when the models are registered.

    ``settings_of(config)`` gives the plain values that checkpoints hold in place of a Config.
    """
    versions.bridge_numpy()
    versions.bridge_scipy()
    versions.bridge_pandas()
    versions.bridge_ray()
    versions.bridge_hyperopt()
    versions.bridge_anomaly_detection()
    versions.bridge_collector()
    versions.bridge_download()
    versions.bridge_folders()
    atomic_files.bridge_reading()
    pandas_calls.bridge_pandas_calls()
    timestamps.bridge_timestamps()
    finite.bridge_scores()
    pickles.bridge_pickles()
    values.bridge_values()
    checkpoint.bridge_checkpoints(settings_of)
    distributed.bridge_distributed()
    progress.bridge_progress()
    determinism.bridge_reproducibility()
