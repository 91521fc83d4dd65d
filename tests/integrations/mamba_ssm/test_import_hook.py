"""Imports after install, in the situations of users, and the state after uninstall."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.official_names import loaded, untouched
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import UnavailableError
from scanlab.integrations import mamba_ssm as drop_in
from scanlab.integrations.mamba_ssm import manifest
from scanlab.integrations.mamba_ssm.ops import selective_scan_interface as scan

INPUTS = make_inputs(ScanProblem(batch=2, dim=4, length=6, state=3))[0][:-1]


@pytest.fixture(autouse=True)
def world():
    with untouched():
        yield


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules, given by path, where imports find them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(sources: dict[str, str]) -> None:
        for dotted, source in sources.items():
            *packages, module = dotted.split(".")
            folder = tmp_path
            for package in packages:
                folder /= package
                folder.mkdir(exist_ok=True)
                (folder / "__init__.py").touch()
            (folder / f"{module}.py").write_text(source)
        importlib.invalidate_caches()

    return write


THEIR_INTERFACE = """
import selective_scan_cuda

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    "theirs"
    if u.is_cpu:
        raise RuntimeError("theirs on cpu")
    return "theirs on " + u.device.type

def helper(*arguments):
    return selective_scan_cuda.fwd(*arguments)
"""


@pytest.mark.parametrize("name", sorted(manifest.MODULES))
def test_with_neither_installed_every_module_is_there(name):
    drop_in.install()
    module = importlib.import_module(name)
    assert all(hasattr(module, each) for each in manifest.served(name))
    unprovided = [each for home, _, names in manifest.UNPROVIDED for each in names if home == name]
    assert not any(hasattr(module, each) for each in unprovided)


def test_the_names_that_people_import():
    drop_in.install()
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    from mamba_ssm import Mamba, selective_scan_fn
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.modules.mamba_simple import Block
    from mamba_ssm.ops.selective_scan_interface import bimamba_inner_fn, mamba_inner_fn, mamba_inner_fn_no_out_proj
    from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    functions = [selective_scan_fn, mamba_inner_fn, mamba_inner_fn_no_out_proj, bimamba_inner_fn, layer_norm_fn]
    functions += [rms_norm_fn, selective_state_update, causal_conv1d_fn, causal_conv1d_update]
    assert all(inspect.isfunction(function) for function in functions)
    assert all(issubclass(each, torch.nn.Module) for each in (Mamba, Block, RMSNorm))
    assert Mamba is mamba_simple.Mamba
    assert selective_scan_fn(*INPUTS, delta_softplus=True).shape == INPUTS[0].shape


@pytest.mark.parametrize(
    ("module", "name", "cure"),
    [
        ("mamba_ssm", "Mamba3", "install mamba_ssm"),
        ("mamba_ssm.ops.triton.ssd_bmm", "_bmm_chunk_fwd", "call mamba_chunk_scan_combined"),
        ("mamba_ssm.ops.triton.layernorm_gated", "_layer_norm_fwd", "call .*public functions"),
        ("mamba_ssm.utils.generation", "capture_graph", "without them"),
        ("mamba_ssm.distributed.tensor_parallel", "ColumnParallelLinear", "one machine"),
    ],
)
def test_what_is_not_provided_raises_when_it_is_used(module, name, cure):
    drop_in.install()
    imported: dict[str, type] = {}
    exec(f"from {module} import {name} as thing", imported)
    thing = imported["thing"]
    with pytest.raises(UnavailableError, match=rf"{module}.{name} is not provided .*{cure}"):
        thing(1, two=2)


def test_code_with_a_fallback_finds_that_a_name_is_missing():
    drop_in.install()
    try:
        from mamba_ssm import Mamba3
    except ImportError:
        Mamba3 = None
    assert Mamba3 is None
    with pytest.raises(ImportError, match="cannot import name 'Mamba3' from 'mamba_ssm': scanlab.* install mamba_ssm"):
        from mamba_ssm import Mamba3
    with pytest.raises(ImportError, match="cannot import name 'Mambo' from 'mamba_ssm': scanlab.* lacks it."):
        from mamba_ssm import Mambo  # noqa: F401  # there is no such name
    with pytest.raises(AttributeError, match="no attribute 'Mamba3': scanlab.* install mamba_ssm"):
        _ = importlib.import_module("mamba_ssm").Mamba3
    assert getattr(importlib.import_module("mamba_ssm"), "Mamba3", None) is None


def test_the_package_has_its_modules_as_attributes_and_a_version():
    drop_in.install()
    import causal_conv1d
    import mamba_ssm

    assert mamba_ssm.ops.selective_scan_interface.selective_scan_fn is mamba_ssm.selective_scan_fn
    assert mamba_ssm.modules.mamba_simple.Mamba is mamba_ssm.Mamba
    assert not hasattr(mamba_ssm.modules, "mamba3")
    assert Path(mamba_ssm.__file__).exists()  # printed by scripts that tell where they import from
    assert importlib.metadata.version("mamba_ssm") == mamba_ssm.__version__
    assert importlib.metadata.version("causal-conv1d") == causal_conv1d.__version__
    assert importlib.metadata.metadata("mamba-ssm")["Name"] == "mamba_ssm"
    assert importlib.metadata.version("torch")
    drop_in.uninstall()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("mamba_ssm")


def test_an_installed_package_keeps_its_version(tmp_path, monkeypatch):
    folder = tmp_path / "mamba_ssm-1.2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mamba_ssm\nVersion: 1.2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    drop_in.install()
    assert importlib.metadata.version("mamba_ssm") == "1.2.0"


@pytest.mark.parametrize("name", ["custom_fwd", "custom_bwd"])
def test_the_decorators_of_autograd_functions_follow_autocast_of_the_cpu(name):
    drop_in.install()
    decorators = importlib.import_module("mamba_ssm.utils.torch")

    class Double(torch.autograd.Function):
        @staticmethod
        @decorators.custom_fwd(cast_inputs=torch.float32)
        def forward(ctx, x):
            ctx.dtype = x.dtype
            return 2 * x

        @staticmethod
        @decorators.custom_bwd
        def backward(ctx, grad):
            assert ctx.dtype == torch.float32
            return 2 * grad

    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = Double.apply(x)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))


def test_what_nobody_has_is_still_missing():
    drop_in.install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm.ops.triton.no_such_module")
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from mamba_ssm.ops.selective_scan_interface import no_such_name")


def test_nothing_is_left_after_uninstall():
    drop_in.install()
    drop_in.install()
    importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    assert "mamba_ssm" in loaded()
    drop_in.uninstall()
    drop_in.uninstall()
    assert not loaded()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm")


def test_a_package_that_is_there_is_wrapped_and_keeps_its_gpu(write):
    write({"mamba_ssm.ops.selective_scan_interface": THEIR_INTERFACE})
    drop_in.install()
    from mamba_ssm.ops import selective_scan_interface as interface

    out = interface.selective_scan_fn(*INPUTS, delta_softplus=True)
    torch.testing.assert_close(out, scan.selective_scan_fn(*INPUTS, delta_softplus=True))
    elsewhere = [tensor.to("meta") for tensor in INPUTS]
    assert interface.selective_scan_fn(*elsewhere) == "theirs on meta"
    assert interface.selective_scan_fn(u=elsewhere[0], delta=elsewhere[1], A=0, B=0, C=0) == "theirs on meta"
    assert interface.selective_scan_fn.__doc__ == "theirs"
    assert "helper" in inspect.getsource(interface)
    # what it lacks is added, and a module it lacks is served
    assert interface.bimamba_inner_fn is scan.bimamba_inner_fn
    assert importlib.import_module("mamba_ssm.ops.triton.layer_norm").RMSNorm


THEIR_NORM = """
def layer_norm_fn(x, weight, bias, residual=None, eps=1e-6, prenorm=False, residual_in_fp32=False, is_rms_norm=False):
    raise RuntimeError("no GPU at all")

