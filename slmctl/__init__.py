"""slmctl: Selective Language Modeling (Rho-1, arXiv 2404.07965), from raw text to compared checkpoints."""

from slmctl.system.openmp import wait_asleep

__version__ = "0.1.0"

wait_asleep()  # before any of it imports PyTorch
