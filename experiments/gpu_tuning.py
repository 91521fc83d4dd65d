"""The search for the fastest configuration of the Triton scan: drawn, compiled on all CPUs at once, proven, timed.

Most of a search is spent in Triton's compiler. So other processes compile what was drawn, for the GPU that this one
has, and judge its machine code; what they let through is found compiled when it runs.
"""

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from gpu_timing import ROTATION, calls_of, in_rows, inputs_of, times_s

from scanlab.contract.problem import ScanOutput, ScanProblem, make_inputs
from scanlab.contract.space import Config, config_key
from scanlab.contract.verify import Expectation, expectation, verify
from scanlab.errors import RejectedError
from scanlab_kernels.selective_scan.triton import backend as triton

COMPILE_LIMIT_S = 90.0


@functools.cache
def oracle(problem: ScanProblem) -> Expectation:
    """What a scan is held to before it is timed: the oracle at a batch of 1 and few steps: of the same code."""
    small = problem.replace(batch=1, length=min(problem.length, 400))
    inputs = make_inputs(small)
    return expectation(small, tuple(map(in_rows, inputs)) if problem.layout == "dim_last" else inputs)


def proven(problem: ScanProblem, config: Config) -> Callable[..., ScanOutput]:
    """The scan under a configuration, after it agreed with the oracle; raises RejectedError where it does not.

    Its machine code is judged before, in another process.
    """
    chosen, expected = triton.with_segments(config, problem), oracle(problem)
    verdict = verify(triton.make(expected.problem, chosen), expected)
    if not verdict.passed:
        raise RejectedError(f"{config_key(chosen)} is wrong: {verdict.reason}")
    return triton.make(problem, chosen)


def candidates(problem: ScanProblem, count: int) -> list[Config]:
    """Legal configurations that differ from the default in what is timed: tunables of the way back, or of the scan."""
    drawn: list[Config] = []
    random.seed(0)
    space = triton.backend.space
    free = [choice for choice in space.tunables if (choice.name in triton.FOR_GRADIENTS) == problem.gradients]
    while len(drawn) < count:
        config = space.defaults | {choice.name: random.choice(choice.values) for choice in free}
        if space.forbids(config, problem) is None and config not in drawn:
            drawn.append(config)
    return drawn


def judged(problem: ScanProblem, tuning: list[int], default: list[int], capability: int) -> str | None:
    """Why a configuration is not worth a run, or None; leaves its machine code where Triton finds it again."""
    import gpu_sass

    from scanlab_kernels.selective_scan.triton.launch import Tuning

    reason = gpu_sass.refusal(problem, Tuning(*tuning), Tuning(*default), capability)
    if reason is None and problem.gradients:  # what is held to the oracle has the gradient of the last state too
        gpu_sass.backward(problem, Tuning(*tuning), capability, with_grad_last=True)
    return reason


def compile_defaults(problems: Sequence[ScanProblem], compilers: Executor) -> list[dict[str, object]]:
    """Have the default configurations compiled for these problems, all at once; a row for each that is poor code."""
    drawn = [triton.tuning_of(triton.backend.space.defaults, problem) for problem in problems]
    reasons = compilers.map(judged, problems, drawn, drawn, itertools.repeat(capability()), timeout=COMPILE_LIMIT_S)
    return [
        {"shape": each.key, "run": f"triton, default: {reason}"}
        for each, reason in zip(problems, reasons, strict=True)
        if reason
    ]


def capability() -> int:
    """The compute capability of the GPU that torch has current: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def worthy(problem: ScanProblem, count: int, until_s: float, compilers: Executor) -> Iterator[Config | None]:
    """The drawn configurations, each as soon as its machine code is known: None where that is not worth a run.

    Ends early where one is not compiled in time.
    """
    drawn = [triton.with_segments(config, problem) for config in candidates(problem, count)]
    default = triton.tuning_of(triton.backend.space.defaults, problem)
    judge = functools.partial(judged, problem, default=default, capability=capability())
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
    """The fastest of the default and of `count` drawn configurations, as far as time allows, and what became of them.

    until_s  when to stop, by the monotonic clock
    """
    drawn = [inputs_of(problem, seed) for seed in range(ROTATION)]
    best, best_s, run, refused = triton.with_segments(triton.backend.space.defaults, problem), np.inf, 0, 0
    for config in itertools.chain((best,), worthy(problem, count, until_s, compilers)):
        if time.monotonic() > until_s:
            break
        try:
            if config is None:
                raise RejectedError("by its machine code")
            taken = float(
                np.median(times_s(calls_of(problem, proven(problem, config), drawn), most=2 * ROTATION).gpu_s)
            )
        except RejectedError:
            refused += 1
            continue
        run += 1
        if taken < best_s:
            best, best_s = config, taken
    return best, f"{run} run, {refused} refused"
