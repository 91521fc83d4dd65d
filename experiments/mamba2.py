"""A Mamba-2 layer on a CPU, by scanlab, by transformers, and by the PyTorch references of mamba_ssm.

One layer of a published model with random weights, the same in every implementation, whose outputs are compared first:

- `scanlab` is the drop-in's Mamba2;
- `transformers` is the model's own layer, on the PyTorch path that it takes on a CPU;
- `mamba_ssm` is the layer on the chunked PyTorch references that its tests compare with, restated here.

All are timed in the same rounds; ratios are those of medians. The peak of memory is that of one call in a fresh
process, beyond what was in use before it.

    python experiments/mamba2.py --layer granite-4.0-h-micro --dtype float32
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

from scanlab.errors import InputError
from scanlab.integrations.mamba_ssm.modules.mamba2 import Mamba2
from scanlab.integrations.mamba_ssm.utils.generation import InferenceParams
from scanlab.report.formatting import milliseconds, times
from scanlab.runtime.dispatch import dispatcher

PROMPTS = (512, 4096)
TRAINED = 512
CHUNK = 256
LIMIT_S = 15.0  # of one comparison, beyond its first rounds
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}  # of whole layers, as a share of the largest output


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


def scanlab_layer(name: str, dtype: str) -> Mamba2:
    """Return the drop-in's layer; the same weights at every call."""
    torch.manual_seed(0)
    shape = LAYERS[name]
    layer = Mamba2(
        shape.hidden,
        d_state=shape.state,
        headdim=shape.head_dim,
        expand=shape.heads * shape.head_dim // shape.hidden,
        ngroups=shape.groups,
        layer_idx=0,
    )
    return layer.to(getattr(torch, dtype))


def transformers_layer(name: str, dtype: str) -> tuple[nn.Module, Any]:
    """Return the layer of transformers with the weights of `scanlab_layer`, and its configuration."""
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
            mamba_chunk_size=CHUNK,
            rms_norm_eps=1e-5,
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
            chunk_size=CHUNK // 2,
            layer_norm_epsilon=1e-5,
            time_step_min=0.0,
            layers_block_type=["mamba"],
        )
        layer = nemotron.NemotronHMamba2Mixer(config, 0)
    layer.load_state_dict(scanlab_layer(name, dtype).state_dict())
    return layer.to(getattr(torch, dtype)), config


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


def reference_layer(layer: Mamba2, u: Tensor) -> Tensor:
    """Return the output of `layer` by operations of PyTorch, one after another, as mamba_split_conv1d_scan_ref."""
    inner, projection = layer.d_ssm, layer.ngroups * layer.d_state
    z, xBC, dt = layer.in_proj(u).split([inner, inner + 2 * projection, layer.nheads], dim=-1)
    xBC = F.silu(layer.conv1d(xBC.mT)[..., : u.shape[1]].mT)
    x, B, C = xBC.split([inner, projection, projection], dim=-1)
    B, C = (each.unflatten(-1, (layer.ngroups, -1)) for each in (B, C))
    step = F.softplus(dt.float() + layer.dt_bias.float())
    rates = -torch.exp(layer.A_log.float())
    y = reference_scan(x.unflatten(-1, (layer.nheads, -1)), step, rates, B, C, layer.D).flatten(2)
    gated = (y.float() * F.silu(z.float())).unflatten(-1, (layer.ngroups, -1))
    normed = F.rms_norm(gated, gated.shape[-1:], eps=layer.norm.eps).flatten(-2) * layer.norm.weight
    return layer.out_proj(normed.to(u.dtype))


def forwards(name: str, dtype: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the layer by each implementation."""
    layer = scanlab_layer(name, dtype)
    theirs, _ = transformers_layer(name, dtype)
    return {"scanlab": layer, "transformers": theirs, "mamba_ssm": lambda u: reference_layer(layer, u)}


def tokens(name: str, dtype: str, length: int) -> Tensor:
    """Return inputs of the layer, (1, length, hidden)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, length, LAYERS[name].hidden, generator=generator).to(getattr(torch, dtype))


def prompt_call(name: str, dtype: str, length: int, which: str) -> common.Call:
    """Return the forward pass over a prompt by one implementation."""
    forward, u = forwards(name, dtype)[which], tokens(name, dtype, length)
    return torch.inference_mode()(lambda: forward(u))


def training_calls(name: str, dtype: str) -> dict[str, common.Call]:
    """Return a training step of each implementation: forward, and gradients of the input and of every weight."""
    u = tokens(name, dtype, TRAINED).requires_grad_()

    def step(forward: Callable[[Tensor], Tensor], layer: nn.Module) -> common.Call:
        leaves = [u, *layer.parameters()]
        return lambda: torch.autograd.grad(forward(u).float().square().mean(), leaves)

    made = forwards(name, dtype)
    layers = {"scanlab": made["scanlab"], "transformers": made["transformers"], "mamba_ssm": made["scanlab"]}
    return {which: step(forward, layers[which].train()) for which, forward in made.items()}


