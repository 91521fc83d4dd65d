"""Classify a picture: python run.py PICTURE [model.pt2 | model.onnx]. Needs no compiler and no scanlab.

model.pt2 needs torch, model.onnx needs onnxruntime; both need numpy and pillow.
"""

import json
import sys
from pathlib import Path

import numpy as np
from loading import load, prepare

here = Path(__file__).resolve().parent
manifest = json.loads((here / "manifest.json").read_text())
names = (here / "classes.txt").read_text().splitlines()
model = load(here / (sys.argv[2] if len(sys.argv) > 2 else next(iter(manifest["models"]))))
logits = model(prepare(sys.argv[1], manifest["batch"], manifest["size"]))[0]
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for index in np.argsort(-shares)[:5]:
    print(f"{shares[index]:6.1%}  {names[index]}")
