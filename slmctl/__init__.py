"""slmctl: Selective Language Modeling (Rho-1, arXiv 2404.07965), from raw text to compared checkpoints."""

__version__ = "0.1.0"
