"""What RecBole 1.2.1 needs on today's stack, and safe checkpoints. Nothing outside this folder knows of versions."""

from recbole_diffusion.compat import checkpoint, versions


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
    checkpoint.bridge_checkpoints()
