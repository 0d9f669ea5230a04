"""Top-k items for any history: `recommend`, `Recommender`, and ``python -m recbole_diffusion.recommend``."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for those who read and do not run: editors, type checkers, the site
    from recbole_diffusion.recommend.recommender import Recommendation, Recommender, recommend

__all__ = ["Recommendation", "Recommender", "recommend"]


def __getattr__(name: str):
    """What needs RecBole, on first use: the command reads its flags first."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.recommender"), name)


class _Callable(ModuleType):
    """Lets ``from recbole_diffusion import recommend`` be the function, which has the name of its package."""

    def __call__(self, *args, **options):
        return self.recommend(*args, **options)


sys.modules[__name__].__class__ = _Callable
