"""``python -m recbole_diffusion.compare``: see ``experiments/compare.py``."""

from recbole_diffusion.experiments.compare import compare, main

__all__ = ["compare"]

if __name__ == "__main__":
    main()
