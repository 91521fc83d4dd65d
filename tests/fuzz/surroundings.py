"""Calls of the ops as tools of torch and of Python make them.

Within torch.func's vmap, jvp and grad, in forward mode and twice differentiated, which may be refused; with subclasses
of Tensor and tensors of inference mode, from several threads that give torch other numbers of threads, in a fork, and
while signals arrive, which must give what the plain call gives.
"""

from __future__ import annotations

import functools
import os
import pickle
import select
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from fuzz import convolutions, drop_ins, fronts, mamba2, norms, other_scans, scans
from fuzz.case import Arguments, Case, Results
from fuzz.draws import Draw

FUNCTIONS = (
    scans.selective_scan,
    scans.selective_scan,
    scans.directed_scan,
    other_scans.ssd,
    other_scans.cross_scan,
    convolutions.convolution,
    convolutions.bidirectional_convolution,
    convolutions.function,
    norms.add_norm,
    norms.layer_norm,
    norms.gated_norm,
    fronts.product,
    drop_ins.mamba_inner,
    mamba2.chunk_scan,
)
FORK_S = 60.0
Call = Callable[[Arguments], Results]


class Subclass(Tensor):
    """Subclass of Tensor without anything of its own."""


def surroundings(draw: Draw, *, edge: bool) -> Case:
    """Draw a right call of an op in odd surroundings, with `edge` among those that torch's transforms make."""
    case = draw.pick(FUNCTIONS)(draw, edge=False)
    ways = TRANSFORMS if edge else PLAIN
    around = draw.pick(tuple(ways))
    case.note = f"{case.op} {case.note} {around}"
    return replace(ways[around](draw, case), op="surroundings", differentiated=(), may_refuse=edge)


def floats(case: Case) -> list[str]:
    """Return the names of the arguments that have derivatives."""
    given = case.arguments.items()
    return [name for name, value in given if isinstance(value, Tensor) and value.is_floating_point()]


def with_subclass(draw: Draw, case: Case) -> Case:
    """Pass some arguments as a subclass of Tensor."""
    names = [name for name, value in case.arguments.items() if isinstance(value, Tensor) and draw.chance(0.5)]

    def call(given: Arguments) -> Results:
        passed = {name: given[name].as_subclass(Subclass) for name in names if type(given[name]) is Tensor}
        found = case.call(given | passed)
        return {name: each.as_subclass(Tensor) for name, each in found.items()}

    return replace(case, call=call)


def of_inference_mode(draw: Draw, case: Case) -> Case:
    """Pass some arguments as tensors that were made in inference mode."""
    names = [name for name, value in case.arguments.items() if isinstance(value, Tensor) and draw.chance(0.5)]

    def call(given: Arguments) -> Results:
        with torch.inference_mode():
            made = {name: given[name].clone() for name in names if isinstance(given[name], Tensor)}
        with torch.inference_mode(False):
            return case.call(given | made)

    return replace(case, call=call)


def in_threads(draw: Draw, case: Case) -> Case:
    """Call from three threads at once, each of which gives torch another number of threads."""

    def call(given: Arguments) -> Results:
        found: dict[str, Tensor] = {}
        failures: list[Exception] = []
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        def work(threads: int) -> None:
            torch.get_num_threads()  # at the first call in a thread torch takes over another's number
            torch.set_num_threads(threads)
            with torch.set_grad_enabled(modes[0]), torch.inference_mode(modes[1]):
                try:
                    results = case.call(given)
                except Exception as error:  # noqa: BLE001 - raised again in the calling thread
                    failures.append(error)
                    return
            found.update({f"{name}{threads}": each for name, each in results.items()})
            if torch.get_num_threads() != threads:
                failures.append(AssertionError(f"torch has {torch.get_num_threads()} threads, not {threads}"))

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure
        return found

    return replace(
        case,
        call=call,
        reference=lambda given: {f"{n}{k}": v for n, v in case.reference(given).items() for k in (1, 2, 3)},
        dtypes=lambda given: {f"{n}{k}": v for n, v in case.dtypes(given).items() for k in (1, 2, 3)},
    )