def rms_norm_fn(x, weight, bias, gain_of_the_fork=1.0):
    return "theirs, with a gain"
"""


def test_a_release_with_another_order_of_parameters_is_served_by_name(write):
    """mamba_ssm 1.x has eps in the fifth place, 2.x a second input."""
    write({"mamba_ssm.ops.triton.layernorm": THEIR_NORM})
    drop_in.install()
    norm = importlib.import_module("mamba_ssm.ops.triton.layernorm")
    x = torch.randn(3, 8)
    torch.testing.assert_close(
        norm.layer_norm_fn(x, torch.ones(8), torch.zeros(8), None, 0.5),
        torch.nn.functional.layer_norm(x, (8,), eps=0.5),
    )


def test_a_function_whose_own_parameters_are_used_stays_as_it_is(write):
    write({"mamba_ssm.ops.triton.layernorm": THEIR_NORM})
    drop_in.install()
    norm = importlib.import_module("mamba_ssm.ops.triton.layernorm")
    assert norm.rms_norm_fn(torch.ones(2, 4), torch.ones(4), None, 2.0) == "theirs, with a gain"
    assert norm.rms_norm_fn(torch.ones(2, 4), torch.ones(4), None, gain_of_the_fork=1.0).shape == (2, 4)


@pytest.mark.parametrize("root", ["copied.mamba_ssm", "copied.bimamba_ssm", "copied_mamba_ssm", "renamed.here"])
def test_a_copy_within_another_package_or_by_another_name_is_wrapped(write, caplog, root):
    write(
        {
            f"{root}.ops.selective_scan_interface": THEIR_INTERFACE,
            f"{root}.ops.triton.layernorm": "import no_such_compiler",
            f"{root}.modules.mamba_simple": "class Mamba: origin = 'the fork'",
            f"{root}.modules.broken": "import no_such_package",
        }
    )
    drop_in.install()
    interface = importlib.import_module(f"{root}.ops.selective_scan_interface")
    out = interface.selective_scan_fn(*INPUTS, delta_softplus=True)
    torch.testing.assert_close(out, scan.selective_scan_fn(*INPUTS, delta_softplus=True))
    assert not hasattr(interface, "bimamba_inner_fn")
    assert importlib.import_module(f"{root}.ops.triton.layernorm").RMSNorm(4)(torch.ones(2, 4)).shape == (2, 4)
    assert f"{root}.ops.triton.layernorm cannot be imported here" in caplog.text
    assert importlib.import_module(f"{root}.modules.mamba_simple").Mamba.origin == "the fork"
    for missing in (f"{root}.modules.broken", f"{root}.ops.triton.selective_state_update"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(missing)
    drop_in.uninstall()
    with pytest.raises(RuntimeError, match="theirs on cpu"):
        interface.selective_scan_fn(*INPUTS)
    for name in [name for name in sys.modules if name.partition(".")[0] == root.partition(".")[0]]:
        del sys.modules[name]


ANOTHER_SCAN = """
from mamba_ssm.ops.selective_scan_interface import SelectiveScanFn

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    return {factor} * SelectiveScanFn.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, False)
"""


@pytest.mark.parametrize("root", ["copied.mamba_ssm", "renamed"])
def test_a_copy_that_computes_something_else_is_called_as_it_is(write, caplog, root):
    """VideoMambaPro's copy starts from another state, by the same parameters."""
    write({f"{root}.ops.selective_scan_interface": ANOTHER_SCAN.format(factor=2)})
    drop_in.install()
    interface = importlib.import_module(f"{root}.ops.selective_scan_interface")
    expected = scan.selective_scan_fn(*INPUTS, delta_softplus=True)
    for _ in range(2):
        torch.testing.assert_close(interface.selective_scan_fn(*INPUTS, delta_softplus=True), 2 * expected)
    (record,) = caplog.records
    assert f"{root}.ops.selective_scan_interface.selective_scan_fn computes something else" in record.getMessage()
    for name in [name for name in sys.modules if name.partition(".")[0] == root.partition(".")[0]]:
        del sys.modules[name]


