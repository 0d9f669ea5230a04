"""Configuration: the keys, what they may hold, and the checks. It imports nothing else of this package."""
