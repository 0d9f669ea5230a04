"""Top-k items for any history: `recommend`, `Recommender`, and ``python -m recbole_diffusion.recommend``."""

from recbole_diffusion.recommend.recommender import Recommendation, Recommender, recommend

__all__ = ["Recommendation", "Recommender", "recommend"]
