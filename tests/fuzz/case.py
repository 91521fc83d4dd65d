"""A call of an op with all that judges it, and the judgement.

A reference is a plain loop that knows nothing of scanlab. In float64 it says what is right; in the dtype that the op
computes in it says how far a right implementation may be from that, and which values overflow or cancel. A reference
raises UnfitError for arguments that pose no problem: then the call must be refused, and no memory may have changed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scanlab.errors import ScanlabError

Arguments = dict[str, Any]
Results = dict[str, Tensor]
Kind = Literal["valid", "edge", "hostile"]

# A refusal is an error that says what is wrong. Others come out of code that was not ready for its arguments.
REFUSALS = (ScanlabError, ValueError, TypeError, IndexError, NotImplementedError, RuntimeError, MemoryError)
NOT_REFUSALS = ("INTERNAL ASSERT", "has no attribute")
MAX_ELEMENTS = 10**8  # of a tensor that a reference reads; larger ones must be refused for lack of memory
SLACK = 16.0  # how often the error of the plain loop in the same arithmetic is allowed


class UnfitError(Exception):
    """Raised by a reference: the arguments do not fit together."""


@dataclass
class Case:
    """A call and what it must give.

    Args:
        op: Name of the op.
        arguments: Arguments by name. Tensors that the call updates are listed in `states`.
        call: Calls the op and returns its results by name.
        reference: Returns the results and the new states by name, for arguments in one wide dtype; nothing where no
            value is known.
        dtypes: Returns the dtypes of the results of a call with these arguments.
        arithmetic: Dtype that the op computes in.
        states: Names of the arguments that the call updates.
        differentiated: Names of the arguments whose gradients are compared too.
        kind: "valid" calls must give the right results, "edge" calls those or a refusal where `may_refuse`, and
            "hostile" calls the right results or a refusal.
        may_refuse: Whether a refusal is right too.
        must_refuse: Whether only a refusal is right.
        rounding: A further error of the results that is allowed, as a share of the largest value.
        exact_infinities: Whether infinity and NaN must be distinguished.
        note: What is odd about this case.
    """

    op: str
    arguments: Arguments
    call: Callable[[Arguments], Results]
    reference: Callable[[Arguments], Results]
    dtypes: Callable[[Arguments], Mapping[str, torch.dtype]]
    arithmetic: torch.dtype = torch.float32
    states: tuple[str, ...] = ()
    differentiated: tuple[str, ...] = ()
    kind: Kind = "valid"
    may_refuse: bool = False
    must_refuse: bool = False
    rounding: float = 0.0
    exact_infinities: bool = True
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op} ({self.kind}{', ' if self.note else ''}{self.note}): " + ", ".join(
            f"{name}={describe(value)}" for name, value in self.arguments.items()
        )


def describe(value: object) -> str:
    """Return a short text for an argument."""
    if not isinstance(value, Tensor):
        return repr(value)[:60]
    dtype = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_nested:
        return f"{dtype} {value.layout}"
    place = "" if value.device.type == "cpu" else f" on {value.device}"
    return f"{dtype}{list(value.shape)}/{list(value.stride())}{place}"


def judge(case: Case) -> list[str]:
    """Make the call and return what is wrong with its outcome."""
    memory = Memory(tensors(case.arguments))
    try:
        with torch.inference_mode(False):
            truth = case.reference(wide(case.arguments, torch.float64))
    except UnfitError:
        truth = None
    except RuntimeError:
        if case.kind != "hostile":
            raise
        truth = {}  # the loop itself cannot compute with these: anything but a crash is right
    try:
        results = case.call(case.arguments)
    except Exception as error:  # noqa: BLE001 - every outcome is judged
        return _judge_refusal(case, truth, error) + memory.changes(())
    if any(result.is_meta for result in results.values()):
        return []  # as torch's own ops answer where one tensor is on meta
    if truth is None or case.must_refuse:
        return ["accepted what must be refused"]
    written = [case.arguments[name] for name in case.states]
    if not truth:
        return memory.changes(each for each in written if isinstance(each, Tensor) and has_memory(each))
    results |= {name: case.arguments[name] for name in case.states}
    expected = {**case.dtypes(case.arguments), **{name: case.arguments[name].dtype for name in case.states}}
    faults = memory.changes(written)

    def compare(near: list[Results]) -> list[str]:
        found = (
            disagreement(case, name, results[name], dtype, truth[name], [each[name] for each in near])
            for name, dtype in expected.items()
        )
        return list(itertools.chain(*found))

    with torch.inference_mode(False):
        faults += _faults_beyond_rounding(case, case.reference, memory.before(case.arguments), compare)
    # Gradients at special values are conventions, which differ among torch's own ops.
    special = any(_has_special_values(each) for each in tensors(case.arguments))
    if case.differentiated and not faults and case.kind != "hostile" and not special:
        with torch.inference_mode(False), torch.enable_grad():
            faults += _judge_gradients(case)
    return faults


def _faults_beyond_rounding(
    case: Case,
    function: Callable[[Arguments], Results],
    arguments: Arguments,
    compare: Callable[[list[Results]], list[str]],
) -> list[str]:
    """Return the faults that rounding does not explain: neither that of a plain loop nor that of its arguments.

    Args:
        case: What was called.
        function: The loop.
        arguments: As they were before the call.
        compare: (what loops near the truth give, in the arithmetic of the op first) -> faults.
    """
    torch.set_flush_denormal(True)  # as the kernels do: an infinite state may meet a decay of 0 then
    try:
        near = [function(wide(arguments, plain_dtype(case)))]
    except RuntimeError:
        if case.kind != "hostile":
            raise
        return []  # the loop computes with these in float64 alone
    finally:
        torch.set_flush_denormal(False)
    faults = compare(near)
    return compare([*near, function(shaken(arguments, plain_dtype(case)))]) if faults else []


def shaken(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Return the arguments in float64, each number off by a rounding in `dtype`."""
    generator = torch.Generator().manual_seed(0)

    def shake(value: object) -> object:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        return value + value * signs * torch.finfo(dtype).eps

    return {name: shake(value) for name, value in wide(arguments, torch.float64).items()}


