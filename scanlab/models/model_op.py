"""The op `model`: the forward pass of a whole model, as one op that is verified, timed, tuned and deployed like any.

Ops share caches and threads, so that the fastest of each need not be the fastest together. A configuration of the
backend `assembly` says which ops the tuned choice serves instead of the default one, and in which dtype the model runs.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from scanlab.contract import registry
from scanlab.contract.backend import Backend, OpCapabilities
from scanlab.contract.base import Problem
from scanlab.contract.op import Inputs, Op, Work
from scanlab.contract.space import Config, Space, Tunable
from scanlab.errors import InputError, ProblemError
from scanlab.models.mamba_block import RECURRENCE
from scanlab.models.workloads import find_workload, told_in_a_sentence
from scanlab.runtime.policy import DEFAULT, TUNED, Policy, serve_by
from scanlab.runtime.usage import log_usage

NAME = "model"
SCAN = registry.DEFAULT_OP
DTYPES = ("float32", "bfloat16_products", "bfloat16")
# Text of a set of ops in a configuration.
NONE, JOIN = "none", "+"
# Difference between fresh inputs and the given ones, as a share of their spread.
NOISE = 0.25


@dataclass(frozen=True, kw_only=True)
class ModelProblem(Problem):
    """The forward pass of a model on a batch.

    Attributes:
        model: Name of a workload, or "module:function", see `workloads`.
        batch: Items at once.
        size: Side of an image in pixels, or length of a prompt in tokens.
        dtype: Dtype of the logits that are compared; that of the weights is a tunable.
        max_logit_error: Largest error of a logit, as a share of the largest logit.
    """

    op: ClassVar[str] = NAME
    sizes: ClassVar[tuple[str, ...]] = ("batch", "size")

    model: str
    batch: int
    size: int
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False
    max_logit_error: float = 1e-4

    def __post_init__(self) -> None:
        for name in self.sizes:
            if getattr(self, name) < 1:
                raise ProblemError(f"{name}={getattr(self, name)}: must be at least 1.")
        if self.dtype not in ("float32", "float64"):
            raise ProblemError(f"dtype={self.dtype!r}: must be float32; the dtype of the weights is a tunable.")
        if not 0 < self.max_logit_error < 1:
            raise ProblemError(f"max_logit_error={self.max_logit_error}: must be between 0 and 1.")


class ModelInputs(NamedTuple):
    """input: images (batch, channels, size, size), or token ids (batch, size)."""

    input: Tensor


class ModelOutputs(NamedTuple):
    """logits: the model's output, or its attribute `logits`; in float32, or in float64 from the reference."""

    logits: Tensor


def make_inputs(problem: ModelProblem, seed: int) -> tuple[ModelInputs]:
    """Return the input of the workload; with another seed than 0 an input like it."""
    given = (ModelInputs(_prototype(problem.model, problem.batch, problem.size)[1].to(problem.device)),)
    return given if seed == 0 else fresh_inputs(problem, given, seed)


def fresh_inputs(problem: ModelProblem, inputs: Inputs, seed: int) -> tuple[ModelInputs]:
    """Return the tokens of `inputs` in another order, or its numbers with noise."""
    generator = torch.Generator().manual_seed(seed)
    (given,) = inputs
    values: Tensor = given.input
    if not values.is_floating_point():
        order = torch.randperm(values.numel(), generator=generator)
        return (ModelInputs(values.flatten()[order].view_as(values)),)
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return (ModelInputs(values + (NOISE * values.std() * noise).to(values)),)


@functools.lru_cache(maxsize=2)
def _prototype(name: str, batch: int, size: int) -> tuple[nn.Module, Tensor]:
    with told_in_a_sentence(name):
        made: object = find_workload(name)(batch, size)
    match made:
        case (nn.Module() as model, Tensor() as given):
            return model, given
    raise InputError(f"{name}: the function returned a {type(made).__name__}: must be a model and one input tensor.")


