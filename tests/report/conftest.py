"""Makes the records of the lab's tests importable here: lab_records."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
