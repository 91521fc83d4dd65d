"""Validation of backends on whole models: logits and classes of Vision Mamba, compared with the float64 model.

`validate` runs a released model with trained-like weights on images; `validate_task` runs a trained model on the digits
that were held out from its training. The first finds errors that grow over 24 layers, the second shows whether an error
changes predictions, in every dtype.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scanlab.bench.timing import peak_bytes
from scanlab.bench.worker import Evaluation, attempt
from scanlab.contract.base import DTYPES
from scanlab.contract.space import Config
from scanlab.models.digits import digits_model, digits_test_set
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime.dispatch import Dispatcher
from scanlab.runtime.profile import Profile

# The official float32 logits are about 5e-6 from the float64 ones; four times that is a wrong scan.
LOGIT_BUDGET = 2e-5
ROUNDS = 5

BATCH = 36  # digits at once: the reference loop's tensors then fit where memory is used again
REFERENCE = "reference:threads=1"


@dataclass(frozen=True)
class Budget:
    """Largest deviations that a dtype is allowed.

    Attributes:
        logit_error: Error of a logit, as a share of the largest logit.
        changed_share: Share of the digits that are classified differently.
    """

    logit_error: float
    changed_share: float


# About four times the error of the dtype itself on the reference scan (1.9e-7, 6.2e-3, 5.6e-4). In float64, whose
# result is the reference, other orders of summation differ by 3e-16.
TASK_BUDGETS = {
    "float64": Budget(1e-13, 0.0),
    "float32": Budget(1e-6, 0.0),
    "bfloat16": Budget(2.5e-2, 0.01),
    "float16": Budget(2.5e-3, 0.01),
}


@dataclass(frozen=True)
class Validation:
    """Agreement of the model on one backend with the float64 model on the reference scan.

    Attributes:
        selection: The backend as the caller named it, such as "chunked:chunk=32".
        logit_difference: Largest absolute difference of a logit.
        top1_agrees: Whether the first class of every image is the same.
        top5_agreement: Share of the float64 model's first five classes that are among the first five of this one.
        latency_ms: Quartiles of a whole forward pass.
        peak_bytes: Memory that one forward pass takes beyond the memory in use before it.
        reason: Why the backend failed, or has no numbers.
    """

    selection: str
    config: Config
    passed: bool
    logit_difference: float | None = None
    top1_agrees: bool | None = None
    top5_agreement: float | None = None
    latency_ms: tuple[float, float, float] | None = None
    peak_bytes: int | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this validation as JSON values."""
        return asdict(self)


@torch.no_grad()
def validate(
    build: Callable[..., VisionMamba],
    weights: Mapping[str, Tensor],
    images: Tensor,
    selections: Sequence[str],
    progress: Callable[[str], None] = lambda step: None,
) -> list[Validation]:
    """Compare a model under each of `selections` with the same model in float64 on the reference scan, and time it.

    Latencies are measured in interleaved rounds, so that interference affects all backends equally.

    Args:
        build: Called with `scan=...`; returns the model.
        weights: The weights of the model.
        images: (batch, 3, height, width).
        selections: Backends with optional settings, such as "chunked:chunk=32".
        progress: Called with a line of text at each step.

    Returns:
        One result for each selection. A backend that cannot run is listed with its reason; it fails only where it ran
        and was wrong.
    """
    progress("the float64 model")
    exact = _model(build, weights, REFERENCE).double()(images.double())
    results: list[Validation] = []
    running: list[tuple[VisionMamba, Validation]] = []
    for selection in selections:
        progress(selection)
        model = _model(build, weights, selection)
        logits = attempt(partial(model, images))
        if isinstance(logits, Evaluation):
            results.append(Validation(selection, {}, logits.state == "rejected", reason=logits.reason))
            continue
        result = _judge(selection, _config_of(model), logits, exact)
        results.append(result)
        running.append((model, result))
    samples: dict[int, list[float]] = {id(result): [] for _, result in running}
    for turn in range(ROUNDS):
        progress(f"latency, round {turn + 1} of {ROUNDS}")
        for model, result in running:
            start = time.perf_counter()
            model(images)
            samples[id(result)].append(1e3 * (time.perf_counter() - start))
    timed = {id(result): _timed(model, images, result, samples[id(result)]) for model, result in running}
    return [timed.get(id(result), result) for result in results]


