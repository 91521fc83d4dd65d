"""Write the results and times of one client: run by compatibility.py in a fresh process.

python experiments/clients/observe.py CHECKOUTS MODEL FILE [--reference WEIGHTS] [--cpu] [--fork] [--no-gradients]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from catalogue import CLIENTS
from torch import Tensor, nn

LIMIT_S = 1.0  # of timed calls
CALLS = 5


def outputs_of(found: Any) -> list[Tensor]:
    """Return the tensors of a model's output, in order."""
    if isinstance(found, Tensor):
        return [found.as_subclass(Tensor)]  # of classes that the client alone knows
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return [tensor for each in found for tensor in outputs_of(each)]
    return []


def seconds_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Return the median time of a forward pass in inference."""
    taken: list[float] = []
    with torch.inference_mode():
        while len(taken) < CALLS and (sum(taken) < LIMIT_S or len(taken) < 2):
            begin = time.perf_counter()
            model(*inputs)
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def observations(model: nn.Module, inputs: tuple[Tensor, ...], gradients: bool) -> Iterator[dict[str, Any]]:
    """Yield the outputs and the time of a forward pass, and then, if asked for, the gradients of every parameter."""
    with torch.inference_mode():
        outputs = [each.clone() for each in outputs_of(model(*inputs))]
    found = {"weights": model.state_dict(), "outputs": outputs, "seconds": seconds_of(model, inputs), "gradients": {}}
    yield found
    if not gradients:
        return
    sum(each.square().mean() for each in outputs_of(model(*inputs))).backward()  # type: ignore[union-attr]
    gradients_of = ((name, each.grad) for name, each in model.named_parameters())
    yield found | {"gradients": {name: each.as_subclass(Tensor) for name, each in gradients_of if each is not None}}


def main(
    checkouts: Path,
    model_name: str,
    file: Path,
    reference: Annotated[Path | None, typer.Option(help="Compute by the references, with these weights.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Map CUDA devices to the CPU.")] = False,
    fork: Annotated[bool, typer.Option("--fork", help="Import the client's own mamba_ssm.")] = False,
    gradients: Annotated[bool, typer.Option(help="Differentiate too.")] = True,
) -> None:
    """Build the client, compute and save."""
    torch.set_num_threads(1)  # so that neighbours disturb the times less
    client = next(each for each in CLIENTS if each.model == model_name)
    checkout = checkouts / client.repository.replace("/", "+")
    sys.path[:0] = [str(checkout / each) for each in (*client.paths, *(client.forks if fork else ()))]
    if reference is None:
        import scanlab.integrations.mamba_ssm as drop_in

        drop_in.install()
    else:
        import reference_kernels

        reference_kernels.install(checkouts / "state-spaces+mamba")
    from scanlab.integrations.cuda_on_cpu import on_cpu

    with on_cpu() if cpu else nullcontext():
        torch.manual_seed(0)
        model, inputs = client.build()
        model = model.float().eval()
        if reference is not None:
            model.load_state_dict(torch.load(reference)["weights"])
        for found in observations(model, inputs, gradients):
            torch.save(found, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)


if __name__ == "__main__":
    typer.run(main)
