"""The native ops as torch uses them: compiled, exported, transformed, from many threads; what is wrong they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from scanlab.contract.backend import ScanFn
from scanlab.contract.cpu import torch_threads
from scanlab.contract.problem import ScanInputs, ScanProblem, make_inputs
from scanlab_kernels.selective_scan.native import backend as native

PROBLEM = ScanProblem(
    batch=2, dim=20, length=12, state=4, gradients=True, has_delta_bias=False, has_D=True, layout="dim_last"
)
ABSENT = (None,) * len(ScanInputs._fields)


class Mixer(nn.Module):
    """The scan between two projections, as it lies in a Mamba block."""

    def __init__(self) -> None:
        super().__init__()
        dim, state = PROBLEM.dim, PROBLEM.state
        self.sizes = [dim, dim, dim, state, state]
        self.project = nn.Linear(dim, sum(self.sizes))
        self.leave = nn.Linear(dim, dim)
        self.A = nn.Parameter(-torch.rand(dim, state))
        self.D = nn.Parameter(torch.ones(dim))
        self.scan = native.backend.build(PROBLEM)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> the same."""
        u, delta, z, B, C = self.project(x).mT.split(self.sizes, dim=1)
        return self.leave(self.scan(ScanInputs(u, delta, self.A, B, C, self.D, z)).out.mT)


@pytest.fixture(autouse=True, scope="module")
def ops() -> None:
    native.extension.load()


@pytest.fixture
def mixer() -> Mixer:
    torch.manual_seed(0)
    return Mixer()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(PROBLEM.batch, PROBLEM.length, PROBLEM.dim, generator=torch.Generator().manual_seed(1))


def gradients(out: Tensor, module: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.square().sum(), list(module.parameters()))


def arguments(inputs: ScanInputs, *, threads: int = 2, exp: int = 1, isa: int = 0) -> tuple[object, ...]:
    """Return the arguments of the ops for a forward scan with softplus."""
    return (*inputs, *ABSENT, True, False, threads, 16, 16, 1, exp, isa)


def test_inductor_compiles_it_into_one_graph(mixer: Mixer, x: Tensor) -> None:
    torch._dynamo.reset()
    out, want = torch.compile(mixer, fullgraph=True)(x), mixer(x)
    torch.testing.assert_close(out, want)
    for mine, right in zip(gradients(out, mixer), gradients(want, mixer), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


def test_an_exported_module_holds_the_op(mixer: Mixer, x: Tensor) -> None:
    exported = torch.export.export(mixer, (x,))
    assert sum("scanlab" in str(node.target) for node in exported.graph.nodes) == 1
    assert torch.equal(exported.module()(x), mixer(x))


def test_under_autocast_the_scan_takes_what_the_projections_leave(mixer: Mixer, x: Tensor) -> None:
    exact = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    for mine, right in zip(gradients(out, mixer), gradients(exact, mixer), strict=True):
        assert mine.dtype == right.dtype
        torch.testing.assert_close(mine, right, rtol=0.1, atol=0.1 * float(right.abs().max()))


def test_transforms_of_torch_func_see_the_gradients(mixer: Mixer, x: Tensor) -> None:
    parameters: dict[str, Tensor] = dict(mixer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, parameters, (x,)).square().sum()

    batch = torch.stack((x, 2 * x, -x))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, batch)
    for entry, given in enumerate(batch):
        alone = torch.func.grad(loss)(parameters, given)
        for name, want in zip(parameters, gradients(mixer(given), mixer), strict=True):
            torch.testing.assert_close(alone[name], want)
            torch.testing.assert_close(each[name][entry], want)
    torch.testing.assert_close(torch.func.vmap(mixer)(batch), torch.stack([mixer(given) for given in batch]))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_each_tensor_may_be_mapped_over_any_axis(direction: str) -> None:
    problem = PROBLEM.replace(dtype="float64", gradients=True, has_initial_state=True, direction=direction)
    scan, count = native.backend.build(problem), len(ScanInputs._fields)
    given = [tensor for inputs in make_inputs(problem) for tensor in inputs]

    def run(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        sets = [ScanInputs(*tensors[first : first + count]) for first in range(0, len(tensors), count)]
        return tuple(scan(*sets))

    for number, tensor in enumerate(given):
        if tensor is None:
            continue

        def of_one(value: Tensor, number: int = number) -> Tensor:
            return run(*given[:number], value, *given[number + 1 :])[0].square().sum()

        axis = number % (tensor.dim() + 1)
        mapped = torch.stack((tensor, tensor / 2), axis)
        found = torch.func.vmap(torch.func.grad_and_value(of_one), axis)(mapped)
        for entry in range(2):
            leaf = mapped.select(axis, entry).clone().requires_grad_()
            value = of_one(leaf)
            torch.testing.assert_close(found[1][entry], value.detach())
            torch.testing.assert_close(found[0][entry], torch.autograd.grad(value, leaf)[0])


def test_derivatives_that_do_not_exist_are_refused() -> None:
    inputs, last = make_inputs(PROBLEM.replace(has_initial_state=True))[0], "SCANLAB_BACKEND=reference"
    kept, constant = (native.backend.build(PROBLEM.replace(gradients=kept)) for kept in (True, False))

    def of(scan: ScanFn, name: str) -> Callable[[Tensor], Tensor]:
        return lambda tensor: scan(inputs.with_tensors(**{name: tensor})).out.square().sum()

    for name, tensor in inputs.tensors().items():
        for scan in (kept, constant):
            with pytest.raises(NotImplementedError, match=f"no forward-mode derivative.*{last}"):
                torch.func.jvp(of(scan, name), (tensor,), (tensor,))
            with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"no forward-mode.*{last}"):
                of(scan, name)(forward_ad.make_dual(tensor, tensor))
        leaf = tensor.clone().requires_grad_()
        with pytest.raises(NotImplementedError, match=f"scanlab::scan has no derivative.*{last}"):
            of(constant, name)(leaf).backward()
        with pytest.raises(NotImplementedError, match=f"scanlab::scan has no derivative.*{last}"):
            torch.func.grad(of(constant, name))(tensor)
        with pytest.raises(NotImplementedError, match=f"scanlab::scan_backward has no derivative.*{last}"):
            torch.autograd.functional.hessian(of(kept, name), tensor)
        with pytest.raises(NotImplementedError, match="has no .*derivative"):
            torch.func.hessian(of(kept, name))(tensor)
    assert of(constant, "u")(inputs.u).requires_grad is False


