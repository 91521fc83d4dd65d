"""Tune a whole model, deploy the choice, and see which backends serve it.

    python examples/3_tune_a_model.py                                    # the digits model, about a minute
    python examples/3_tune_a_model.py --model vim-tiny --budget 5m

Every op of the model is tuned, then whole models are compared: all defaults, the assembled winners and their
neighbours. Ends with the choices for the model and each op, and a page with the model's breakdown. Your profile is not
touched: the one of this tutorial lies in its folder, which `XDG_DATA_HOME` names on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description="Tune a model, and deploy the choice.")
parser.add_argument("--model", default="digits")
parser.add_argument("--budget", default="30s", help="time of measuring")
parser.add_argument("--out", type=Path, default=Path("runs/model"), help="the folder of the records and the report")
asked = parser.parse_args()

os.environ["XDG_DATA_HOME"] = str(asked.out.resolve())
command = [sys.executable, "-m", "scanlab", "tune", "--model", asked.model, "--budget", asked.budget, "--json"]
done = subprocess.run([*command, "--out", str(asked.out)], stdout=subprocess.PIPE, check=False)
if not done.stdout or done.returncode not in (0, 3):  # the command has said why
    sys.exit(done.returncode)

found = json.loads(done.stdout)  # the code 3 is explained there: too little could be measured
print(found["model"]["why"] if found["model"] else "No choice: whole models were not compared.")
for op in found["ops"]:
    print(f"  {op['op']}  {op['problem']}: {op['evidence']}")
if asked.model == "digits":
    import torch

    import scanlab
    from scanlab.models.digits import digits_model, digits_test_set

    images, labels = digits_test_set()
    with torch.inference_mode():
        right = (digits_model()(images[:16]).argmax(1) == labels[:16]).sum()
    print(scanlab.explain())
    print(f"{right} of 16 digits are right. Open {asked.out / 'report' / 'index.html'} in a browser.")