def in_a_fork(draw: Draw, case: Case) -> Case:
    """Call here and then in a fork, whose results are taken; as a worker of DataLoader it has one thread."""

    def call(given: Arguments) -> Results:
        if any(each.is_meta for each in case.call(given).values()):
            return case.call(given)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(write, "wb") as pipe:
                torch.set_num_threads(1)
                try:
                    results = case.call(given)
                    made = {n: (e.dtype, e.shape, e.detach().flatten().tolist()) for n, e in results.items()}
                    pipe.write(pickle.dumps(made))
                finally:
                    pipe.flush()
                    os._exit(0)
        os.close(write)
        try:
            if not select.select([read], [], [], FORK_S)[0]:
                raise AssertionError(f"the fork was silent for {FORK_S} s")
            with os.fdopen(read, "rb") as pipe:
                made = pickle.load(pipe)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return {name: torch.tensor(each[2], dtype=each[0]).view(each[1]) for name, each in made.items()}

    return replace(case, call=call)


def under_signals(draw: Draw, case: Case) -> Case:
    """Call while a signal arrives every millisecond."""

    def call(given: Arguments) -> Results:
        before = signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            return case.call(given)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)

    return replace(case, call=call)


def mapped(draw: Draw, case: Case) -> Case:
    """Call under vmap, over two values of one argument, of which the second is the argument."""
    name, inside = draw.pick(floats(case)), draw.pick((0, -1))

    def call(given: Arguments) -> Results:
        pairs = torch.stack((given[name] * 2, given[name]), inside)
        keys: list[str] = []

        def one(value: Tensor) -> tuple[Tensor, ...]:
            results = case.call(given | {name: value})
            keys[:] = results
            return tuple(results.values())

        # Not with other out_dims, which torch mistakes where a result does not depend on the argument.
        found = torch.func.vmap(one, in_dims=inside)(pairs)
        return {key: each[1] for key, each in zip(keys, found, strict=True)}

    return replace(case, call=call)


def pushed_forward(draw: Draw, case: Case) -> Case:
    """Take derivatives in the direction of one or more arguments, in forward mode."""
    names = draw.sample(floats(case), draw.randint(1, 2)) if len(floats(case)) > 1 else floats(case)
    tangents = {name: draw.normal(*case.arguments[name].shape, dtype=case.arguments[name].dtype) for name in names}
    by_function = draw.chance(0.5)

    def pushed(function: Call, given: Arguments, by_function: bool) -> Results:
        along = {name: tangents[name].to(given[name].dtype) for name in names}
        with torch.inference_mode(False), torch.enable_grad():
            if by_function:
                keys: list[str] = []

                def several(*values: Tensor) -> tuple[Tensor, ...]:
                    results = function(given | dict(zip(names, values, strict=True)))
                    keys[:] = results
                    return tuple(results.values())

                primals = tuple(given[name].clone() for name in names)
                outs, slopes = torch.func.jvp(several, primals, tuple(along.values()))
                return dict(zip(keys, outs, strict=True)) | {
                    f"along_{key}": each for key, each in zip(keys, slopes, strict=True)
                }
            with forward_ad.dual_level():
                dual = {name: forward_ad.make_dual(given[name].clone(), along[name]) for name in names}
                found = {name: forward_ad.unpack_dual(each) for name, each in function(given | dual).items()}
                slopes = {
                    f"along_{name}": torch.zeros_like(each.primal) if each.tangent is None else each.tangent
                    for name, each in found.items()
                }
                return {name: each.primal for name, each in found.items()} | slopes

    return replace(
        case,
        call=lambda given: pushed(case.call, given, by_function),
        reference=lambda given: pushed(case.reference, given, False),
        dtypes=lambda given: {
            f"{each}{name}": dtype for name, dtype in case.dtypes(given).items() for each in ("", "along_")
        },
        rounding=case.rounding + narrow_rounding(case),
    )