def plain_dtype(case: Case) -> torch.dtype:
    """Return the dtype of the plain loop: where an op computes in float64, float32 tells how well it is conditioned."""
    return torch.float32 if case.arithmetic == torch.float64 else case.arithmetic


def _has_special_values(tensor: Tensor) -> bool:
    return has_memory(tensor) and tensor.dtype.itemsize > 1 and not bool(tensor.isfinite().all())


def _judge_refusal(case: Case, truth: Results | None, error: Exception) -> list[str]:
    said = f"{type(error).__name__}: {error}"[:400]
    if truth is not None and case.kind != "hostile" and not (case.may_refuse or case.must_refuse):
        return [f"refused: {said}"]
    # An object in the place of a tensor fails as it does in Python, wherever it is first used as one.
    is_ours = isinstance(error, REFUSALS) and not any(text in said for text in NOT_REFUSALS)
    is_ours |= "an object" in case.note
    return [] if is_ours and (str(error) or isinstance(error, MemoryError)) else [f"no refusal but {said}"]


def _judge_gradients(case: Case) -> list[str]:
    seeds: dict[str, Tensor] = {}

    def gradients(function: Callable[[Arguments], Results], arguments: Arguments) -> Results:
        leaves = {name: arguments[name].detach().requires_grad_() for name in case.differentiated}
        results = function(arguments | leaves)
        outputs = {name: results[name] for name in case.dtypes(case.arguments) if results[name].requires_grad}
        for name, tensor in outputs.items():
            if name not in seeds:
                generator = torch.Generator().manual_seed(tensor.numel())
                drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype.to_real()).mul(8).round()
                seeds[name] = drawn.div(8).to(tensor.dtype)
        found = torch.autograd.grad(
            list(outputs.values()),
            list(leaves.values()),
            [seeds[name].to(tensor.dtype) for name, tensor in outputs.items()],
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }

    memory = Memory(tensors(case.arguments))
    found = gradients(case.call, case.arguments)
    truth = gradients(case.reference, wide(case.arguments, torch.float64))

    def compare(near: list[Results]) -> list[str]:
        faults = []
        for name in case.differentiated:
            dtype, others = case.arguments[name].dtype, [each[name] for each in near]
            # The parts of a gradient are rounded before they are added.
            rounding = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
            faults += disagreement(case, f"grad_{name}", found[name], dtype, truth[name], others, rounding)
        return faults

    loop = functools.partial(gradients, case.reference)
    return memory.changes(()) + _faults_beyond_rounding(case, loop, case.arguments, compare)