@dataclass(frozen=True)
class TaskValidation:
    """Classification of the held-out digits by the trained model on one backend in one dtype.

    Attributes:
        accuracy: Share of the digits that are classified correctly.
        logit_error: Largest difference of a logit from the float64 model's, as a share of the largest logit.
        top1_agreement: Share of the digits that are classified as by the float64 model.
        reason: Why the backend failed, or has no numbers.
    """

    selection: str
    dtype: str
    config: Config
    passed: bool
    accuracy: float | None = None
    logit_error: float | None = None
    top1_agreement: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return this validation as JSON values."""
        return asdict(self)


@torch.no_grad()
def validate_task(
    selections: Sequence[str],
    dtypes: Sequence[str] = tuple(TASK_BUDGETS),
    progress: Callable[[str], None] = lambda step: None,
) -> list[TaskValidation]:
    """Compare the trained digits model under each of `selections` in each of `dtypes` with the float64 model.

    Args:
        selections: Backends with optional settings, such as "chunked:chunk=32".
        dtypes: Names of dtypes, each with a budget of its own.
        progress: Called with a line of text at each step.

    Returns:
        One result for each pair. A backend that cannot run is listed with its reason and has not failed; one that
        exceeds the budget of the dtype, or crashes, has.
    """
    images, labels = digits_test_set()
    progress("the float64 model")
    exact = _read(digits_model(Dispatcher(REFERENCE)), images, "float64")
    results = []
    for selection in selections:
        for dtype in dtypes:
            progress(f"{selection}, {dtype}")
            model = digits_model(Dispatcher(selection))
            logits = attempt(partial(_read, model, images, dtype))
            if isinstance(logits, Evaluation):
                passed = logits.state == "rejected"
                results.append(TaskValidation(selection, dtype, {}, passed, reason=logits.reason))
            else:
                results.append(_judge_task(selection, dtype, _config_of(model), logits, exact, labels))
    return results


def _read(model: VisionMamba, images: Tensor, dtype: str) -> Tensor:
    """Return the float64 logits of `model` cast to `dtype`."""
    cast = model.cast_(DTYPES[dtype])
    return torch.cat([cast(batch.to(DTYPES[dtype])).double() for batch in images.split(BATCH)])


def _judge_task(
    selection: str, dtype: str, config: Config, logits: Tensor, exact: Tensor, labels: Tensor
) -> TaskValidation:
    budget = TASK_BUDGETS[dtype]
    error = ((logits - exact).abs().max() / exact.abs().max()).item()
    read, truth = logits.argmax(1), exact.argmax(1)
    agreement = (read == truth).double().mean().item()
    reasons = []
    # `not <=` so that NaN fails
    if not error <= budget.logit_error:
        reasons.append(f"in {dtype} a logit is off by {error:.1e} of the largest; {budget.logit_error:.0e} is allowed")
    if 1.0 - agreement > budget.changed_share:
        changed = int((read != truth).sum())
        reasons.append(f"in {dtype} {changed} of {len(labels)} digits are read differently than by the float64 model")
    accuracy = (read == labels).double().mean().item()
    reason = "; ".join(reasons) or None
    return TaskValidation(selection, dtype, config, not reasons, accuracy, error, agreement, reason)


def profiled_selections(profile: Profile | None) -> list[str]:
    """Return the backends and configurations that `profile` deploys, each once, as selections."""
    deployed = {
        f"{entry.backend}:{','.join(f'{name}={value}' for name, value in sorted(entry.config.items()))}": None
        for entry in (profile.entries if profile else ())
    }
    return list(deployed)


def _model(build: Callable[..., VisionMamba], weights: Mapping[str, Tensor], selection: str) -> VisionMamba:
    model = build(scan=Dispatcher(selection))
    model.load_state_dict(weights)
    return model.eval()


def _config_of(model: VisionMamba) -> Config:
    scan = model.scan
    assert isinstance(scan, Dispatcher)
    return next(iter(scan.decided_scans.values())).config


def _judge(selection: str, config: Config, logits: Tensor, exact: Tensor) -> Validation:
    difference = (logits.double() - exact).abs().max().item()
    first, truth = logits.topk(5).indices, exact.topk(5).indices
    top1 = bool((first[:, 0] == truth[:, 0]).all())
    shared = (first[:, :, None] == truth[:, None, :]).any(dim=1).double().mean().item()
    reasons = []
    # `not <=` so that NaN fails
    if not difference <= LOGIT_BUDGET:
        reasons.append(f"a logit is off by {difference:.1e}; {LOGIT_BUDGET:.0e} is allowed")
    if not top1:
        reasons.append("the first class differs from the float64 model's")
    return Validation(selection, config, not reasons, difference, top1, shared, reason="; ".join(reasons) or None)


def _timed(model: VisionMamba, images: Tensor, result: Validation, samples_ms: list[float]) -> Validation:
    peak = peak_bytes(lambda: model(images), images.device.type, torch.get_num_threads())
    first, middle, third = statistics.quantiles(samples_ms, n=4, method="inclusive")
    return Validation(**asdict(result) | {"latency_ms": (first, middle, third), "peak_bytes": peak})
