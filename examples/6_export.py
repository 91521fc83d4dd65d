"""Export a Vision Mamba as a graph for ONNX Runtime, which runs without scanlab.

    python examples/6_export.py

Needs the extras `lab` and `onnx`. Ends with the largest difference between the logits of the graph, in a process of its
own, and those of the model (rounding, below 1e-4).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scanlab import VisionMamba
from scanlab.export.bundle import export

parser = argparse.ArgumentParser(description="Export a Vision Mamba.")
parser.add_argument("--to", type=Path, default=Path("vim-onnx"), help="the folder to write; new, or empty")
asked = parser.parse_args()

torch.manual_seed(0)
model = VisionMamba(img_size=32, patch_size=8, stride=8, depth=2, embed_dim=64, num_classes=10).eval()
exported = export(model, asked.to, ["onnx"], origin={"model": "a small Vision Mamba", "weights": "random"})

for check in exported.checks:
    print(check.reason or f"{check.file}: logits differ by {check.difference:.1e} of the largest.")
assert exported.passed
print(f"wrote {asked.to}: {', '.join(sorted(path.name for path in asked.to.iterdir()))}")
