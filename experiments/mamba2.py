"""A Mamba-2 layer on a CPU, by transformers patched and unpatched, and by the PyTorch references of mamba_ssm.

One layer of a published model with random weights, the same in every implementation, whose outputs are compared first:

- `scanlab` is the layer of transformers, patched;
- `transformers` is the same layer on the PyTorch path that it takes on a CPU;
- `mamba_ssm` is the layer on the chunked PyTorch references that its tests compare with, restated here;
- `projections` are the two products with the layer's weights as torch computes them: "their share" is theirs of
  scanlab's time, and "at most" is the ratio that a layer would reach in which nothing else took time. scanlab's own
  products may take a little less than torch's, so that a share can pass 100 %.

All are timed in the same rounds, and times are medians. A token reads the same weights in memory whoever computes it,
as in a model that is patched or not. The peak of memory is that of one call in a fresh process, beyond what was in use
before it.

    python experiments/mamba2.py                                # all parts, in less than eight minutes
    python experiments/mamba2.py --layer nemotron-h-8b --dtype bfloat16 --part prompt
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import common
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from scanlab import patch
from scanlab.errors import InputError
from scanlab.report.formatting import milliseconds, times

PROMPTS = (512, 4096)
TRAINED = 512
CHUNK = 256  # divides both prompts
PROJECTIONS = "projections"  # both products with the weights of a layer, and nothing else
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}  # of whole layers, as a share of the largest output
KEYS = ["layer", "dtype", "what", "implementation"]
# measurement -> (unit, ratio of transformers to scanlab that is aimed at)
AIMS = {
    "a cached token": ("seconds", 1.5),
    f"training step of {TRAINED}": ("seconds", 2.0),
    **{f"prompt of {length}": ("seconds", 3.0) for length in PROMPTS},
    f"peak of memory, prompt of {PROMPTS[-1]}": ("bytes", 3.0),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer."""

    hidden: int
    heads: int
    head_dim: int
    state: int
    groups: int


LAYERS = {
    "granite-4.0-h-micro": Shape(hidden=2048, heads=64, head_dim=64, state=128, groups=1),
    "nemotron-h-8b": Shape(hidden=4096, heads=128, head_dim=64, state=128, groups=8),
}


def transformers_layer(name: str, dtype: str) -> tuple[Any, Any]:
    """Return the layer of transformers and its configuration; the same weights at every call."""
    torch.manual_seed(0)
    shape = LAYERS[name]
    if shape.groups == 1:
        from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite

        config: Any = granite.GraniteMoeHybridConfig(
            hidden_size=shape.hidden,
            mamba_n_heads=shape.heads,
            mamba_d_head=shape.head_dim,
            mamba_d_state=shape.state,
            mamba_n_groups=shape.groups,
            mamba_expand=shape.heads * shape.head_dim // shape.hidden,
            mamba_chunk_size=256,
            num_hidden_layers=1,
            layer_types=["mamba"],
        )
        layer: nn.Module = granite.GraniteMoeHybridMambaLayer(config, 0)
    else:
        from transformers.models.nemotron_h import modeling_nemotron_h as nemotron

        config = nemotron.NemotronHConfig(
            hidden_size=shape.hidden,
            mamba_num_heads=shape.heads,
            mamba_head_dim=shape.head_dim,
            ssm_state_size=shape.state,
            n_groups=shape.groups,
            chunk_size=128,
            time_step_min=0.0,
            layers_block_type=["mamba"],
        )
        layer = nemotron.NemotronHMamba2Mixer(config, 0)
    return layer.to(getattr(torch, dtype)), config


def patched_layer(name: str, dtype: str) -> tuple[Any, Any]:
    """Return `transformers_layer`, patched, and its configuration."""
    layer, config = transformers_layer(name, dtype)
    patch(layer)
    return layer, config


