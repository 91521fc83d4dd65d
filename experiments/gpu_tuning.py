"""Random search for the fastest configuration of the Triton scan: draw, compile on all CPUs, verify, time.

Most of a search is spent in Triton's compiler. So other processes compile the drawn configurations for the GPU of this
one and refuse those with poor machine code; the others run from Triton's cache.
"""

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from gpu_timing import COPIES, calls_of, in_rows, inputs_of, times_s

from scanlab.contract.problem import ScanOutput, ScanProblem, make_inputs
from scanlab.contract.space import Config, config_key
from scanlab.contract.verify import ReferenceOutputs, reference_outputs, verify
from scanlab.errors import RejectedError
from scanlab_kernels.selective_scan.triton import backend as triton

COMPILE_LIMIT_S = 90.0


@functools.cache
def expected_outputs(problem: ScanProblem) -> ReferenceOutputs:
    """Return the reference outputs for a batch of 1 and at most 400 steps, which run the same compiled code."""
    small = problem.replace(batch=1, length=min(problem.length, 400))
    inputs = make_inputs(small)
    return reference_outputs(small, tuple(map(in_rows, inputs)) if problem.layout == "dim_last" else inputs)


def verified(problem: ScanProblem, config: Config) -> Callable[..., ScanOutput]:
    """Return the scan with a configuration that agrees with the reference.

    Raises:
        RejectedError: It disagrees.
    """
    chosen, expected = triton.with_segments(config, problem), expected_outputs(problem)
    verdict = verify(triton.make(expected.problem, chosen), expected)
    if not verdict.passed:
        raise RejectedError(f"{config_key(chosen)} is wrong: {verdict.reason}")
    return triton.make(problem, chosen)


def candidates(problem: ScanProblem, count: int) -> list[Config]:
    """Draw legal configurations that differ in the tunables of the pass that is timed, backward or forward."""
    drawn: list[Config] = []
    random.seed(0)
    space = triton.backend.space
    free = [choice for choice in space.tunables if (choice.name in triton.FOR_GRADIENTS) == problem.gradients]
    while len(drawn) < count:
        config = space.defaults | {choice.name: random.choice(choice.values) for choice in free}
        if space.forbids(config, problem) is None and config not in drawn:
            drawn.append(config)
    return drawn


def refusal_of(problem: ScanProblem, tuning: list[int], default: list[int], capability: int) -> str | None:
    """Return why a configuration is not worth a run, or None; its machine code stays in Triton's cache."""
    import gpu_sass

    from scanlab_kernels.selective_scan.triton.launch import Tuning

    reason = gpu_sass.refusal(problem, Tuning(*tuning), Tuning(*default), capability)
    if reason is None and problem.gradients:  # verification also takes the gradient of the last state
        gpu_sass.backward(problem, Tuning(*tuning), capability, with_grad_last=True)
    return reason


def compile_defaults(problems: Sequence[ScanProblem], compilers: Executor) -> list[dict[str, object]]:
    """Compile the default configurations for all problems in parallel; return a row for each with poor code."""
    drawn = [triton.tuning_of(triton.backend.space.defaults, problem) for problem in problems]
    reasons = compilers.map(refusal_of, problems, drawn, drawn, itertools.repeat(capability()), timeout=COMPILE_LIMIT_S)
    return [
        {"shape": each.key, "run": f"triton, default: {reason}"}
        for each, reason in zip(problems, reasons, strict=True)
        if reason
    ]


def capability() -> int:
    """Return the compute capability of the current GPU: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def compiled_candidates(
    problem: ScanProblem, count: int, until_s: float, compilers: Executor
) -> Iterator[Config | None]:
    """Yield the drawn configurations as they are compiled, None for each that is not worth a run.

    Ends early where one is not compiled in time.
    """
    drawn = [triton.with_segments(config, problem) for config in candidates(problem, count)]
    default = triton.tuning_of(triton.backend.space.defaults, problem)
    judge = functools.partial(refusal_of, problem, default=default, capability=capability())
    tunings = [triton.tuning_of(config, problem) for config in drawn]
    reasons = compilers.map(judge, tunings, timeout=max(0.0, until_s - time.monotonic()))
    try:
        for config, reason in zip(drawn, reasons, strict=True):
            if reason is not None:
                print(f"refused {config_key(config)}: {reason}", flush=True)
            yield config if reason is None else None
    except TimeoutError:
        print(f"no time is left to compile for {problem.key}", flush=True)


def tuned(problem: ScanProblem, count: int, until_s: float, compilers: Executor) -> tuple[Config, str]:
    """Return the fastest of the default and `count` drawn configurations, and how many ran and were refused.

    Args:
        problem: The problem; with gradients the backward pass alone is timed.
        count: Configurations to draw.
        until_s: Monotonic time at which to stop.
        compilers: Processes that compile.
    """
    drawn = [inputs_of(problem, seed) for seed in range(COPIES)]
    best, best_s, run, refused = triton.with_segments(triton.backend.space.defaults, problem), np.inf, 0, 0
    for config in itertools.chain((best,), compiled_candidates(problem, count, until_s, compilers)):
        if time.monotonic() > until_s:
            break
        try:
            if config is None:
                raise RejectedError("by its machine code")
            taken = float(
                np.median(times_s(calls_of(problem, verified(problem, config), drawn), most=2 * COPIES).gpu_s)
            )
        except RejectedError:
            refused += 1
            continue
        run += 1
        if taken < best_s:
            best, best_s = config, taken
    return best, f"{run} run, {refused} refused"
