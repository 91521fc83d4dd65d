"""Backends with planted faults, for the claim that verification and the contract test catch each of them."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

import torch
from trust_claim import Claim

from scanlab.cli.verify import Verifier, planned
from scanlab.contract import registry
from scanlab.contract.backend import Backend, Capabilities, ScanFn
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config
from scanlab.testing import BackendContract

FIRST_TILE = 64
# A race of two threads spoils one call in so many.
RACE_EVERY = 5
Change = Callable[[ScanProblem, Config, ScanOutput, ScanInputs], torch.Tensor]


def past_the_first_tile(problem: ScanProblem, config: Config, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the output, wrong by 1 % in the channels beyond the first tile."""
    factor = torch.ones(problem.dim, 1, dtype=result.out.dtype)
    factor[FIRST_TILE:] = 1.01
    return result.out * factor


def lost_gradient(problem: ScanProblem, config: Config, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the right output, through which no gradient of D flows."""
    D = inputs.D
    if D is None or not problem.gradients:
        return result.out
    return result.out + ((D.detach() - D)[:, None] * inputs.u.detach()).to(result.out.dtype)


def gradient_of_one_sequence(
    problem: ScanProblem, config: Config, result: ScanOutput, inputs: ScanInputs
) -> torch.Tensor:
    """Return the right output, through which the gradient of D is that of the first sequence alone."""
    D = inputs.D
    if D is None or not problem.gradients:
        return result.out
    others = (D.detach() - D)[:, None] * inputs.u.detach()[1:]
    return torch.cat((result.out[:1], result.out[1:] + others.to(result.out.dtype)))


def uninitialised_tail(problem: ScanProblem, config: Config, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the output without its last step, whose memory was never written."""
    out = torch.empty_like(result.out)
    out[..., :-1] = result.out[..., :-1]
    return out


def strided_projections(problem: ScanProblem, config: Config, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
    """Return the output, wrong by a tenth where B and C are no packed tensors."""
    return result.out if inputs.B.is_contiguous() and inputs.C.is_contiguous() else result.out * 1.1


def race_of_threads() -> Change:
    """Return a change that spoils the last channel in one call of several, on more than one thread."""
    calls = itertools.count(1)

    def change(problem: ScanProblem, config: Config, result: ScanOutput, inputs: ScanInputs) -> torch.Tensor:
        if config["threads"] == 1 or next(calls) % RACE_EVERY:
            return result.out
        factor = torch.ones(problem.dim, 1, dtype=result.out.dtype)
        factor[-1] = 1.1
        return result.out * factor

    return change


def wrong_where(condition: Callable[[ScanProblem], bool]) -> Change:
    """Return a change that makes the output of some problems wrong by a tenth."""
    return lambda problem, config, result, inputs: result.out * 1.1 if condition(problem) else result.out


FAULTS: dict[str, Change] = {
    "wrong without z": wrong_where(lambda problem: not problem.has_z),
    "wrong past the first tile of 64 channels": past_the_first_tile,
    "wrong at odd lengths": wrong_where(lambda problem: problem.length % 2 == 1),
    "wrong for one step": wrong_where(lambda problem: problem.length == 1),
    "wrong in bfloat16 alone": wrong_where(lambda problem: problem.dtype == "bfloat16"),
    "wrong where B and C are strided": strided_projections,
    "no gradient of D": lost_gradient,
    "gradient of D of the first sequence alone": gradient_of_one_sequence,
    "last step never written": uninitialised_tail,
    "race of two threads": race_of_threads(),
}
OF_GRADIENTS = (lost_gradient, gradient_of_one_sequence)


def backend_with(change: Change, gradients: bool) -> Backend:
    """Return the reference loop with a fault, in one direction of time."""
    reference = registry.get("reference")

    def make(problem: ScanProblem, config: Config) -> ScanFn:
        scan = reference.build(problem, {"threads": 1})

        def faulty(inputs: ScanInputs) -> ScanOutput:
            result = scan(inputs)
            return ScanOutput(change(problem, config, result, inputs), result.last_state)

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
            if change in OF_GRADIENTS and not gradients:
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
    verifier = Verifier(seed=0)
    found = (verifier.verify(backend, config, case) for config, case in planned(backend, {}))
    return next((each.asked for each in found if each.state == "wrong"), "")


def first_failure(faulty: Backend) -> str:
    """Return the first problem on which the shipped contract test fails, and the test; empty where it passes."""

    class Contract(BackendContract):
        backend = faulty

    contract = Contract()
    plain = [contract.plain().replace(gradients=each) for each in (False, True)]
    for test, problems in (
        (contract.test_agrees_with_the_reference, contract.problems()),
        (contract.test_inputs_of_any_stride, plain),
        (contract.test_every_call_agrees_with_the_reference, contract.repeated()),
    ):
        for problem in problems:
            if faulty.rejects(problem) is None:
                try:
                    test(problem)
                except AssertionError:
                    return f"{test.__name__.removeprefix('test_')}: {problem.key}"
    return ""