def reference_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return the scan by chunk_state_ref, state_passing_ref and chunk_scan_ref: every chunk and head at once.

    Shapes are those of mamba_chunk_scan_combined, the length a multiple of CHUNK; dt after its softplus.

    Source: state-spaces/mamba@e9594ce, mamba_ssm/ops/triton: ssd_chunk_state.py, ssd_state_passing.py and
    ssd_chunk_scan.py.
    """
    heads = x.shape[2] // B.shape[2]
    x, dt, B, C = (each.unflatten(1, (-1, CHUNK)) for each in (x, dt, B, C))  # (b, c, l, ...)
    B, C = (each.repeat_interleave(heads, dim=3) for each in (B, C))
    sums = (dt * A).cumsum(2)  # (b, c, l, h)
    to_end = torch.exp(sums[:, :, -1:] - sums)
    states = torch.einsum("bclhn,bclh,bclhp->bchpn", B.to(x.dtype), (to_end * dt).to(x.dtype), x).float()
    between = F.pad(sums[:, :, -1], (0, 0, 1, 0)).cumsum(1)  # (b, c + 1, h)
    passed = torch.exp(between[:, :, None] - between[:, None, 1:]).movedim(-1, 1).tril(-1)
    before = torch.einsum("bhzc,bchpn->bzhpn", passed, states)[:, :-1]
    scores = torch.einsum("bclhn,bcshn->bchls", C, B)
    by_head = sums.movedim(-1, 2)
    decays = torch.exp(by_head[..., :, None] - by_head[..., None, :]).tril()
    out = torch.einsum("bchls,bcsh,bcshp->bclhp", (scores * decays).to(x.dtype), dt.to(x.dtype), x)
    carried = torch.einsum("bclhn,bchpn->bclhp", C, before.to(C.dtype)) * torch.exp(sums)[..., None]
    return (out + carried + x * D[:, None]).flatten(1, 2)


def reference_layer(layer: Any, u: Tensor) -> Tensor:
    """Return the output of `layer` by operations of PyTorch, one after another, as mamba_split_conv1d_scan_ref."""
    inner, projection = layer.intermediate_size, layer.n_groups * layer.ssm_state_size
    z, xBC, dt = layer.in_proj(u).split([inner, inner + 2 * projection, layer.num_heads], dim=-1)
    xBC = F.silu(layer.conv1d(xBC.mT)[..., : u.shape[1]].mT)
    x, B, C = xBC.split([inner, projection, projection], dim=-1)
    B, C = (each.unflatten(-1, (layer.n_groups, -1)) for each in (B, C))
    step = F.softplus(dt.float() + layer.dt_bias.float())
    rates = -torch.exp(layer.A_log.float())
    y = reference_scan(x.unflatten(-1, (layer.num_heads, -1)), step, rates, B, C, layer.D).flatten(2)
    gated = (y.float() * F.silu(z.float())).unflatten(-1, (layer.n_groups, -1))
    normed = F.rms_norm(gated, gated.shape[-1:], eps=layer.norm.variance_epsilon).flatten(-2) * layer.norm.weight
    projected: Tensor = layer.out_proj(normed.to(u.dtype))
    return projected


def projected(layer: Any, u: Tensor) -> Tensor:
    """Return the two products with the weights of `layer`, and nothing else."""
    out: Tensor = layer.out_proj(layer.in_proj(u)[..., : layer.intermediate_size])
    return out


def forwards(name: str, dtype: str) -> dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]]:
    """Return the layer by each implementation, and its projections; each with the module that has its weights."""
    (ours, _), (theirs, _) = patched_layer(name, dtype), transformers_layer(name, dtype)
    return {
        "scanlab": (ours, ours),
        "transformers": (theirs, theirs),
        "mamba_ssm": (lambda u: reference_layer(theirs, u), theirs),
        PROJECTIONS: (lambda u: projected(theirs, u), theirs),
    }


def tokens(name: str, dtype: str, length: int) -> Tensor:
    """Return inputs of the layer, (1, length, hidden)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, length, LAYERS[name].hidden, generator=generator).to(getattr(torch, dtype))


def prompt_calls(name: str, dtype: str, length: int) -> dict[str, common.Call]:
    """Return the forward pass over a prompt by each implementation."""
    u = tokens(name, dtype, length)

    def call(forward: Callable[[Tensor], Tensor]) -> common.Call:
        return torch.inference_mode()(lambda: forward(u))

    calls = {which: call(forward) for which, (forward, _) in forwards(name, dtype).items()}
    if length == min(PROMPTS):
        check({which: each() for which, each in calls.items() if which != PROJECTIONS}, dtype)
    return calls


def prompt_call(name: str, dtype: str, length: int, which: str) -> common.Call:
    """Return the forward pass over a prompt by one implementation."""
    layer, _ = {"scanlab": patched_layer, "transformers": transformers_layer}[which](name, dtype)
    u = tokens(name, dtype, length)
    return torch.inference_mode()(lambda: layer(u))


def training_calls(name: str, dtype: str) -> dict[str, common.Call]:
    """Return a training step of each implementation: forward, and gradients of the input and of every weight."""
    u = tokens(name, dtype, TRAINED).requires_grad_()

    def step(forward: Callable[[Tensor], Tensor], layer: nn.Module) -> common.Call:
        leaves = [u, *layer.train().parameters()]
        return lambda: torch.autograd.grad(forward(u).float().square().mean(), leaves, allow_unused=True)

    return {which: step(*each) for which, each in forwards(name, dtype).items()}


@torch.inference_mode()
def token_calls(name: str, dtype: str) -> dict[str, common.Call]:
    """Return a token after a prompt, by the implementations that have a cache.

    All read the same memory: a copy of the weights that is used less often than another would leave the caches.
    """
    from transformers import DynamicCache

    prompt, token = tokens(name, dtype, 64), tokens(name, dtype, 1)

    def call(layer: Any, config: Any) -> common.Call:
        past = DynamicCache(config=config)
        layer(prompt, cache_params=past)
        return torch.inference_mode()(lambda: layer(token, cache_params=past))

    (theirs, config), (ours, _) = transformers_layer(name, dtype), patched_layer(name, dtype)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    calls = {"scanlab": call(ours, config), "transformers": call(theirs, config)}
    check({which: each() for which, each in calls.items()}, dtype)
    return calls | {PROJECTIONS: torch.inference_mode()(lambda: projected(theirs, token))}


