"""The command line: `scanlab ...` and `python -m scanlab ...`."""

from scanlab.cli.app import main

__all__ = ["main"]
