"""Common parts of the peers: capabilities, availability, and conversion of tensors."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from scanlab.contract.backend import EVERY_DIRECTION, Backend, Capabilities, ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Space, Tunable
from scanlab_kernels.selective_scan import bidirectional as directions

Make = Callable[[ScanProblem, Config], Callable[[ScanInputs], ScanOutput]]


def peer(
    name: str, summary: str, rank: int, file: str, packages: tuple[str, ...], make: Make, *choices: Tunable
) -> Backend:
    """Return the backend whose forward scan `make` builds; it is available where all of `packages` are."""

    def unavailable() -> str | None:
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        return f"it needs {' and '.join(missing)}: pip install {' '.join(missing)}" if missing else None

    def directed(problem: ScanProblem, config: Config) -> ScanFn:
        return directions.directed(make(problem, config), problem)

    return Backend(
        name=name,
        summary=summary,
        rank=rank,
        sources=(Path(file), Path(__file__)),
        space=Space(choices),
        capabilities=Capabilities(directions=EVERY_DIRECTION),
        make=directed,
        unavailable=unavailable,
    )


def without_groups(values: Tensor) -> Tensor:
    """Return B or C as (batch, state, length), without an axis of a single group."""
    return values if values.dim() == 3 else values[:, 0]
