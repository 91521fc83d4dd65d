"""Make random calls until the time is over, and say what is wrong with their outcomes.

    cd tests
    python -m fuzz.campaign --minutes 5                         # every op, from a random seed
    python -m fuzz.campaign --ops linear --seed 7 --calls 1     # one call again
    python -m fuzz.campaign --sanitize                          # C++ under AddressSanitizer and UBSan, built at first

Calls are made in a child process, so that one that kills it is reported by its op and seed and the rest goes on. Ends
with status 1 where a fault was found.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import IO

from fuzz import sanitize
from fuzz.case import judge
from fuzz.generators import GENERATORS, draw_case
from fuzz.modes import mode
from fuzz.page import write_page
from scanlab_kernels.cpu.extension import extension as cpu
from scanlab_kernels.cross_scan_2d.native import extension as cross_scan
from scanlab_kernels.selective_scan import cpp_torch
from scanlab_kernels.selective_scan.native.backend import extension as scan
from scanlab_kernels.ssd.native.backend import extension as ssd

CALLS_OF_A_CHILD = 3000
LIBRARIES = (cpu, scan, cross_scan, ssd, cpp_torch.LIBRARY)  # built before the first call, which takes minutes
LONGEST_CALL_S = 300.0  # the first one of transformers imports it
SANITIZER = re.compile(r"^.*(ERROR: AddressSanitizer|runtime error:)", re.MULTILINE)


def attempt(name: str, seed: int) -> tuple[str, list[str]]:
    """Make one call, and return its kind and what is wrong with its outcome."""
    case = draw_case(name, seed)
    with mode(seed) as how:
        try:
            faults = judge(case)
        except Exception:  # noqa: BLE001 - of a reference: the rest of the campaign goes on
            faults = [f"cannot be judged: {traceback.format_exc()[-1500:]}"]
    return case.kind, [f"{name} {seed}: {fault}\n    {case}\n    {how}" for fault in faults]


def serve(ops: list[str], seed: int, calls: int, deadline: float, log: IO[str]) -> None:
    """Make calls, and write a line of JSON before and after each."""
    faulthandler.enable()
    for library in LIBRARIES:
        library.load()
    warnings.simplefilter("ignore")
    logging.disable()
    for number in range(seed, seed + calls):
        if time.monotonic() > deadline:
            return
        for name in ops:
            faulthandler.dump_traceback_later(LONGEST_CALL_S, exit=True)
            print(json.dumps({"op": name, "seed": number}), file=log, flush=True)
            kind, faults = attempt(name, number)
            print(json.dumps({"op": name, "kind": kind, "faults": faults}), file=log, flush=True)
    faulthandler.cancel_dump_traceback_later()


def run_child(
    ops: list[str], seed: int, calls: int, seconds: float, *, is_sanitized: bool
) -> tuple[collections.Counter[str], list[str], int]:
    """Make calls in a child; return how many of each kind of each op there were, the faults, and the next seed."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as log:
        words = [sys.executable, "-m", "fuzz.campaign", "--child", log.name, "--ops", ",".join(ops)]
        words += ["--seed", str(seed), "--calls", str(calls), "--minutes", str(seconds / 60)]
        words += ["--sanitize"] if is_sanitized else []
        variables = sanitize.environment() if is_sanitized else None
        folder = Path(__file__).parent.parent
        child = subprocess.run(words, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True)
        lines = [json.loads(line) for line in log if line.endswith("\n")]
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    for line in lines:
        if "kind" in line:
            counts[f"{line['op']} {line['kind']}"] += 1
            faults += line["faults"]
    last = next((line for line in reversed(lines) if "seed" in line), None)
    if child.returncode:
        where = f"{last['op']} {last['seed']}" if last else "the start"
        faults.append(f"{where}: ended with status {child.returncode}\n{_last_words(child.stderr)}")
    return counts, faults, (last["seed"] if last else seed) + 1


def _last_words(errors: str) -> str:
    """Return what a sanitizer says first, or else the end of what a process said before it ended."""
    found = SANITIZER.search(errors)
    return errors[-4000:] if found is None else errors[found.start() :][:4000]


def main() -> int:
    """Run a campaign; return the status to end with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--ops", default=",".join(GENERATORS), help="names with commas between")
    parser.add_argument("--seed", type=int, help="of the first call (default: random)")
    parser.add_argument("--calls", type=int, default=10**9, help="of each op")
    parser.add_argument("--sanitize", action="store_true", help="run the C++ ops under AddressSanitizer and UBSan")
    parser.add_argument("--page", type=Path, help="a Markdown file for the numbers of calls and faults")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    ops = asked.ops.split(",")
    unknown = set(ops) - set(GENERATORS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: must be among {', '.join(GENERATORS)}")
    if asked.child is not None:
        if asked.sanitize:
            sanitize.use_sanitized_libraries()
        with asked.child.open("w") as log:
            serve(ops, asked.seed, asked.calls, time.monotonic() + 60 * asked.minutes, log)
        return 0
    _, failures, _ = run_child(ops, 0, 0, 0.0, is_sanitized=asked.sanitize)  # builds what is missing
    if failures:
        print(*failures, sep="\n")
        return 1
    deadline = time.monotonic() + 60 * asked.minutes
    first = seed = random.randrange(10**9) if asked.seed is None else asked.seed
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    print(f"from seed {first}", flush=True)
    while time.monotonic() < deadline and seed < first + asked.calls:
        calls = min(CALLS_OF_A_CHILD, first + asked.calls - seed)
        some, found, seed = run_child(ops, seed, calls, deadline - time.monotonic(), is_sanitized=asked.sanitize)
        counts += some
        faults += found
        for fault in found:
            print(fault, flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:8} {name}")
    if asked.page is not None:
        sanitizing = "SANITIZE=1 " if asked.sanitize else ""
        command = f"make fuzz {sanitizing}MINUTES={asked.minutes:g} ARGS='--seed {first}'"
        write_page(asked.page, counts, faults, command, is_sanitized=asked.sanitize)
    print(f"{counts.total():8} calls, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