def check(outputs: dict[str, Any], dtype: str) -> None:
    """Raise SystemExit where an implementation computes something else than transformers."""
    truth = outputs["transformers"].float()
    for which, output in outputs.items():
        error = ((output.float() - truth).abs().max() / truth.abs().max()).item()
        if not error <= TOLERANCES[dtype]:
            raise SystemExit(f"{which} is off by {error:.1e} of the largest output of transformers.")


PARTS: dict[str, Callable[[str, str], dict[str, dict[str, common.Call]]]] = {
    "token": lambda name, dtype: {"a cached token": token_calls(name, dtype)},
    "training": lambda name, dtype: {f"training step of {TRAINED}": training_calls(name, dtype)},
    "prompt": lambda name, dtype: {f"prompt of {each}": prompt_calls(name, dtype, each) for each in PROMPTS},
}
MEMORY = "memory"


def measured(name: str, dtype: str, part: str, limit_s: float) -> pd.DataFrame:
    """Return a row for each measurement of a part and implementation."""
    if part == MEMORY:
        peaks = {
            which: common.fresh_peak_bytes(prompt_call, name, dtype, PROMPTS[-1], which)
            for which in ("scanlab", "transformers")
        }
        found = {f"peak of memory, prompt of {PROMPTS[-1]}": peaks}
    else:
        found = {}
        for what, calls in PARTS[part](name, dtype).items():
            taken = common.interleaved(calls, 2, 200, limit_s)
            found[what] = {which: float(np.median(each)) for which, each in taken.items()}
    return pd.DataFrame(
        [
            {"layer": name, "dtype": dtype, "what": what, "implementation": which, "value": value}
            for what, values in found.items()
            for which, value in values.items()
        ]
    )


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the measurements of a layer as text, with the ratios of transformers to scanlab."""
    wide = rows.pivot(index="what", columns="implementation", values="value")
    wide = wide.reindex(columns=["scanlab", "transformers", "mamba_ssm", PROJECTIONS])
    lines = []
    for what, (unit, aim) in AIMS.items():
        if what in wide.index:
            values = wide.loc[what]
            spell = duration if unit == "seconds" else mebibytes
            spelled = {which: cell(each, spell) for which, each in values.items()}
            shown = {
                "ratio": cell(values["transformers"] / values["scanlab"], times),
                "their share": cell(values[PROJECTIONS] / values["scanlab"], "{:.0%}".format),
                "at most": cell(values["transformers"] / values[PROJECTIONS], times),
            }
            lines.append({"what": what, **spelled, **shown, "aim": f"at least {aim:g}"})
    return pd.DataFrame(lines)


def cell(value: float, spell: Callable[[float], str]) -> str:
    """Return a value as text; empty where it was not measured."""
    return "" if pd.isna(value) else spell(value)


def duration(seconds: float) -> str:
    """Return seconds as text."""
    return milliseconds(1e3 * seconds)


def mebibytes(number: float) -> str:
    """Return bytes as text in mebibytes."""
    return f"{number / 2**20:,.0f} MiB"


def main(
    layer: Annotated[str, typer.Option(help=f"all, or one of {', '.join(LAYERS)}")] = "all",
    dtype: Annotated[str, typer.Option(help=f"all, or one of {', '.join(TOLERANCES)}")] = "all",
    part: Annotated[str, typer.Option(help=f"all, or one of {', '.join([*PARTS, MEMORY])}")] = "all",
    limit_s: Annotated[float, typer.Option(help="Seconds of a comparison, beyond two rounds.")] = 2.0,
    out: Path = common.RESULTS / "mamba2",
) -> None:
    """Measure, and write the page of this processor; other measurements on the page stay."""
    asked = []
    for option, given, known in (
        ("layer", layer, LAYERS),
        ("dtype", dtype, TOLERANCES),
        ("part", part, [*PARTS, MEMORY]),
    ):
        if given not in ("all", *known):
            raise InputError(f"--{option} {given}: must be all, or one of {', '.join(known)}.")
        asked.append(list(known) if given == "all" else [given])
    caption = f"{common.setting()}; torch {torch.__version__} on {torch.get_num_threads()} threads"
    name = common.silicon_name()
    numbers = out / f"{name}.csv"
    frame = pd.read_csv(numbers) if numbers.exists() else pd.DataFrame(columns=[*KEYS, "value"])
    for each in pd.MultiIndex.from_product(asked):
        new = measured(*each, limit_s)
        print(table(new).to_string(index=False), flush=True)
        frame = new if frame.empty else pd.concat([frame, new]).drop_duplicates(KEYS, keep="last")
        sections = {
            f"{which}, {kind}": table(frame[(frame.layer == which) & (frame.dtype == kind)])
            for which in LAYERS
            for kind in TOLERANCES
        }
        shown = {heading: text for heading, text in sections.items() if not text.empty}
        common.write_page(out, __doc__, caption, {}, shown, frame, name)


if __name__ == "__main__":
    typer.run(main)