def test_a_copy_that_computes_the_same_is_replaced(write, caplog):
    write({"copied.mamba_ssm.ops.selective_scan_interface": ANOTHER_SCAN.format(factor=1)})
    drop_in.install()
    interface = importlib.import_module("copied.mamba_ssm.ops.selective_scan_interface")
    torch.testing.assert_close(
        interface.selective_scan_fn(*INPUTS, delta_softplus=True), scan.selective_scan_fn(*INPUTS, delta_softplus=True)
    )
    assert not caplog.records
    for name in [name for name in sys.modules if name.startswith("copied")]:
        del sys.modules[name]


def test_beside_a_package_that_is_there_what_could_not_be_used_is_missing(write):
    write({"mamba_ssm.ops.selective_scan_interface": THEIR_INTERFACE})
    drop_in.install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm.modules.mamba3")


def test_the_compiled_modules_that_a_package_misses_are_served(write):
    write({"mamba_ssm.ops.selective_scan_interface": THEIR_INTERFACE})
    with pytest.raises(ModuleNotFoundError, match="selective_scan_cuda"):
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    drop_in.install()
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    u, delta, A, B, C, D, z, bias = INPUTS
    out, kept, gated = interface.helper(u, delta, A, B[:, None], C[:, None], D, z, bias, True)
    expected, last = scan.selective_scan_fn(*INPUTS, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(gated, expected)
    torch.testing.assert_close(out * torch.nn.functional.silu(z), expected)
    torch.testing.assert_close(kept[:, :, -1, 1::2], last)


def test_a_module_that_cannot_be_imported_is_replaced_aloud(write, caplog):
    write({"mamba_ssm.ops.triton.layer_norm": "raise RuntimeError('no GPU at all')"})
    drop_in.install()
    module = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
    assert module.RMSNorm(4)(torch.ones(2, 4)).shape == (2, 4)
    (record,) = caplog.records
    assert (
        "mamba_ssm.ops.triton.layer_norm cannot be imported here (RuntimeError: no GPU at all)" in record.getMessage()
    )
    drop_in.uninstall()
    with pytest.raises(RuntimeError, match="no GPU at all"):
        importlib.import_module("mamba_ssm.ops.triton.layer_norm")


def test_what_was_imported_before_is_wrapped_wherever_it_is_held_and_given_back(write):
    write(
        {
            "mamba_ssm.ops.selective_scan_interface": THEIR_INTERFACE.replace("import selective_scan_cuda", ""),
            "user_of_the_scan": "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as held",
        }
    )
    user = importlib.import_module("user_of_the_scan")
    try:
        theirs = user.held
        drop_in.install()
        interface = sys.modules["mamba_ssm.ops.selective_scan_interface"]
        assert user.held is interface.selective_scan_fn is not theirs
        assert user.held(*INPUTS, delta_softplus=True).shape == INPUTS[0].shape
        drop_in.uninstall()
        assert user.held is interface.selective_scan_fn is theirs
        assert not hasattr(interface, "bimamba_inner_fn")
    finally:
        del sys.modules["user_of_the_scan"]


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "notes.txt").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    drop_in.install()
    assert importlib.import_module("mamba_ssm").__version__ == manifest.VERSIONS["mamba_ssm"]


