"""The core installation, without any extra: scans, a model, the drop-in, and what the command line says."""

from __future__ import annotations

import subprocess
import sys

CORE_ONLY = """
import sys

class OnlyCore:
    blocked = {
        "PIL", "huggingface_hub", "jax", "matplotlib", "numba", "onnx", "onnxruntime", "onnxscript", "optuna",
        "pandas", "psycopg", "rich", "scipy", "sklearn", "sqlalchemy", "tabulate", "transformers", "triton", "typer",
    }

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyCore())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in OnlyCore.blocked else found(name, package)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a process that can import the core's libraries alone."""
    return subprocess.run([sys.executable, "-c", CORE_ONLY + program], capture_output=True, text=True, check=False)


def test_the_scan_and_a_model_run_without_any_extra():
    done = run("""
import torch, scanlab
u, delta, z = (torch.randn(1, 8, 20) for _ in range(3))
B, C = (torch.randn(1, 4, 20) for _ in range(2))
out = scanlab.selective_scan_fn(u, delta, -torch.rand(8, 4), B, C, z=z, delta_softplus=True, backend="reference")
model = scanlab.VisionMamba(
    img_size=32, patch_size=16, embed_dim=16, depth=1, num_classes=3, scan="reference"
).eval()
with torch.no_grad():
    print(tuple(out.shape), tuple(model(torch.zeros(1, 3, 32, 32)).shape))
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(1, 8, 20) (1, 3)"


def test_the_drop_in_runs_without_any_extra():
    done = run("""
import os
os.environ["SCANLAB_BACKEND"] = "reference"
import torch
import scanlab.integrations.mamba_ssm as drop_in
drop_in.install()
from mamba_ssm import Mamba
print(tuple(Mamba(16)(torch.randn(1, 10, 16)).shape))
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(1, 10, 16)"


def test_a_command_names_the_extra_that_it_needs():
    done = run("""
from scanlab.cli import main
main(["tune"])
""")
    assert done.returncode == 3
    assert "pip install 'scanlab[lab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version_need_no_extra_and_no_torch():
    done = run("""
from scanlab.cli import main
for words in (["--help"], ["--version"]):
    try:
        main(words)
    except SystemExit as ended:
        assert ended.code == 0
print("torch" in sys.modules)
""")
    assert done.returncode == 0, done.stderr
    assert "scanlab 0.2.0" in done.stdout
    assert done.stdout.endswith("False\n")
