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
    pickles,
    timestamps,
    values,
    versions,
)


def apply(settings_of: Callable[[Any], dict[str, Any]]) -> None:
    """Put up every bridge the installed versions need. Called once, when the package is imported.

    ``settings_of(config)`` gives the plain values that checkpoints hold in place of a Config.
    """
    versions.require_recbole()
    versions.bridge_numpy()
    versions.bridge_scipy()
    versions.bridge_pandas()
    versions.bridge_ray()
    versions.bridge_hyperopt()
    versions.bridge_anomaly_detection()
    versions.bridge_download()
    atomic_files.bridge_reading()
    timestamps.bridge_timestamps()
    finite.bridge_scores()
    pickles.bridge_pickles()
    values.bridge_values()
    checkpoint.bridge_checkpoints(settings_of)
    distributed.bridge_distributed()
    determinism.bridge_reproducibility()