def test_installing_loads_neither_kernels_nor_what_is_slow_to_import():
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import scanlab.integrations.mamba_ssm as m; m.install()\n"
        "new = {name for name in set(sys.modules) - before}\n"
        "print([name for name in new if name.startswith(('triton', 'transformers', 'huggingface_hub', 'mamba_ssm'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_line_says_who_serves(tmp_path):
    program = Path(tmp_path / "script.py")
    program.write_text(
        "import scanlab.integrations.mamba_ssm as m; m.install()\n"
        "import torch\nfrom mamba_ssm import selective_scan_fn\n"
        "for length in (5, 6, 7):\n"
        "    x = torch.rand(1, 4, length)\n"
        "    selective_scan_fn(x, x, -torch.rand(4, 3), torch.rand(1, 3, length), torch.rand(1, 3, length))\n"
    )
    environment = {"SCANLAB_BACKEND": "reference", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("scanlab: reference")
    assert "asked for by name" in line


def test_strict_is_honoured(monkeypatch, tmp_path):
    from scanlab.runtime import dispatch

    monkeypatch.setenv("SCANLAB_STRICT", "1")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("SCANLAB_BACKEND", raising=False)
    dispatch.clear()
    drop_in.install()
    interface: ModuleType = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    with pytest.raises(UnavailableError, match="SCANLAB_STRICT=1 makes this an error"):
        interface.selective_scan_fn(*INPUTS, delta_softplus=True)
    dispatch.clear()
