"""This package's version, and the one of RecBole that it stands on."""

from importlib import metadata

__version__ = "0.1.0"
RECBOLE_VERSION = "1.2.1"


def require_recbole() -> None:
    """Raise ImportError, with the command that mends it, where RecBole is missing or of another version."""
    try:
        found = metadata.version("recbole")
    except metadata.PackageNotFoundError:
        found = None
    if found != RECBOLE_VERSION:
        here = "which is not installed" if found is None else f"but {found} is installed"
        raise ImportError(
            f"recbole-diffusion needs RecBole {RECBOLE_VERSION}, {here}. "
            f"Run: pip install --no-deps recbole=={RECBOLE_VERSION}"
        )