def disagreement(
    case: Case,
    name: str,
    result: Tensor,
    dtype: torch.dtype,
    truth: Tensor,
    near: Sequence[Tensor],
    rounding: float = 0.0,
) -> list[str]:
    """Return what is wrong with a result.

    Args:
        case: What was called.
        name: Name of the result.
        result: What the call gave.
        dtype: The dtype that it must have.
        truth: What a loop in float64 gives.
        near: What the same loop gives in the dtype that the op computes in, or in float32 where that is float64; and
            what it gives for arguments that are off by a rounding, or nothing.
        rounding: An error that is allowed beside those of the case, as a share of the largest value.
    """
    arithmetic, rounding = case.arithmetic, rounding + case.rounding
    if case.kind == "hostile":  # another dtype may be rounded to where the right one is not
        narrow = (each.dtype for each in tensors(case.arguments) if each.is_floating_point())
        rounding += max((4 * torch.finfo(dtype).eps for dtype in narrow if dtype.itemsize == 2), default=0.0)
        rounding += 128 * torch.finfo(arithmetic).eps  # states may grow, which those of valid calls do not
    result = result if result.layout == torch.strided else result.to_dense()
    if result.dtype != dtype or result.shape != truth.shape:
        return [f"{name} is {describe(result)}: must be {dtype} {list(truth.shape)}"]
    is_complex = truth.is_complex() or result.is_complex()
    if is_complex:
        result, truth, *near = (torch.view_as_real(each.resolve_conj()) for each in (result, truth, *near))
    got, right, plain, *moved = (each.detach().double() for each in (result, truth, *near))
    if not right.numel():
        return []
    if not result.is_floating_point():
        return []  # integers as an input, which torch rounds its own way
    limits = torch.finfo(result.dtype)
    # Where the arithmetic overflows and the truth does not, either is right.
    certain = (_kinds(right) == _kinds(plain)) | (arithmetic == torch.float64)
    # What multiplies decays before states may overflow on its way to a large value.
    largest_certain = 0.99 * limits.max if case.exact_infinities else limits.max**0.5
    certain &= ~(right.isfinite() & (right.abs() > largest_certain))
    differs = _kinds(got) != _kinds(right) if case.exact_infinities else got.isfinite() != right.isfinite()
    if is_complex:
        certain &= right.isfinite()  # torch multiplies a real number as a complex one, and an infinity by its zero
    wrong = certain & differs
    if wrong.any():
        place = tuple(int(axis[0]) for axis in wrong.nonzero(as_tuple=True))
        return [f"{name}{list(place)} is {got[place]}: must be {right[place]} ({int(wrong.sum())} such)"]
    finite = certain & right.isfinite()
    if not finite.any():
        return []
    losses = [(each[finite] - right[finite]).abs().nan_to_num(0.0, 0.0).max() for each in (plain, *moved)]
    got, right = got[finite], right[finite]
    largest, loss = right.abs().max(), torch.stack(losses).max()
    if arithmetic == torch.float64:
        loss *= torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    tiny = torch.finfo(torch.float32 if arithmetic != torch.float64 else torch.float64).tiny
    floor = rounding * largest + 0.55 * limits.eps * right.abs()
    allowed = floor + SLACK * (loss + torch.finfo(arithmetic).eps * largest + tiny)
    allowed += limits.smallest_normal * limits.eps
    over = ((got - right).abs() - allowed).max()
    if over > 0:
        error = (got - right).abs().max() / largest.clamp(min=1e-300)
        return [f"{name} is off by {error:.1e} of its largest value, a plain loop by {loss / largest:.1e}"]
    return []


