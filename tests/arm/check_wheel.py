"""Check what is installed: native ops against float64, models and the drop-in against another machine's results.

    python check_wheel.py RESULTS            # compare models with the file that the other machine wrote
    python check_wheel.py RESULTS --write    # write that file

Needs no test runner, so that it runs in an environment that holds the wheel and its dependencies alone.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import scanlab
import scanlab.integrations.mamba_ssm as drop_in
from scanlab.contract import registry
from scanlab.contract.verify import reference_outputs, verify

# The same arithmetic in another order: float32 keeps 7 digits, and a few layers lose one or two of them.
TOLERANCE = 2e-5


def models() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield small models, the modules of the drop-in among them, each with an input."""
    torch.manual_seed(0)
    vim = scanlab.VisionMamba(img_size=64, embed_dim=192, depth=3, num_classes=10)  # Vim-tiny, but for the depth
    yield "Vim-tiny, 3 layers, 64 pixels", vim, torch.randn(2, 3, 64, 64)
    drop_in.install()
    from mamba_ssm import Mamba, Mamba2

    yield "Mamba", Mamba(d_model=24, layer_idx=0), torch.randn(2, 37, 24)
    yield "Mamba2", Mamba2(d_model=32, headdim=16, layer_idx=0), torch.randn(2, 37, 32)


def results(model: nn.Module, given: Tensor) -> dict[str, Tensor]:
    """Return the output of inference, and output and gradients of a step of training."""
    with torch.inference_mode():
        found = {"inference": model.eval()(given).clone()}
    wanted = given.clone().requires_grad_()
    output = model(wanted)
    output.square().mean().backward()
    found |= {"training": output.detach(), "gradient of the input": wanted.grad}
    return found | {f"gradient of {name}": weight.grad for name, weight in model.named_parameters()}


def check_ops() -> int:
    """Verify every native op on every hard problem of its op; return the number of those that fail."""
    failures = 0
    for name in registry.names():
        if name.rpartition("_")[2] not in ("native", "gemv"):
            continue
        backend, start = registry.get(name), time.monotonic()
        op = registry.op(backend.op)
        if backend.unavailable():
            print(f"{name}: {backend.unavailable()}", flush=True)
            failures += 1
            continue
        problems = [problem for problem in op.corners if backend.rejects(problem) is None]
        for problem in problems:
            verdict = verify(backend.build(problem), reference_outputs(problem, op.make_inputs(problem, 0)))
            if not verdict.passed:
                print(f"{name} on {problem.key}: {verdict.reason}", flush=True)
                failures += 1
        print(f"{name}: {len(problems)} problems in {time.monotonic() - start:.0f} s", flush=True)
    return failures


def check_models(path: Path, write: bool) -> int:
    """Write the weights, inputs and results of the models to `path`, or compare with those; return the failures."""
    failures = 0
    kept = {} if write else torch.load(path)
    for name, model, given in models():
        if write:
            kept[name] = {"weights": model.state_dict(), "given": given, "results": results(model, given)}
            continue
        model.load_state_dict(kept[name]["weights"])
        found, expected = results(model, kept[name]["given"]), kept[name]["results"]
        errors = {key: float((found[key] - value).abs().max() / value.abs().max()) for key, value in expected.items()}
        worst = max(errors, key=lambda key: errors[key])
        print(f"{name}: {len(errors)} tensors, the largest difference is {errors[worst]:.1e} ({worst})", flush=True)
        failures += not errors[worst] <= TOLERANCE
    if write:
        torch.save(kept, path)
    return failures


def main() -> None:
    """Check ops and models, and end with status 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file of the models' results")
    parser.add_argument("--write", action="store_true", help="write the file, and check no op")
    options = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, scanlab {scanlab.__version__}", flush=True)
    failures = check_models(options.results, options.write)
    if not options.write:
        failures += check_ops()
        print("loaded:", *sorted(Path(library).name for library in torch.ops.loaded_libraries))
    if failures:
        sys.exit(f"{failures} checks failed")


if __name__ == "__main__":
    main()