def pulled_back(draw: Draw, case: Case) -> Case:
    """Take the gradient of the first result by torch.func."""
    name = draw.pick(floats(case))

    def first_of(function: Call, given: Arguments, value: Tensor) -> tuple[Tensor, Tensor]:
        out = next(iter(function(given | {name: value}).values()))
        return weighted_squares(out.to(torch.promote_types(out.dtype, torch.float32))), out

    def call(given: Arguments) -> Results:
        with torch.inference_mode(False), torch.enable_grad():
            pull = torch.func.grad_and_value(functools.partial(first_of, case.call, given), has_aux=True)
            gradient, (_, out) = pull(given[name].clone())
        return {"out": out, "gradient": gradient}

    def reference(given: Arguments) -> Results:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = given[name].detach().clone().requires_grad_()
            total, out = first_of(case.reference, given, leaf)
            gradient = gradient_of(total, leaf)
        return {"out": out.detach(), "gradient": gradient}

    first = next(iter(case.dtypes(case.arguments)))
    return replace(
        case,
        call=call,
        reference=reference,
        dtypes=lambda given: {"out": case.dtypes(given)[first], "gradient": given[name].dtype},
        rounding=case.rounding + narrow_rounding(case),
    )


def differentiated_twice(draw: Draw, case: Case) -> Case:
    """Take the gradient of the square of a gradient."""
    first, second = draw.pick(floats(case)), draw.pick(floats(case))

    def twice(function: Call, given: Arguments) -> Results:
        with torch.inference_mode(False), torch.enable_grad():
            leaves = {name: given[name].detach().clone().requires_grad_() for name in {first, second}}
            out = next(iter(function(given | leaves).values()))
            once = gradient_of(weighted_squares(out), leaves[first], create_graph=True)
            return {"gradient": gradient_of(weighted_squares(once), leaves[second]).detach()}

    return replace(
        case,
        call=lambda given: twice(case.call, given),
        reference=lambda given: twice(case.reference, given),
        dtypes=lambda given: {"gradient": given[second].dtype},
        # The first gradient is rounded to the dtype of its argument.
        rounding=case.rounding + 4 * narrow_rounding(case) + 4 * torch.finfo(case.arguments[first].dtype).eps,
    )


def weighted_squares(values: Tensor) -> Tensor:
    """Return a sum of squares with unequal weights: that of a norm's results does not depend on its input."""
    weights = torch.linspace(0.5, 1.5, values.numel(), dtype=values.dtype.to_real()).reshape(values.shape)
    return (values.square() * weights).sum()


def gradient_of(total: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a number, zero where it does not depend on the leaf."""
    if not total.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(total, leaf, create_graph=create_graph, materialize_grads=True)[0]


def narrow_rounding(case: Case) -> float:
    """Return an error by the rounding of values of 16 bits on the way."""
    dtypes = [each.dtype for each in case.arguments.values() if isinstance(each, Tensor)]
    return max(
        (8 * torch.finfo(each).eps for each in dtypes if each.is_floating_point and each.itemsize == 2), default=0.0
    )


def in_neutral_modes(draw: Draw, case: Case) -> Case:
    """Call with several of torch's modes on that change nothing."""

    def call(given: Arguments) -> Results:
        with ExitStack() as modes:
            modes.enter_context(torch.autocast("cpu", enabled=False))
            modes.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=False))
            modes.enter_context(torch.autograd.graph.save_on_cpu())
            return case.call(given)

    return replace(case, call=call)


PLAIN: dict[str, Callable[[Draw, Case], Case]] = {
    "with a subclass": with_subclass,
    "with tensors of inference mode": of_inference_mode,
    "in threads": in_threads,
    "in a fork": in_a_fork,
    "under signals": under_signals,
    "in modes that change nothing": in_neutral_modes,
}
TRANSFORMS: dict[str, Callable[[Draw, Case], Case]] = {
    "under vmap": mapped,
    "in forward mode": pushed_forward,
    "by torch.func.grad": pulled_back,
    "twice differentiated": differentiated_twice,
}
