"""Tune a scan on this machine, and read the choice and the report.

    python examples/2_tune_a_scan.py            # about half a minute
    python examples/2_tune_a_scan.py --budget 3m

Ends with the choice, its gain over the defaults, and a page to open in a browser. Your profile is not touched: the one
of this tutorial lies in its folder. Three backends take part, to be quick; leave --backends out, and all do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description="Tune a scan, and read the report.")
parser.add_argument("--budget", default="20s", help="time of measuring")
parser.add_argument("--out", type=Path, default=Path("runs/tutorial"), help="the folder of the records and the report")
asked = parser.parse_args()

problem = "batch=1,dim=192,length=256"
environment = os.environ | {"SCANLAB_PROFILE": str(asked.out / "profile.json")}
command = [sys.executable, "-m", "scanlab", "tune", "--problem", problem, "--budget", asked.budget, "--json"]
command += ["--backends", "reference chunked native"]
done = subprocess.run([*command, "--out", str(asked.out)], env=environment, stdout=subprocess.PIPE, check=False)
if not done.stdout or done.returncode not in (0, 3):  # the command has said why
    sys.exit(done.returncode)

(found,) = json.loads(done.stdout)  # the code 3 is explained there: too little could be measured
print(f"Evidence: {found['evidence']}. {found['why']}")
print(f"Tried {found['tried']} configurations.")
page = asked.out / "report" / "index.html"
if page.exists():  # nothing is written where the machine was too busy for a single trial
    print(f"Open {page} in a browser.")
