"""Top-k items for any history: `recommend`, `Recommender`, and ``python -m recbole_diffusion.recommend``."""

import sys
from types import ModuleType

from recbole_diffusion.recommend.recommender import Recommendation, Recommender, recommend

__all__ = ["Recommendation", "Recommender", "recommend"]


class _Callable(ModuleType):
    """Lets ``from recbole_diffusion import recommend`` be the function, which has the name of its package."""

    __call__ = staticmethod(recommend)


sys.modules[__name__].__class__ = _Callable