def test_the_gradient_op_satisfies_torch(mixer: Mixer) -> None:
    (inputs,) = make_inputs(PROBLEM)
    out, last_state, checkpoints = torch.ops.scanlab.scan_with_checkpoints(*arguments(inputs))
    torch.library.opcheck(
        torch.ops.scanlab.scan_backward.default,
        (torch.ones_like(out), torch.ones_like(last_state), checkpoints, *arguments(inputs)),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_gradients_from_several_python_threads_at_once(mixer: Mixer, x: Tensor) -> None:
    want = gradients(mixer(x), mixer)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: gradients(mixer(x), mixer), range(20)):
            assert all(map(torch.equal, got, want))


@pytest.mark.timing
def test_other_python_threads_go_on_while_it_computes() -> None:
    long = ScanProblem(batch=1, dim=64, length=8000, state=256)
    inputs = make_inputs(long)
    scan = native.backend.build(long, {"threads": 1})
    running, ticks = threading.Event(), []

    def tick() -> None:
        while running.is_set():
            ticks.append(time.perf_counter())

    running.set()
    other = threading.Thread(target=tick)
    other.start()
    try:
        begin = time.perf_counter()
        scan(*inputs)
        end = time.perf_counter()
    finally:
        running.clear()
        other.join()
    # Around the call Python may switch threads; in the middle half of it only where the call lets go of the lock.
    quarter = (end - begin) / 4
    assert any(begin + quarter < tick < end - quarter for tick in ticks)