def _kinds(values: Tensor) -> Tensor:
    return values.isnan() * 3 + values.isposinf() * 1 + values.isneginf() * 2


class Memory:
    """Copies of the memory of some tensors, taken to see what a call changed."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}
        for tensor in given:
            if has_memory(tensor):
                whole = _storage_of(tensor)
                self.copies.setdefault(whole.data_ptr(), (whole, whole.clone()))

    def before(self, arguments: Arguments) -> Arguments:
        """Return the arguments as they were."""
        return {
            name: self._view(value, 1) if isinstance(value, Tensor) and has_memory(value) else value
            for name, value in arguments.items()
        }

    def _view(self, tensor: Tensor, which: int) -> Tensor:
        whole = self.copies[_storage_of(tensor).data_ptr()][which].view(tensor.dtype)
        view = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        view = view.neg() if tensor.is_neg() else view
        return view.conj() if tensor.is_conj() else view

    def changes(self, written: Iterable[Tensor]) -> list[str]:
        """Return a fault for each piece of memory that changed outside of the tensors that may be written."""
        for tensor in written:
            self._view(tensor, 1).copy_(tensor)
        changed = [whole for whole, copy in self.copies.values() if not torch.equal(whole, copy)]
        return [f"memory of {len(changed)} arguments changed"] if changed else []


def has_memory(tensor: Tensor) -> bool:
    """Return whether the elements of a tensor lie in the memory of this process."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_nested
    if not is_plain or tensor.device.type != "cpu" or tensor.is_quantized or tensor.numel() > MAX_ELEMENTS:
        return False
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + reach + 1) * tensor.element_size()
    return tensor.numel() == 0 or end <= tensor.untyped_storage().nbytes()


def _storage_of(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def tensors(arguments: Arguments) -> list[Tensor]:
    """Return the tensors among the arguments."""
    return [value for value in arguments.values() if isinstance(value, Tensor)]


def wide(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Return the arguments with every floating or complex tensor that has memory in `dtype`, apart from the others."""

    def widen(value: object) -> object:
        if isinstance(value, Tensor) and (value.is_mkldnn or value.is_sparse):
            return value.to_dense().to(dtype)
        if not isinstance(value, Tensor) or not has_memory(value):
            return value
        if value.is_complex():
            return value.detach().to(dtype.to_complex()).clone()
        return value.detach().to(dtype).clone() if value.is_floating_point() else value.clone()

    return {name: widen(value) for name, value in arguments.items()}


def fit(name: str, value: object, shape: Sequence[int], *, integers: bool = False, is_complex: bool = False) -> Tensor:
    """Return `value` as a reference reads it.

    Args:
        shape: Its shape, -1 for any size.
        integers: Whether it must hold integers.
        is_complex: Whether it may be complex.

    Raises:
        UnfitError: It is no plain tensor on the CPU, of another shape, or of another kind of numbers.
    """
    if not isinstance(value, Tensor) or not has_memory(value):
        raise UnfitError(f"{name} is no plain tensor")
    sizes = [own if asked == -1 else asked for own, asked in zip(value.shape, shape, strict=False)]
    if len(shape) != value.dim() or sizes != list(value.shape):
        raise UnfitError(f"{name} is {tuple(value.shape)}: must be {tuple(shape)}")
    is_float = value.is_floating_point()
    if (value.is_complex() and not is_complex) or (integers and (is_float or value.dtype == torch.bool)):
        raise UnfitError(f"{name} is {value.dtype}")
    return value if integers or is_float or value.is_complex() else value.double()
