"""The native kernel is several times as fast as every peer that can be installed from a registry.

The peers are backends of their own (experiments/peers): each is compared with float64 and timed in the same
interleaved rounds, at the best of the values it offers for each tunable; native runs at its defaults.

    pip install -c constraints.txt -e experiments/peers
    python experiments/against_peers.py
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import common
import pandas as pd
import typer
from speedup_ladder import pooled

from scanlab.bench.context import Candidate
from scanlab.bench.records import Trial
from scanlab.contract import registry
from scanlab.contract.backend import Backend
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.report import tables
from scanlab.report.formatting import milliseconds, scientific, times
from scanlab.report.select import placings

PEERS = ("mambapy", "transformers", "numba", "jax", "onnxruntime", "onnxruntime_linear_attention")
PROBLEMS = (
    ScanProblem(batch=1, dim=384, length=197, layout="dim_last"),
    ScanProblem(batch=1, dim=1536, length=2048, layout="dim_last"),
)
COMPARISONS = 3


def candidates_of(backend: Backend, problem: ScanProblem) -> list[Candidate]:
    """Return a peer at its defaults and with each value of its tunables in turn; native at its defaults."""
    configs = backend.space.one_at_a_time(problem) if backend.name in PEERS else [backend.space.defaults]
    return [Candidate(backend, config) for config in configs]


def measured(problem: ScanProblem, names: tuple[str, ...], seconds: float, folder: Path) -> pd.DataFrame:
    """Return a row for each backend, the fastest first; `over_native` compares medians of pooled blocks."""
    candidates = [each for name in ("native", *names) for each in candidates_of(registry.get(name), problem)]
    taken: dict[str, list[Trial]] = {}
    for seed in range(COMPARISONS):
        found = common.compared(problem, make_inputs(problem), "drawn, seed 0", candidates, seconds, folder, seed)
        for trial in found.trials:
            taken.setdefault(trial.label, []).append(trial)
    rows = []
    for placing in placings([pooled(mine) for mine in taken.values()]):
        measurement, verdict = placing.trial.measurement, placing.trial.verdict
        if measurement is None or verdict is None:
            print(f"{placing.trial.label} {placing.trial.state}: {placing.trial.reason}")
            continue
        first, middle, third = measurement.quartiles_ms
        row = {"problem": problem.key, "backend": placing.backend, "config": tables.config_text(placing.trial.config)}
        rows.append(row | {"quartile1_ms": first, "median_ms": middle, "quartile3_ms": third, "error": verdict.worst})
    frame = pd.DataFrame(rows)
    native = frame.loc[frame.backend == "native", "median_ms"].iloc[0]
    return frame.assign(over_native=frame.median_ms / native).sort_values("median_ms")


def installed(name: str) -> str:
    """Return `name` with the version that is installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def main(
    seconds: Annotated[float, typer.Option(help="Seconds of one comparison; there are three for each problem.")] = 40.0,
    names: Annotated[str, typer.Option(help="Which peers.")] = ",".join(PEERS),
    out: Path = common.RESULTS / "against_peers",
) -> None:
    """Compare the peers that are installed, and write the table."""
    peers = tuple(names.split(","))
    missing = [name for name in peers if name not in registry.names()]
    if missing:
        raise SystemExit(f"no backend {', '.join(missing)}: pip install -c constraints.txt -e experiments/peers")
    caption = f"{common.setting()}; {', '.join(installed(name) for name in peers)}"
    frame = pd.concat([measured(problem, peers, seconds, out) for problem in PROBLEMS])
    spells = dict.fromkeys(("quartile1_ms", "median_ms", "quartile3_ms"), milliseconds)
    spells |= {"error": scientific, "over_native": times}
    text = frame.assign(**{name: frame[name].map(spell) for name, spell in spells.items()})
    sections = {key: mine.drop(columns="problem") for key, mine in text.groupby("problem", sort=False)}
    common.write_page(out, __doc__, caption, {}, sections, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
