"""The op of examples/moving_average, installed for this process and the processes that it starts."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "moving_average"


def install_moving_average(monkeypatch, folder: Path) -> None:
    """Put the example and the entry points of its pyproject.toml where Python looks for packages."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    about = folder / "scanlab_moving_average-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for place in (EXAMPLE, folder):
        monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (EXAMPLE, folder))))