def test_gradients_work_after_a_fork(mixer: Mixer, x: Tensor) -> None:
    want = gradients(mixer(x), mixer)
    (inputs,) = make_inputs(PROBLEM)
    expected = torch.ops.scanlab.scan(*arguments(inputs))
    child = os.fork()
    if child == 0:
        with torch.inference_mode():  # torch's own matrix products may wait for ever for OpenMP's lost threads
            os._exit(0 if all(map(torch.equal, torch.ops.scanlab.scan(*arguments(inputs)), expected)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(map(torch.equal, gradients(mixer(x), mixer), want))


FIRST_LOADED_IN_A_CHILD = """
import os, sys
import torch, scanlab
torch.set_num_threads(2)
(torch.ones(4_000_000) + 1).sum()  # the parent's team of OpenMP
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as DataLoader does in its workers
    from scanlab_kernels.selective_scan.native import backend
    from scanlab.contract.problem import ScanProblem, make_inputs
    (inputs,) = make_inputs(ScanProblem(batch=2, dim=64, length=20))
    with torch.inference_mode():
        backend.backend.build(ScanProblem(batch=2, dim=64, length=20), {"threads": 2, "channel_tile": 16})(inputs)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_scan_first_loaded_after_a_fork_ends() -> None:
    native.extension.build()
    subprocess.run([sys.executable, "-c", FIRST_LOADED_IN_A_CHILD], check=True, timeout=120)


def test_zero_threads_follow_torch() -> None:
    (inputs,) = make_inputs(ScanProblem(batch=2, dim=64, length=20))
    with torch_threads(1):
        before = len(os.listdir("/proc/self/task"))
        out = torch.ops.scanlab.scan(*arguments(inputs, threads=0))[0]
        assert len(os.listdir("/proc/self/task")) == before
        assert torch.get_num_threads() == 1
    assert torch.equal(out, torch.ops.scanlab.scan(*arguments(inputs, threads=2))[0])


def test_one_to_four_threads_and_repetition_give_the_same_bits() -> None:
    (inputs,) = make_inputs(ScanProblem(batch=2, dim=150, length=70, state=9, groups=3))
    leaves = [tensor.requires_grad_() for tensor in inputs.tensors().values()]
    runs = []
    for threads in (1, 2, 3, 4, 1, 4):
        out, last_state, _ = torch.ops.scanlab.scan_with_checkpoints(*arguments(inputs, threads=threads))
        runs.append((out, last_state, *torch.autograd.grad((out.square().sum(), last_state.square().sum()), leaves)))
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_gradients_of_one_output_add_up_to_those_of_both() -> None:
    (inputs,) = make_inputs(ScanProblem(batch=2, dim=20, length=70, has_z=True))
    leaves = [tensor.double().requires_grad_() for tensor in inputs.tensors().values()]
    out, last_state, _ = torch.ops.scanlab.scan_with_checkpoints(*arguments(ScanInputs(*leaves)))
    weights = torch.randn_like(out), torch.randn_like(last_state)
    one, other, both = (
        torch.autograd.grad(outputs, leaves, given, retain_graph=True, materialize_grads=True)
        for outputs, given in ((out, weights[0]), (last_state, weights[1]), ((out, last_state), weights))
    )
    for first, second, sum_of_both in zip(one, other, both, strict=True):
        torch.testing.assert_close(first + second, sum_of_both)


def test_wrong_tensors_raise_before_anything_is_computed(mixer: Mixer) -> None:
    (inputs,) = make_inputs(PROBLEM.replace(has_initial_state=True, has_delta_bias=True))
    scan = torch.ops.scanlab.scan_with_checkpoints
    out, last_state, checkpoints = scan(*arguments(inputs))
    wrongs = {
        "shorter": lambda tensor: tensor[:-1] if tensor.dim() == 1 else tensor[..., :-1],
        "one axis more": lambda tensor: tensor[None],
        "integers": lambda tensor: tensor.int(),
        "narrow or wide": lambda tensor: tensor.half() if tensor.dtype == torch.float32 else tensor.float(),
        "elsewhere": lambda tensor: tensor.to("meta"),
    }
    grads = {"grad_out": torch.ones_like(out), "grad_last": torch.ones_like(last_state), "checkpoints": checkpoints}
    for how, wrong in wrongs.items():
        for name, tensor in inputs.tensors().items():
            if name in ("B", "C") and how == "one axis more":
                continue  # an axis of groups
            with pytest.raises((ValueError, TypeError)):
                scan(*arguments(inputs._replace(**{name: wrong(tensor)})))
            with pytest.raises((ValueError, TypeError)):
                torch.ops.scanlab.scan_backward(*grads.values(), *arguments(inputs._replace(**{name: wrong(tensor)})))
        for name, tensor in grads.items():
            with pytest.raises((ValueError, TypeError)):
                torch.ops.scanlab.scan_backward(*(grads | {name: wrong(tensor)}).values(), *arguments(inputs))
    with pytest.raises(ValueError, match="checkpoints must be as the scan left them"):
        torch.ops.scanlab.scan_backward(grads["grad_out"], None, checkpoints.mT.contiguous().mT, *arguments(inputs))
    several = {"B": inputs.B[:, None].expand(-1, 2, -1, -1), "C": inputs.C[:, None].expand(-1, 4, -1, -1)}
    with pytest.raises(ValueError, match="as many in B and in C"):
        scan(*arguments(inputs._replace(**several)))
    for settings in (
        {"threads": -1},
        {"threads": 100_000},
        {"threads": 2**32 + 1},
        {"exp": 2},
        {"isa": 99},
        {"isa": -1},
    ):
        with pytest.raises(ValueError, match="must be|this machine has"):
            scan(*arguments(inputs, **settings))


def test_what_is_missing_raises() -> None:
    (inputs,) = make_inputs(PROBLEM)
    native.backend.build(PROBLEM)
    with pytest.raises(ValueError, match="direction 1 lacks one of"):
        torch.ops.scanlab.scan(*inputs, inputs.u, *ABSENT[1:], True, False, 1, 16, 16, 1, 1, 0)
    with pytest.raises(ValueError, match="none of them 0"):
        torch.ops.scanlab.scan(*arguments(inputs._replace(u=inputs.u[..., :0])))
