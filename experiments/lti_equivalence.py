"""With parameters that do not vary over time a scan is a convolution, and both computations agree.

S4 (Gu et al. 2022) trains as a convolution and generates as a recurrence; Mamba gave up the convolution when it let the
step size, B and C depend on the input. Here they are constant: the recurrence h[t] = exp(step A) h[t-1] + step B u[t]
is the convolution of u with the kernel K[t] = <C, exp(t step A) step B>, which FFTs compute. Errors are against the
float64 recurrence; times are interleaved, of 768 channels with 16 states.

    python experiments/lti_equivalence.py
"""

from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from scanlab.contract.problem import ScanInputs
from scanlab.report.formatting import milliseconds, scientific
from scanlab.runtime.dispatch import Dispatcher, dispatcher

LENGTHS = tuple(2**power for power in range(7, 15))
DIM, STATE = 768, 16
FEWEST, MOST, LIMIT_S = 3, 30, 5.0  # rounds of one length


def drawn_system(length: int) -> ScanInputs:
    """Draw a time-invariant system in float64: a step size for each channel, constant B and C."""
    generator = torch.Generator().manual_seed(length)
    u = torch.randn(1, DIM, length, generator=generator, dtype=torch.float64)
    B, C = torch.randn(2, DIM, STATE, generator=generator, dtype=torch.float64)
    rates = torch.arange(1, STATE + 1, dtype=torch.float64) + torch.rand(DIM, STATE, generator=generator)
    step = 10.0 ** (-3.0 + 2.0 * torch.rand(DIM, 1, generator=generator, dtype=torch.float64))
    return ScanInputs(u, step.expand(1, DIM, length).contiguous(), -rates, B, C, D=torch.ones(DIM, dtype=torch.float64))


def kernel(system: ScanInputs) -> Tensor:
    """Return the impulse response of the system: (dim, length)."""
    step = system.delta[0, :, :1]
    powers = torch.arange(system.u.shape[-1], dtype=step.dtype)
    decay = torch.exp((step * system.A)[..., None] * powers)
    return torch.einsum("dn,dn,dnl->dl", system.C, step * system.B, decay)


def convolution(system: ScanInputs, spectrum: Tensor) -> Tensor:
    """Compute the output by FFT, padded so that the end does not wrap around to the beginning."""
    length = system.u.shape[-1]
    product = torch.fft.rfft(system.u, n=2 * length) * spectrum
    return torch.fft.irfft(product, n=2 * length)[..., :length] + system.D[:, None] * system.u


def spectrum(system: ScanInputs) -> Tensor:
    """Return the transformed kernel, which a trained model computes once."""
    return torch.fft.rfft(kernel(system), n=2 * system.u.shape[-1])


@torch.inference_mode()
def compared(length: int) -> dict[str, float]:
    """Return the errors, as shares of the largest output, and the times of both computations."""
    exact = drawn_system(length)
    truth = Dispatcher("reference")(exact, delta_softplus=False).out
    system = exact.with_tensors(**{name: tensor.float() for name, tensor in exact.tensors().items()})
    known = spectrum(system)
    best, loop = dispatcher(), Dispatcher("reference")
    calls = {
        "recurrence": lambda: best(system, delta_softplus=False).out,
        "convolution": lambda: convolution(system, known),
        "convolution, kernel anew": lambda: convolution(system, spectrum(system)),
        "recurrence, reference loop": lambda: loop(system, delta_softplus=False).out,
    }
    largest = truth.abs().max()
    row: dict[str, float] = {"length": length}
    exactly = convolution(exact, spectrum(exact))
    row["float64 convolution error"] = float((exactly - truth).abs().max() / largest)
    row |= {f"{name} error": float((call() - truth).abs().max() / largest) for name, call in calls.items()}
    samples = common.interleaved(calls, FEWEST, MOST, LIMIT_S)
    return row | {f"{name} ms": 1e3 * float(np.median(taken)) for name, taken in samples.items()}


def main(out: Path = common.RESULTS / "lti_equivalence") -> None:
    """Compare at every length."""
    caption = common.setting()
    frame = pd.DataFrame([compared(length) for length in LENGTHS])
    caption = f"{caption}; {DIM} channels, {STATE} states, batch 1; recurrence: {common.served_by(dispatcher())}"
    errors, times_ms = (
        frame.set_index("length").filter(regex=f" {kind}$").rename(columns=lambda name: name.rpartition(" ")[0])
        for kind in ("error", "ms")
    )
    title, lines = "The same outputs, computed in two ways", common.lines_of(times_ms)
    plot = common.Plot(title, "Time of one call in float32.", "length of the sequence", "time", lines, milliseconds)
    heading = "Largest error against the float64 recurrence, as a share of the largest output"
    sections = {heading: common.spelled(errors, scientific), "Time": common.spelled(times_ms, milliseconds)}
    common.write_page(out, __doc__, caption, {"time": common.drawn(plot, caption)}, sections, frame)


if __name__ == "__main__":
    typer.run(main)
