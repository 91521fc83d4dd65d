"""The command line: `scanlab ...` and `python -m scanlab ...`.

Exit codes: 0 done; 1 a check failed (a wrong scan, a broken logit budget, a choice that no longer holds);
2 bad input; 3 it cannot run here (no compiler, no GPU, no backend); 130 interrupted, and what was measured is kept.
"""

from scanlab.cli.app import main

__all__ = ["main"]
