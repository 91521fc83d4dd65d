"""Backends with planted faults, for the claim that verification and the contract test catch each of them."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import torch
from trust_claim import Claim

from scanlab.contract import registry
from scanlab.contract.backend import Backend, Capabilities, ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config
from scanlab.contract.verify import reference_outputs, verify
from scanlab.testing import BackendContract

FIRST_TILE = 64
Change = Callable[[ScanProblem, ScanOutput, ScanInputs], torch.Tensor]


def past_the_first_tile(problem: ScanProblem, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the output, wrong by 1 % in the channels beyond the first tile."""
    factor = torch.ones(problem.dim, 1, dtype=result.out.dtype)
    factor[FIRST_TILE:] = 1.01
    return result.out * factor


def lost_gradient(problem: ScanProblem, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the right output, through which no gradient of D flows."""
    D = inputs.D
    if D is None or not problem.gradients:
        return result.out
    return result.out + ((D.detach() - D)[:, None] * inputs.u.detach()).to(result.out.dtype)


def uninitialised_tail(problem: ScanProblem, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the output without its last step, whose memory was never written."""
    out = torch.empty_like(result.out)
    out[..., :-1] = result.out[..., :-1]
    return out


def wrong_where(condition: Callable[[ScanProblem], bool]) -> Change:
    """Return a change that makes the output of some problems wrong by a tenth."""
    return lambda problem, result, inputs: result.out * 1.1 if condition(problem) else result.out


FAULTS: dict[str, Change] = {
    "wrong without z": wrong_where(lambda problem: not problem.has_z),
    "wrong past the first tile of 64 channels": past_the_first_tile,
    "wrong at odd lengths": wrong_where(lambda problem: problem.length % 2 == 1),
    "wrong in bfloat16 alone": wrong_where(lambda problem: problem.dtype == "bfloat16"),
    "no gradient of D": lost_gradient,
    "last step never written": uninitialised_tail,
}


def backend_with(change: Change, gradients: bool) -> Backend:
    """Return the reference loop with a fault, in one direction of time."""
    reference = registry.get("reference")

    def make(problem: ScanProblem, config: Config) -> ScanFn:
        scan = reference.build(problem, {"threads": 1})

        def faulty(inputs: ScanInputs) -> ScanOutput:
            result = scan(inputs)
            return ScanOutput(change(problem, result, inputs), result.last_state)

        return faulty

    claims = Capabilities(dtypes=("float32", "bfloat16"), gradients=gradients)
    return dataclasses.replace(reference, name="faulty", capabilities=claims, make=make)


def planted() -> tuple[Claim, list[dict[str, str]]]:
    """Plant every fault; `scanlab verify` and the contract test must each catch every one."""
    started, found = time.monotonic(), list(rows())
    missed = sum(not (row["verify"] and row["contract test"]) for row in found)
    about = f"{len(FAULTS)} kinds of faults, in backends with and without gradients"
    return Claim("planted faults; not caught", len(found), missed, 0, time.monotonic() - started, about), found


def rows() -> Iterator[dict[str, str]]:
    """Yield, for each fault in a forward-only backend and in one with gradients, the first problem that shows it."""
    for name, change in FAULTS.items():
        for gradients in (False, True):
            if change is lost_gradient and not gradients:
                continue
            backend = backend_with(change, gradients)
            yield {
                "fault": name,
                "claims": "forward and gradients" if gradients else "forward alone",
                "verify": first_wrong(backend),
                "contract test": first_failure(backend),
            }


def first_wrong(backend: Backend) -> str:
    """Return the first problem of `scanlab verify` that shows a fault; empty where none does."""
    op = registry.op(backend.op)
    for problem in (*op.probes, *op.corners):
        if backend.rejects(problem) is None:
            expected = reference_outputs(problem, op.make_inputs(problem, 0))
            if not verify(backend.build(problem), expected).passed:
                return problem.key
    return ""


def first_failure(faulty: Backend) -> str:
    """Return the first problem on which the shipped contract test fails; empty where it passes."""

    class Contract(BackendContract):
        backend = faulty

    contract = Contract()
    for problem in contract.problems():
        if faulty.rejects(problem) is None:
            try:
                contract.test_agrees_with_the_reference(problem)
            except AssertionError:
                return problem.key
    return ""
