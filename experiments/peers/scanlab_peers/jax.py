"""The scan as JAX writes it, compiled by XLA: a scan over time, or an associative scan.

XLA takes all of the machine's threads; how many cannot be said while a process runs.
"""

from collections.abc import Callable
from typing import Any

import torch

from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config, Tunable
from scanlab_peers.peer import peer, without_groups


def make(problem: ScanProblem, config: Config) -> Callable[[ScanInputs], ScanOutput]:
    """Return the forward scan; tensors are shared with torch, not copied, where XLA accepts their layout."""
    import jax
    import jax.numpy as jnp

    softplus, unroll = problem.delta_softplus, int(config["unroll"])

    def over_time(decay_of: Callable[[Any], Any], u: Any, delta: Any, B: Any, C: Any, h: Any) -> tuple[Any, Any]:
        def step(h: Any, now: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
            u, delta, B, C = now
            h = decay_of(delta) * h + (delta * u)[..., None] * B[:, None]
            return h, (h * C[:, None]).sum(-1)

        steps = tuple(jnp.swapaxes(each, 0, 1) for each in (u, delta, B, C))
        h, y = jax.lax.scan(step, h, steps, unroll=unroll)
        return jnp.swapaxes(y, 0, 1), h

    def associative(decay_of: Callable[[Any], Any], u: Any, delta: Any, B: Any, C: Any, h: Any) -> tuple[Any, Any]:
        def join(left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        drive = (delta * u)[..., None] * B[:, :, None]
        _, states = jax.lax.associative_scan(join, (decay_of(delta), drive), axis=1)
        return (states * C[:, :, None]).sum(-1), states[:, -1]

    method = associative if config["method"] == "associative" else over_time

    @jax.jit
    def scan_arrays(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any) -> tuple[Any, Any]:
        delta = delta if bias is None else delta + bias
        delta = jax.nn.softplus(delta) if softplus else delta
        h = jnp.zeros((u.shape[0], *A.shape), u.dtype)
        y, h = method(lambda delta: jnp.exp(delta[..., None] * A), u, delta, B, C, h)
        y = y if D is None else y + D * u
        return (y if z is None else y * jax.nn.silu(z)), h

    def array(values: torch.Tensor | None) -> Any:
        return None if values is None else jax.dlpack.from_dlpack(values.detach().contiguous())

    def scan(inputs: ScanInputs) -> ScanOutput:
        u, delta, A, B, C, D, z, bias, _ = inputs
        B, C = without_groups(B), without_groups(C)
        out, last = scan_arrays(
            *(array(values.mT) for values in (u, delta)),
            array(A),
            *(array(values.mT) for values in (B, C)),
            array(D),
            array(None if z is None else z.mT),
            array(bias),
        )
        return ScanOutput(torch.from_dlpack(out).mT, torch.from_dlpack(last))

    return scan


backend = peer(
    "jax",
    "JAX: XLA's scan over time, or its associative scan",
    104,
    __file__,
    ("jax", "jaxlib"),
    make,
    Tunable("method", ("scan", "associative"), default="scan", summary="over time, or in a tree"),
    Tunable("unroll", (1, 4, 16), default=1, summary="steps of the scan over time that are compiled as one"),
)
