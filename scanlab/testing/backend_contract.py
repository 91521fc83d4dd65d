"""The backend contract as pytest classes: four lines test a backend, a third party's as well as ours.

Problems that a backend claims are compared with the float64 reference; any other it must reject with a reason.
A backend that cannot run on this machine has its computing tests skipped, with its own reason shown.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

import pytest
import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.backend import Backend, Capabilities, OpFn
from scanlab.contract.base import Problem
from scanlab.contract.cpu import torch_threads
from scanlab.contract.op import Inputs, map_tensors, tensors_of, with_gaps
from scanlab.contract.problem import ScanInputs, ScanProblem
from scanlab.contract.space import Config, config_key
from scanlab.contract.verify import reference_outputs, relative_error, verify
from scanlab.errors import ConfigError, RejectedError, UnavailableError

# Time for which a call is repeated; a data race shows in some calls only.
REPEATS_S = 0.05


class OpContract:
    """Contract of a backend of any op: subclass as Test..., set `backend`, and let pytest collect it.

    Attributes:
        backend: The backend under test.
        config: The configuration under which every claim is tested; its missing tunables take their defaults.
        corners: The problems that are tested where the backend claims them and must be rejected elsewhere; those of
            its op by default. A backend that compiles for seconds may take fewer.
    """

    backend: ClassVar[Backend]
    config: ClassVar[Config] = {}
    corners: ClassVar[tuple[Problem, ...] | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise each test by the claims of the backend."""
        modes = (False, True) if self.backend.capabilities.gradients else (False,)
        problems = {
            "claimed": self.claimed(),
            "mode": [self.plain().replace(gradients=gradients) for gradients in modes],
            "differentiated": [self.plain().replace(gradients=True) for gradients in modes if gradients],
            "repeated": self.repeated(),
        }
        none = pytest.param(
            None, marks=pytest.mark.skip(reason="the backend claims no problem of this kind"), id="none"
        )
        for name in problems.keys() & set(metafunc.fixturenames):
            metafunc.parametrize(name, [pytest.param(each, id=each.key) for each in problems[name]] or [none])
        if "legal" in metafunc.fixturenames:
            metafunc.parametrize("legal", list(self.configs()), ids=config_key)

    def plain(self) -> Problem:
        """Return the first corner without gradients that the backend claims, in its first dtype."""
        can = self.backend.capabilities
        corners = (
            each.replace(dtype=can.dtypes[0], device=can.devices[0], gradients=False)
            for each in registry.op(self.backend.op).corners
        )
        return next(each for each in corners if self.backend.rejects(each) is None)

    def configs(self) -> Iterator[Config]:
        """Return `config` and, in turn, each tunable at each other value, as far as legal for the plain problem."""
        return self.backend.space.one_at_a_time(self.plain(), self.config)

    def problems(self) -> Iterator[Problem]:
        """Yield every problem that is either tested or must be rejected: the corners, on the backend's device."""
        corners = registry.op(self.backend.op).corners if self.corners is None else self.corners
        device = self.backend.capabilities.devices[0]
        yield from (corner.replace(device=device) for corner in corners)
        yield self.plain().replace(device="nowhere")

    def claimed(self) -> list[Problem]:
        """Return the problems that the backend claims."""
        return [problem for problem in self.problems() if self.backend.rejects(problem) is None]

    def repeated(self) -> list[Problem]:
        """Return the problems whose calls are repeated: the probes of the op that are claimed, or the plain one."""
        probes = registry.op(self.backend.op).probes if self.corners is None else ()
        return [each for each in probes if self.backend.rejects(each) is None] or [self.plain()]

    def inputs(self, problem: Problem, seed: int = 0) -> Inputs:
        """Return the inputs that the op draws for `problem`."""
        return registry.op(problem.op).make_inputs(problem, seed)

    def build(self, problem: Problem, config: Config | None = None) -> OpFn:
        """Build the function under test; skip with the backend's reason where it cannot run on this machine."""
        reason = self.backend.unavailable()
        if reason is not None:
            pytest.skip(f"{self.backend.name} cannot run here: {reason}")
        return self.backend.build(problem, self.config if config is None else config)

    def check(self, function: OpFn, problem: Problem, inputs: Inputs, repeats_s: float = 0.0) -> None:
        """Assert that outputs and gradients agree with the reference, and that the inputs are unchanged."""
        verdict = verify(function, reference_outputs(problem, inputs), repeats_s)
        assert verdict.passed, f"{problem.key}: {verdict.reason}"

    def test_agrees_with_the_reference(self, claimed: Problem) -> None:
        self.check(self.build(claimed), claimed, self.inputs(claimed))

    def test_rejects_with_a_reason_and_computes_nothing(self) -> None:
        def must_not_run(problem: Problem, config: Config) -> NoReturn:
            raise AssertionError(f"make was called for {problem.key}")

        guarded = dataclasses.replace(self.backend, make=must_not_run, unavailable=lambda: None)
        for problem in self.problems():
            reason = guarded.rejects(problem)
            if reason is not None:
                assert reason, f"{problem.key} is rejected without a reason"
                with pytest.raises(RejectedError, match=self.backend.name) as raised:
                    guarded.build(problem)
                assert reason in str(raised.value)

    def test_defaults_are_legal(self) -> None:
        space = self.backend.space
        for problem in self.claimed():
            assert space.complete({}, problem, self.backend.name) == space.defaults, problem.key
            assert next(space.configs(problem)) == space.defaults, problem.key

    def test_every_value_of_every_tunable_agrees(self, legal: Config) -> None:
        can = self.backend.capabilities
        wider = registry.op(self.backend.op).corners_of(legal)
        for problem in (self.plain(), *(each.replace(dtype=can.dtypes[0], device=can.devices[0]) for each in wider)):
            if self.backend.rejects(problem) is None and self.backend.space.forbids(legal, problem) is None:
                self.check(self.build(problem, legal), problem, self.inputs(problem))

    def test_unknown_tunable_raises(self) -> None:
        with pytest.raises(ConfigError, match="no_such_tunable"):
            self.backend.space.complete({"no_such_tunable": 1}, self.plain(), self.backend.name)

    def test_facts(self) -> None:
        assert self.backend.sources
        assert all(path.is_file() for path in self.backend.sources)
        assert "\n" not in self.backend.summary
        assert self.backend.summary

    def test_says_why_where_it_cannot_run(self) -> None:
        without = dataclasses.replace(self.backend, unavailable=lambda: "a part is missing; fit it.")
        with pytest.raises(UnavailableError, match=r"a part is missing; fit it\."):
            without.build(self.plain())

    def test_inputs_of_any_stride(self, mode: Problem) -> None:
        inputs = tuple(map_tensors(with_gaps, each) for each in self.inputs(mode))
        self.check(self.build(mode), mode, inputs)

    def test_reads_no_uninitialised_memory(self, mode: Problem) -> None:
        with _poisoned_memory():
            self.check(self.build(mode), mode, self.inputs(mode))

    def test_runs_in_inference_mode(self) -> None:
        problem = self.plain()
        function, inputs = self.build(problem), self.inputs(problem)
        expected = function(*inputs)
        with torch.inference_mode():
            made_inside = self.inputs(problem)
            for given in (inputs, made_inside):
                assert all(map(torch.equal, function(*given), expected))

    def test_repeated_calls_are_equal_and_fresh(self) -> None:
        problem = self.plain()
        function, inputs = self.build(problem), self.inputs(problem)
        first = function(*inputs)
        kept = tuple(tensor.clone() for tensor in first)
        function(*self.inputs(problem, seed=1))
        assert all(map(torch.equal, first, kept)), "a later call wrote into the result of an earlier one"
        for tensor in first:
            tensor.fill_(math.nan)
        assert all(map(torch.equal, function(*inputs), kept)), "the same inputs gave other outputs"

    def test_every_call_agrees_with_the_reference(self, repeated: Problem) -> None:
        self.check(self.build(repeated), repeated, self.inputs(repeated), REPEATS_S)

    def test_second_derivatives_are_right_or_refused(self, differentiated: Problem) -> None:
        found, refusal = {}, ""
        try:
            found = _second_derivatives(self.build(differentiated), differentiated)
        except RuntimeError as error:
            refusal = str(error)
        assert found or re.search("derivative|backward", refusal), f"refused, but not said why: {refusal}"
        exact = differentiated.replace(dtype="float64", device="cpu")
        truth = _second_derivatives(registry.op(exact.op).reference(exact), exact)
        for name, tensor in found.items():
            assert relative_error(tensor, truth[name]) < 1e-2, f"those of {name} are wrong and not refused"

    def test_restores_the_threads_of_torch(self, mode: Problem) -> None:
        for threads in (1, 3):
            with torch_threads(threads):
                function = self.build(mode)
                assert torch.get_num_threads() == threads, "building changed the threads of torch"
                function(*self.inputs(mode))
                assert torch.get_num_threads() == threads, "a call changed the threads of torch"


