"""What the papers look at beyond a metric table: ``python -m recbole_diffusion.analysis --help``."""
