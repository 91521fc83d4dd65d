"""Imports point downward only: read from the source with ast, held against one picture of the house."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top of the house to its foundation. A module may import from its own layer and from those below.
# `scanlab.kernels` stands beside the lab: nothing imports it by name but its own files.
LAYERS = (
    ("scanlab.__main__",),
    ("scanlab.cli",),
    ("scanlab.integrations",),
    ("scanlab.suites", "scanlab.validate", "scanlab.export"),
    ("scanlab.models", "scanlab.explanation"),
    ("scanlab.mixer",),
    ("scanlab.deploy", "scanlab.report"),
    ("scanlab.testing",),
    ("scanlab.lab.tune",),
    ("scanlab.lab.finals", "scanlab.lab.replay", "scanlab.lab.tuned"),
    ("scanlab.lab.lengths", "scanlab.lab.study", "scanlab.lab.attempt", "scanlab.lab.check"),
    ("scanlab.lab.fleet",),
    ("scanlab.lab.ledger", "scanlab.lab.importance"),
    ("scanlab.lab.storage", "scanlab.lab.alike"),
    ("scanlab.lab.race",),
    ("scanlab.lab.standings",),
    ("scanlab.lab.pace",),
    ("scanlab.lab.heat",),
    ("scanlab.lab.prove",),
    ("scanlab.lab.results",),
    ("scanlab.lab.measure", "scanlab.lab.verify"),
    ("scanlab.lab.measurement",),
    ("scanlab.lab.kin",),
    (
        "scanlab.lab.machine",
        "scanlab.lab.intervals",
        "scanlab.lab.surroundings",
        "scanlab.lab.ceilings",
        "scanlab.lab.owner",
        "scanlab.lab.budget",
        "scanlab.lab.deadline",
    ),
    ("scanlab.registry",),
    ("scanlab.backend",),
    ("scanlab.threads",),
    ("scanlab.space",),
    ("scanlab.problem",),
    ("scanlab.errors",),
)


def layer_of(module: str) -> int | None:
    for depth, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return depth
    return None


def modules(folder: str, package: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


LAB = modules("scanlab", "scanlab") | modules("kernels/mixer", "scanlab.mixer")
KERNELS = modules("kernels/selective_scan", "scanlab.kernels")

# The mixer's ops are built for the same instruction sets as the native scan, out of the same vectors; those on a GPU
# run where its scan does, on the same arithmetic.
SHARED_WITH_MIXER = {
    f"scanlab.kernels.{name}"
    for name in (
        "extension",
        "native",
        "once",
        "triton",
        "triton_math",
        "triton_queue",
        "triton_tile",
        "triton_version",
    )
}


def imports_of(path: Path) -> set[str]:
    """The scanlab modules that a file imports, lazily inside functions included; not those for types only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in LAB or whole in KERNELS else str(node.module))
    return {name for name in found if name.split(".")[0] == "scanlab" and name != "scanlab"}


@pytest.mark.parametrize("module", [name for name in LAB if name not in ("scanlab", "scanlab.lab")])
def test_every_module_has_a_layer_and_imports_downward(module):
    own = layer_of(module)
    assert own is not None, f"{module} is in no layer"
    for imported in imports_of(LAB[module]):
        if module.startswith("scanlab.mixer") and imported in SHARED_WITH_MIXER:
            continue
        depth = layer_of(imported)
        assert depth is not None, f"{module} imports {imported}, which is in no layer"
        assert depth >= own, f"{module} (layer {own}) imports {imported} (layer {depth}), which is above it"


@pytest.mark.parametrize("module", list(KERNELS))
def test_kernels_know_the_contract_and_nothing_of_the_lab(module):
    contract = layer_of("scanlab.backend")
    for imported in imports_of(KERNELS[module]):
        if imported.startswith("scanlab.kernels"):
            continue
        depth = layer_of(imported)
        assert depth is not None, f"{module} imports {imported}"
        assert depth >= contract, f"{module} imports {imported}"


def test_no_layer_is_imaginary():
    for names in LAYERS:
        for name in names:
            assert name in LAB, f"{name} is in LAYERS and not in the package"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("optuna", {f"scanlab/lab/{name}.py" for name in ("study", "fleet", "ledger", "storage", "importance")}),
        ("pandas", {"scanlab/report"}),
        ("matplotlib", {"scanlab/report"}),
    ],
)
def test_a_heavy_library_is_imported_in_its_one_place(library, homes):
    for path in (*LAB.values(), *KERNELS.values()):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        if library in names:
            place = path.relative_to(ROOT).as_posix()
            assert any(place == home or place.startswith(home + "/") for home in homes), f"{place} imports {library}"
