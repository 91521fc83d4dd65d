"""A Mamba of transformers on a CPU, patched, reads prompts at least 5 times and writes tokens 1.5 times as fast.

The configuration of mamba-130m with random weights, in float32, batch 1, twice on the same weights: as it comes,
and patched. Before anything is timed both generate the same tokens. A token is also compared with the matrix-vector
products that it cannot do without, repeated by themselves as torch multiplies them: at most 1.3 times their time. All
are timed in the same rounds; ratios are taken round by round; the fastest are shown too, for a neighbour can only add.
Last, the patched model in bfloat16 beside itself in float32.

    python experiments/transformers_mamba.py --rounds 20
"""

import copy
import functools
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import common
import numpy as np
import pandas as pd
import torch
import typer

from scanlab.integrations.transformers import patch
from scanlab.report.formatting import milliseconds, times
from scanlab.runtime.dispatch import dispatcher

SIZES = {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "vocab_size": 50280}
LENGTHS = (512, 2048)
GENERATED = 16  # tokens that have to be equal
TOKENS = 4  # of one sample
LIMIT_S = 60.0  # the unpatched model gets at least three rounds, and more until then


def models() -> dict[str, Any]:
    """Return the original and the patched model on the same weights.

    Raises:
        SystemExit: Their tokens differ.
    """
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(**SIZES)
    both = {name: MambaForCausalLM(config).eval() for name in ("unpatched", "patched")}
    both["patched"].load_state_dict(both["unpatched"].state_dict(), assign=True)
    patch(both["patched"])
    prompt = torch.randint(config.vocab_size, (1, 32))
    asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": GENERATED, "do_sample": False}
    said = [model.generate(prompt, pad_token_id=0, **asked) for model in both.values()]
    if not torch.equal(*said):
        raise SystemExit(f"the patched model generates other tokens: {said[1].tolist()} instead of {said[0].tolist()}.")
    return both


def prefill(model: Any, length: int) -> common.Call:
    """Return a call that reads a prompt of `length` tokens and keeps the state."""
    prompt = torch.arange(length)[None] % model.config.vocab_size
    return torch.inference_mode()(lambda: model(prompt, use_cache=True, logits_to_keep=1))


@torch.inference_mode()
def decoding(model: Any) -> common.Call:
    """Return a call that generates TOKENS tokens greedily, each from the state that the one before left."""
    past = model(torch.arange(16)[None], use_cache=True).cache_params

    def decode() -> None:
        token = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(TOKENS):
            token = model(token, cache_params=past, use_cache=True).logits[:, -1:].argmax(-1)

    return torch.inference_mode()(decode)


def products(model: Any) -> common.Call:
    """Return a call of the matrix-vector products of TOKENS tokens and nothing else."""
    pairs = [(torch.rand(1, each.in_features), each.weight) for each in model.modules() if hasattr(each, "in_features")]

    def multiply() -> None:
        for _ in range(TOKENS):
            for vector, weight in pairs:
                torch.nn.functional.linear(vector, weight)

    return torch.inference_mode()(multiply)


def row(what: str, asked: str, slow: Any, fast: Any, patched: Any) -> dict[str, object]:
    """Return quartiles over the rounds of slow / fast, the ratio of the fastest, and the patched model's time."""
    quartiles = dict(
        zip(("quartile1", "median", "quartile3"), np.quantile(slow / fast, (0.25, 0.5, 0.75)), strict=True)
    )
    ratios = {"ratio": what, "asked": asked, **quartiles, "of_fastest": slow.min() / fast.min()}
    return ratios | {"rounds": len(patched), "patched_ms": 1e3 * np.median(patched)}


def measured(rounds: int) -> pd.DataFrame:
    """Return a row for each ratio."""
    both = models()
    rows = []
    for length in LENGTHS:
        taken = common.interleaved({name: prefill(each, length) for name, each in both.items()}, 3, rounds, LIMIT_S)
        name = f"prefill of {length}: unpatched over patched"
        rows.append(row(name, "at least 5", taken["unpatched"], taken["patched"], taken["patched"]))
    calls = {name: decoding(each) for name, each in both.items()}
    taken = common.interleaved(calls, 3, rounds, LIMIT_S)
    one = taken["patched"] / TOKENS
    rows.append(row("tokens/s: patched over unpatched", "at least 1.5", taken["unpatched"] / TOKENS, one, one))
    calls = {"patched": calls["patched"], "products": products(both["patched"])}
    taken = common.interleaved(calls, rounds, 3 * rounds, LIMIT_S)
    one = taken["patched"] / TOKENS
    rows.append(row("a token: patched over its products alone", "at most 1.3", one, taken["products"] / TOKENS, one))
    half = copy.deepcopy(both["unpatched"]).to(torch.bfloat16)
    patch(half)
    dtypes = {"bfloat16": half, "float32": both["patched"]}
    for name, asked, make, each in (
        ("a token", "at most 0.75", decoding, TOKENS),
        (f"prefill of {LENGTHS[0]}", "at most 0.5", functools.partial(prefill, length=LENGTHS[0]), 1),
    ):
        taken = common.interleaved({dtype: make(model) for dtype, model in dtypes.items()}, rounds, 3 * rounds, LIMIT_S)
        one, other = taken["bfloat16"] / each, taken["float32"] / each
        rows.append(row(f"{name}: bfloat16 over float32", asked, one, other, one))
    return pd.DataFrame(rows)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison, where the time allows.")] = 20,
    out: Path = common.RESULTS / "transformers_mamba",
) -> None:
    """Measure, print and write the table."""
    if importlib.util.find_spec("transformers") is None:
        raise SystemExit("transformers is not installed: pip install 'transformers>=5.4'")
    caption = common.setting()
    frame = measured(rounds)
    caption += f"; torch on {torch.get_num_threads()} threads; scan by {common.served_by(dispatcher(None))}"
    text = frame.assign(patched_ms=frame.patched_ms.map(milliseconds), rounds=frame["rounds"].map(str)).rename(
        columns={"patched_ms": "patched"}
    )
    for column in ("quartile1", "median", "quartile3", "of_fastest"):
        text[column] = text[column].map(times)
    common.write_page(out, __doc__, caption, {}, {"mamba-130m": text}, frame)
    print(text.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
