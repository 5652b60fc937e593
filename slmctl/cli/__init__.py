"""The command line: thin commands over `slmctl.stages`."""

from slmctl.cli.application import app
from slmctl.cli.process import entry, main

__all__ = ["app", "entry", "main"]
