"""Importing scanlab is light: what it loads is seen in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import scanlab

HEAVY = ("optuna", "pandas", "matplotlib", "triton", "sklearn", "typer", "rich", "transformers", "huggingface_hub")


def loaded_after(statement: str) -> set[str]:
    program = (
        f"import sys, json\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


USE = """
import scanlab
scanlab.selective_scan_fn
scanlab.explain()
scanlab.VisionMamba
from scanlab.contract import registry
registry.get("reference")
"""


def test_importing_what_people_use_loads_nothing_heavy():
    with_torch_alone = loaded_after("import torch")
    assert not (loaded_after(USE) - with_torch_alone) & set(HEAVY)


def test_dir_lists_what_is_public_alone():
    assert {name for name in dir(scanlab) if not name.startswith("__")} == set(scanlab.__all__)
    assert "__version__" in dir(scanlab)
