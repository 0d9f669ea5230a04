"""What RecBole 1.2.1 needs on today's stack, exact times and ids, and safe checkpoints.

Nothing outside this folder knows of versions.
"""

from recbole_diffusion.compat import atomic_files, checkpoint, distributed, finite, timestamps, versions


def apply() -> None:
    """Put up every bridge the installed versions need. Called once, when the package is imported."""
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
    checkpoint.bridge_checkpoints()
    distributed.bridge_distributed()