@functools.lru_cache(maxsize=4)
def _model(name: str, batch: int, size: int, dtype: torch.dtype) -> nn.Module:
    prototype, _ = _prototype(name, batch, size)
    return prototype if dtype == torch.float32 else cast(copy.deepcopy(prototype), dtype)


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the weights of `model` in place; those of the recurrence keep at least float32, as officially."""
    for name, parameter in model.named_parameters():
        recurrent = name.rpartition(".")[2] in RECURRENCE
        parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32) if recurrent else dtype)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    return model


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices in bfloat16 inside this block, where the processor does."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch does not annotate it
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def forward(problem: ModelProblem, dtype: str, policy: Policy) -> Callable[[ModelInputs], ModelOutputs]:
    """Return a forward pass of the model in `dtype`, one of DTYPES or float64, with its ops served by `policy`."""
    weights = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(dtype, torch.float32)
    model = _model(problem.model, problem.batch, problem.size, weights)

    def run(inputs: ModelInputs) -> ModelOutputs:
        given = inputs.input.to(weights) if inputs.input.is_floating_point() else inputs.input
        with torch.inference_mode(), serve_by(policy), told_in_a_sentence(problem.model):
            returned: Any = model(given)
        found = getattr(returned, "logits", returned)
        return ModelOutputs(found.to(torch.promote_types(torch.float32, found.dtype)))

    return bfloat16_products()(run) if dtype == "bfloat16_products" else run


def reference(problem: ModelProblem) -> Callable[[ModelInputs], ModelOutputs]:
    """Return the model in float64 on the reference scan."""
    return forward(problem, "float64", Policy.of({SCAN: "reference:threads=1"}, others=DEFAULT))


def op_problems(
    problem: ModelProblem,
    inputs: Inputs,
    dtype: str = "float32",
    passes: int = 1,
    selections: Mapping[str, str] = MappingProxyType({}),
) -> Mapping[Problem, tuple[int, float]]:
    """Return the problems of the ops in one forward pass: the calls of each, and the seconds that they take together.

    Args:
        problem: Problem of the model.
        inputs: Input of the model.
        dtype: One of DTYPES.
        passes: Forward passes that are timed; of each problem the fastest counts.
        selections: Backends by the names of ops, see `Policy`; the others are served as if untuned.
    """
    run = forward(problem, dtype, Policy.of(selections, others=DEFAULT))
    run(*inputs)
    found: dict[Problem, tuple[int, float]] = {}
    for _ in range(passes):
        with log_usage() as log:
            run(*inputs)
        for each, usage in log.usage.items():
            found[each] = usage.calls, min(usage.seconds, found.get(each, (0, math.inf))[1])
    return found


@functools.lru_cache(maxsize=8)
def work(problem: ModelProblem) -> Work:
    """Return the work of all ops of scanlab in one forward pass."""
    exact = problem.replace(dtype="float32")
    parts = [
        (calls, registry.op(each.op).work(each))
        for each, (calls, _) in op_problems(exact, make_inputs(exact, 0)).items()
    ]
    return Work(
        sum(calls * each.multiply_adds for calls, each in parts),
        sum(calls * each.exponentials for calls, each in parts),
        sum(calls * each.traffic_bytes for calls, each in parts),
        # A bound must hold for every configuration, and those in bfloat16 multiply fastest.
        "bfloat16",
    )


def make_assembly(problem: ModelProblem, config: Config) -> Callable[[ModelInputs], ModelOutputs]:
    """Return the model with the ops that `config` names served by the profile, and the others by their defaults."""
    selections = dict.fromkeys(tuned_ops(config), TUNED)
    return forward(problem, str(config["dtype"]), Policy.of(selections, others=DEFAULT))


def tuned_ops(config: Config) -> tuple[str, ...]:
    """Return the ops that the profile serves under a configuration of `assembly`."""
    named = str(config["tuned"])
    return () if named == NONE else tuple(named.split(JOIN))


def subsets(ops: Sequence[str]) -> tuple[str, ...]:
    """Return the values of the tunable `tuned` that name none but `ops`: all of them first, the fewer the later."""
    sizes = range(len(ops), 0, -1)
    return (*(JOIN.join(chosen) for count in sizes for chosen in itertools.combinations(sorted(ops), count)), NONE)


def make_in_torch(problem: ModelProblem, config: Config) -> Callable[[ModelInputs], ModelOutputs]:
    """Return the model with its ops in PyTorch: the scan in chunks, and of every other op the simplest backend."""
    selections = {name: registry.simplest(name).name for name in _op_names() if name != SCAN}
    return forward(problem, str(config["dtype"]), Policy.of({**selections, SCAN: str(config["scan"])}))


def _op_names() -> tuple[str, ...]:
    return tuple(name for name in registry.ops() if name != NAME)


op = Op(
    name=NAME,
    summary="the forward pass of a whole model",
    problem=ModelProblem,
    make_inputs=make_inputs,
    reference=reference,
    output_dtypes=lambda inputs: {"logits": torch.float32},
    work=work,
    corners=(
        ModelProblem(model="digits", batch=3, size=8),
        ModelProblem(model="digits", batch=2, size=8, max_logit_error=0.05),
    ),
    probes=(),
    fresh_inputs=fresh_inputs,
    speedups_over="model_in_torch:scan=reference",
    allowed_error=lambda problem: problem.max_logit_error,
)
DTYPE = Tunable("dtype", DTYPES, default="float32", summary="of the weights; or float32 with products in bfloat16")
CLAIMS = OpCapabilities(dtypes=("float32",))
SOURCES = (Path(__file__), Path(__file__).with_name("mamba_weights.py"), Path(__file__).with_name("mamba_block.py"))

in_torch = Backend(
    name="model_in_torch",
    summary="every op in PyTorch",
    rank=0,
    sources=SOURCES,
    space=Space((DTYPE, Tunable("scan", ("chunked", "reference"), default="chunked", summary="its backend"))),
    capabilities=CLAIMS,
    make=make_in_torch,
    op=NAME,
)
assembly = Backend(
    name="assembly",
    summary="each op by its tuned or its default choice",
    rank=1,
    sources=SOURCES,
    space=Space(
        (DTYPE, Tunable("tuned", subsets(_op_names()), default=NONE, summary="ops served by the profile's choice")),
    ),
    capabilities=CLAIMS,
    make=make_assembly,
    op=NAME,
)
