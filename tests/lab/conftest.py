"""Makes the helper modules of this folder importable: lab_records and lab_fakes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
