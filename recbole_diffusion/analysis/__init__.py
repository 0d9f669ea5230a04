"""What the papers look at beyond a metric table: ``python -m recbole_diffusion.analysis --help``."""

# name (also of the CSV) -> title
SECTIONS = {
    "popularity": "Head and long-tail items",
    "length": "Length of the history",
    "seen": "Items of the history",
    "plateau": "Ranking plateau",
    "stages": "Denoising stages",
    "seeds": "Number of seeds",
    "uncertainty": "Uncertainty",
    "diversity": "Diversity of the seeds",
    "map": "Map of the embeddings",
    "curves": "Training curves",
}
