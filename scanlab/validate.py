"""The model as the judge: one image through Vision Mamba on every backend, against the float64 model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from scanlab.deploy.dispatch import Dispatcher
from scanlab.errors import ConfigError, RejectedError, UnavailableError
from scanlab.lab.measure import Arm, peak_bytes
from scanlab.models.vision_mamba import VisionMamba
from scanlab.space import Config

# The official float32 logits are about 5e-6 from the float64 ones; four times that is a wrong scan.
LOGIT_BUDGET = 2e-5
ROUNDS = 5


@dataclass(frozen=True)
class Validation:
    """What the model computes on one backend, beside the float64 model on the reference scan.

    logit_difference  largest absolute difference of a logit
    top1_agrees       whether every image's first class is the same
    top5_agreement    share of the float64 model's first five classes that are among the first five here
    latency_ms        quartiles of a whole forward pass
    peak_bytes        memory that one forward pass takes beyond what was in use before it
    reason            why the backend failed, or has no numbers
    """

    backend: str
    config: Config
    passed: bool
    logit_difference: float | None = None
    top1_agrees: bool | None = None
    top5_agreement: float | None = None
    latency_ms: tuple[float, float, float] | None = None
    peak_bytes: int | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """This validation as JSON values."""
        return asdict(self)


@torch.no_grad()
def validate(
    build: Callable[..., VisionMamba],
    weights: Mapping[str, Tensor],
    images: Tensor,
    selections: Sequence[str],
    progress: Callable[[str], None] = lambda step: None,
) -> list[Validation]:
    """`build(scan=...)` with `weights` on `images` (batch, 3, height, width), under each of `selections`.

    The truth is the model in float64 on the reference scan. Latencies are taken in turn, round by round, so
    that what the machine does meanwhile strikes every backend alike. A backend that cannot run is listed with
    its reason and has not passed only where it ran and was wrong.
    """
    progress("the float64 model")
    exact = _model(build, weights, "reference").double()(images.double())
    results: list[Validation] = []
    running: list[tuple[VisionMamba, Validation]] = []
    for selection in selections:
        progress(selection)
        name, _, _ = selection.partition(":")
        try:
            model = _model(build, weights, selection)
            logits = model(images)
        except (UnavailableError, RejectedError, ConfigError) as error:
            results.append(Validation(name, {}, passed=True, reason=str(error)))
            continue
        result = _judge(name, _config_of(model), logits, exact)
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


def _model(build: Callable[..., VisionMamba], weights: Mapping[str, Tensor], selection: str) -> VisionMamba:
    model = build(scan=Dispatcher(selection))
    model.load_state_dict(weights)
    return model.eval()


def _config_of(model: VisionMamba) -> Config:
    scan = model.scan
    assert isinstance(scan, Dispatcher)
    return next(iter(scan.decided.values())).config


def _judge(name: str, config: Config, logits: Tensor, exact: Tensor) -> Validation:
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
    return Validation(name, config, not reasons, difference, top1, shared, reason="; ".join(reasons) or None)


def _timed(model: VisionMamba, images: Tensor, result: Validation, samples_ms: list[float]) -> Validation:
    arm = Arm(lambda: model(images), images.device.type, torch.get_num_threads(), calls=1, samples=1, cost_s=0.0)
    first, middle, third = statistics.quantiles(samples_ms, n=4, method="inclusive")
    return Validation(**asdict(result) | {"latency_ms": (first, middle, third), "peak_bytes": peak_bytes(arm)})