class BackendContract(OpContract):
    """Contract of a backend of the scan: `OpContract`, and the promises that only scans make."""

    def problems(self) -> Iterator[Problem]:
        """Yield the problems of every op, and one with a state that is too large."""
        yield from super().problems()
        can = self.backend.capabilities
        assert isinstance(can, Capabilities)
        yield self.plain().replace(state=can.max_state + 1)

    def test_one_group_may_have_its_axis(self, mode: Problem) -> None:
        scan_inputs: tuple[ScanInputs, ...] = self.inputs(mode)
        inputs = tuple(each.with_tensors(B=each.B[:, None], C=each.C[:, None]) for each in scan_inputs)
        self.check(self.build(mode), mode, inputs)

    def test_last_state_starts_the_next_scan(self) -> None:
        problem = self.plain().replace(direction="forward", has_initial_state=True)
        assert isinstance(problem, ScanProblem)
        if self.backend.rejects(problem) is not None:
            pytest.skip(f"{self.backend.name} claims no forward scan with an initial state")
        (whole,) = self.inputs(problem)
        half = problem.length // 2
        expected = self.build(problem)(whole)
        out, h = [], whole.initial_state
        for part in (slice(0, half), slice(half, problem.length)):
            over_time = {name: tensor[..., part] for name, tensor in whole.tensors().items() if tensor.dim() == 3}
            over_time.pop("initial_state")
            piece = whole.with_tensors(**over_time)._replace(initial_state=h)
            result = self.build(problem.replace(length=piece.u.shape[-1]))(piece)
            out.append(result.out)
            h = result.last_state
        torch.testing.assert_close(torch.cat(out, dim=-1), expected.out)
        torch.testing.assert_close(h, expected.last_state)


def _second_derivatives(function: OpFn, problem: Problem) -> dict[str, Tensor]:
    """Return the gradient of the sum of squared gradients, by the name of each tensor and its direction's number."""
    op = registry.op(problem.op)
    inputs = op.make_inputs(problem, 0)
    leaves = {
        f"{name} {number}": tensor.requires_grad_()
        for number, each in enumerate(inputs)
        for name, tensor in tensors_of(each).items()
        if tensor.is_floating_point() or tensor.is_complex()
    }
    tensors = list(leaves.values())
    outputs = function(*inputs)
    wanted = [getattr(outputs, name) for name in op.timed_outputs] or list(outputs)
    loss = torch.stack([output.square().sum() for output in wanted]).sum()
    first = torch.autograd.grad(loss, tensors, create_graph=True)
    squares = torch.stack([gradient.square().sum() for gradient in first]).sum()
    return {name: second.cpu() for name, second in zip(leaves, torch.autograd.grad(squares, tensors), strict=True)}


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fill the uninitialised memory that torch hands out in this block with NaN."""
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    setting: Any = torch.utils.deterministic  # a module that torch replaces by one with properties
    fill = setting.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    setting.fill_uninitialized_memory = True
    try:
        yield
    finally:
        setting.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
