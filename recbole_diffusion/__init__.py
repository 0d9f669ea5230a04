"""Diffusion models for sequential recommendation, as a RecBole plugin.

After ``import recbole_diffusion`` RecBole's own functions know every model in ``MODELS`` by name.
"""

from recbole_diffusion import compat

compat.apply()

from recbole_diffusion.registry import MODELS, register  # noqa: E402
from recbole_diffusion.version import __version__  # noqa: E402

register()

__all__ = ["MODELS", "Recommender", "__version__", "recommend"]


def __getattr__(name: str):
    """`Recommender` on first use: RecBole's own scripts, which import this package for its models, need none of it."""
    if name == "Recommender":
        from recbole_diffusion.recommend import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
