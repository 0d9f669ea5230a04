"""Diffusion models for sequential recommendation, as a RecBole plugin.

After ``import recbole_diffusion`` RecBole's own functions know every model in ``MODELS`` by name.
"""

from recbole_diffusion import compat

compat.apply()

from recbole_diffusion.registry import MODELS, register  # noqa: E402
from recbole_diffusion.version import __version__  # noqa: E402

register()

__all__ = ["MODELS", "__version__"]