@torch.inference_mode()
def token_calls(name: str, dtype: str) -> dict[str, common.Call]:
    """Return a token after a prompt, by the implementations that have a cache."""
    from transformers import DynamicCache

    prompt, token = tokens(name, dtype, 64), tokens(name, dtype, 1)
    ours, (theirs, config) = scanlab_layer(name, dtype), transformers_layer(name, dtype)
    cache, past = InferenceParams(max_seqlen=64, max_batch_size=1), DynamicCache(config=config)
    ours(prompt, inference_params=cache)
    cache.seqlen_offset = 64
    theirs(prompt, cache_params=past)
    calls: dict[str, common.Call] = {
        "scanlab": lambda: ours(token, inference_params=cache),
        "transformers": lambda: theirs(token, cache_params=past),
    }
    check({which: call() for which, call in calls.items()}, dtype)
    return {which: torch.inference_mode()(call) for which, call in calls.items()}


def check(outputs: dict[str, Any], dtype: str) -> None:
    """Raise SystemExit where an implementation computes something else than transformers."""
    truth = outputs["transformers"].float()
    for which, output in outputs.items():
        error = ((output.float() - truth).abs().max() / truth.abs().max()).item()
        if not error <= TOLERANCES[dtype]:
            raise SystemExit(f"{which} is off by {error:.1e} of the largest output of transformers.")


def row(what: str, asked: str, seconds: dict[str, float]) -> dict[str, object]:
    """Return the times of a comparison and the ratio to transformers."""
    ratio = seconds["transformers"] / seconds["scanlab"]
    return {"what": what, "asked": asked, "ratio": ratio, **{f"{which}_s": each for which, each in seconds.items()}}


def measured(name: str, dtype: str, rounds: int) -> pd.DataFrame:
    """Return a row for each comparison."""
    rows = []
    made = forwards(name, dtype)
    with torch.inference_mode():
        check({which: forward(tokens(name, dtype, CHUNK)) for which, forward in made.items()}, dtype)

    def compare(what: str, asked: str, calls: dict[str, common.Call]) -> None:
        taken = common.interleaved(calls, 3, rounds, LIMIT_S)
        rows.append(row(what, asked, {which: float(np.median(each)) for which, each in taken.items()}))

    compare("a cached token", "at least 1.5", token_calls(name, dtype))
    compare(f"training step of {TRAINED}", "at least 2", training_calls(name, dtype))
    for length in PROMPTS:
        calls = {which: prompt_call(name, dtype, length, which) for which in made}
        compare(f"prompt of {length}", "at least 3", calls)
    return pd.DataFrame(rows)


def memory(name: str, dtype: str) -> pd.DataFrame:
    """Return the peak of memory of the longest prompt by each implementation."""
    asked = (name, dtype, PROMPTS[-1])
    peaks = {which: common.fresh_peak_bytes(prompt_call, *asked, which) for which in forwards(name, dtype)}
    frame = pd.DataFrame({"implementation": peaks.keys(), "peak_bytes": peaks.values()})
    return frame.assign(of_transformers=frame.peak_bytes / (peaks["transformers"] or float("nan")))


def main(
    layer: Annotated[str, typer.Option(help=", ".join(LAYERS))] = "granite-4.0-h-micro",
    dtype: Annotated[str, typer.Option(help=", ".join(TOLERANCES))] = "float32",
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison, where the time allows.")] = 20,
    out: Path = common.RESULTS / "mamba2",
) -> None:
    """Measure, print and write the tables."""
    if layer not in LAYERS or dtype not in TOLERANCES:
        raise InputError(f"--layer {layer} --dtype {dtype}: of {', '.join(LAYERS)}, and of {', '.join(TOLERANCES)}.")
    caption = common.setting()
    peaks = memory(layer, dtype)
    frame = measured(layer, dtype, rounds)
    caption += f"; torch on {torch.get_num_threads()} threads; ssd by {common.served_by(dispatcher(None))}"
    text = frame.assign(
        ratio=frame.ratio.map(times),
        **{
            column: frame[column].map(lambda each: milliseconds(1e3 * each))
            for column in frame
            if column.endswith("_s")
        },
    )
    spelled = peaks.assign(
        peak_bytes=(peaks.peak_bytes / 2**20).map("{:,.0f} MiB".format),
        of_transformers=peaks.of_transformers.map("{:.0%}".format),
    )
    sections = {f"{layer}, {dtype}": text, f"Peak of memory, prompt of {PROMPTS[-1]}": spelled}
    common.write_page(out, __doc__, caption, {}, sections, frame, f"{layer}-{dtype}")
    print(text.to_string(index=False), spelled.to_string(index=False), sep="\n")


if __name__ == "__main__":
    typer.run(main)
