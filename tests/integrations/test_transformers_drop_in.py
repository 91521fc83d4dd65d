"""transformers under the drop-in against transformers without it: every family with a layer that it touches."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.shared import filled_once
from helpers.transformers_families import FAMILIES, VARIANTS

transformers = pytest.importorskip("transformers", minversion="5.23")

TESTS = Path(__file__).parents[1]
Observed = dict[tuple[str, str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Observed, Observed]:
    """Outputs of all models without the drop-in and with it, each in a process of its own."""

    def observe(folder: Path) -> None:
        program = [sys.executable, str(TESTS / "helpers" / "observe_transformers.py")]
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "TRANSFORMERS_VERBOSITY": "error"}
        plain = subprocess.Popen([*program, str(folder / "plain")], env=environment)
        subprocess.run([*program, str(folder / "drop-in"), "--drop-in"], env=environment, check=True)
        assert plain.wait() == 0

    folder = filled_once(tmp_path_factory, "observed", observe)
    return torch.load(folder / "plain"), torch.load(folder / "drop-in")


def error(got: Tensor, want: Tensor) -> float:
    """The Euclidean distance as a share of the length of `want`."""
    length = float(want.double().norm())
    return float((got.double() - want.double()).norm()) / (length if length > 0 else 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_drop_in_changes_nothing(observed: tuple[Observed, Observed], family: str) -> None:
    plain, dropped_in = (each[family, "float32"] for each in observed)
    assert dropped_in.keys() == plain.keys()
    for name, want in plain.items():
        assert error(dropped_in[name], want) < (1e-4 if "gradient" in name else 1e-5), name


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in VARIANTS])
def test_autocast_is_as_near_to_float32_as_without_it(observed: tuple[Observed, Observed], family: str) -> None:
    plain, dropped_in = (each[family, "autocast"] for each in observed)
    assert dropped_in.keys() == plain.keys()
    for name, exact in observed[0][family, "float32"].items():
        if name in plain:
            assert dropped_in[name].dtype == plain[name].dtype, name
            assert error(dropped_in[name], exact) < max(1.5 * error(plain[name], exact), 0.05), name


def test_every_family_that_imports_such_functions_is_in_the_table() -> None:
    spec = importlib.util.find_spec("transformers.models")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("*/modeling_*.py")]
    importing = re.compile(r'"(mamba_ssm|causal_conv1d)"|^from (mamba_ssm|causal_conv1d)', re.MULTILINE)
    found = {path.parent.name.replace("_", "") for path in files if importing.search(path.read_text())}
    assert found <= {family.lower().replace("_", "") for family in FAMILIES}


def test_installing_does_not_import_transformers() -> None:
    program = "import sys, scanlab.integrations.mamba_ssm as it; it.install(); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
