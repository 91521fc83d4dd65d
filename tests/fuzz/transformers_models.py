"""Models of transformers, small and of random sizes, that compute with scanlab's ops: prompts, then token by token.

The reference is the model as it came, in float64 as far as its code computes in it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from fuzz.case import Arguments, Case, Results
from fuzz.draws import Draw
from scanlab.integrations.transformers import patch

LONGEST = 11  # prompts, in tokens
FAMILIES = ("Mamba", "Mamba", "FalconMamba", "Mamba2", "Mamba2")


def sizes(draw: Draw, family: str) -> dict[str, Any]:
    """Draw the configuration of a model of one layer."""
    hidden_size, expand = draw.size(24, odd=(1, 16, 32)), draw.pick((1, 2))
    options = {
        "vocab_size": 9,
        "hidden_size": hidden_size,
        "state_size": draw.pick((1, 3, 8, 16)),
        "num_hidden_layers": 1,
        "conv_kernel": draw.pick((2, 3, 4, 4, 5)),
        "expand": expand,
        "use_bias": draw.chance(0.3),
        "use_conv_bias": draw.chance(0.7),
        "tie_word_embeddings": False,
    }
    if family != "Mamba2":
        return options | {"time_step_rank": draw.randint(1, 4)}
    groups, per_group, head_dim = draw.pick((1, 1, 2)), draw.randint(1, 2), draw.pick((1, 4, 8))
    heads = groups * per_group
    return options | {
        "hidden_size": heads * head_dim,
        "expand": 1,
        "num_heads": heads,
        "head_dim": head_dim,
        "n_groups": groups,
        "chunk_size": draw.pick((2, 8, 256)),
        "time_step_limit": draw.pick(((0.0, float("inf")), (0.05, 0.3))),
    }


def build(draw: Draw, family: str) -> Any:
    """Return a model with random weights."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**sizes(draw, family))
    with torch.random.fork_rng():
        torch.manual_seed(draw.randrange(10**6))
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits_of(model: Any, given: Arguments) -> Results:
    """Return the logits of a prompt, and of each token after it, as a cache continues it."""
    embeds, mask, prompt = given["embeds"], given["attention_mask"], given["prompt"]
    if prompt is None:
        return {"logits": model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits}
    out = model(inputs_embeds=embeds[:, :prompt], attention_mask=mask[:, :prompt], use_cache=True)
    cache, logits = out.cache_params, [out.logits]
    for t in range(prompt, min(embeds.shape[1], LONGEST)):
        named = {} if hasattr(cache, "has_previous_state") else {"cache_position": torch.tensor([t])}
        logits.append(model(inputs_embeds=embeds[:, t : t + 1], cache_params=cache, use_cache=True, **named).logits)
    return {"logits": torch.cat(logits, 1)}


def transformers_model(draw: Draw, *, edge: bool) -> Case:
    """Draw a prompt for a patched model."""
    family = draw.pick(FAMILIES)
    model = build(draw, family)
    batch, length = draw.randint(1, 2), draw.size(7, odd=(1, 2, LONGEST))
    mask = torch.ones(batch, length, dtype=torch.int64)
    if edge:
        for row in mask:
            row[: draw.randint(0, length - 1)] = 0
    dtype = draw.pick((torch.float32, torch.float32, torch.float32, torch.bfloat16))
    learns = dtype == torch.float32 and draw.chance(0.3)
    arguments: Arguments = {
        "embeds": draw.lay(draw.normal(batch, length, model.config.hidden_size, dtype=dtype)),
        "attention_mask": mask,
        "prompt": None if learns else draw.randint(1, length),
    }
    patched = copy.deepcopy(model).to(dtype)
    patch(patched)

    def call(given: Arguments) -> Results:
        with torch.inference_mode(False), torch.set_grad_enabled(learns):
            return logits_of(patched, given)

    def reference(given: Arguments) -> Results:
        embeds, mask = given["embeds"], given["attention_mask"]
        fits = isinstance(embeds, Tensor) and embeds.is_floating_point() and embeds.numel()
        fits = fits and isinstance(mask, Tensor) and embeds.shape == (*mask.shape, model.config.hidden_size)
        if not fits or isinstance(given["prompt"], Tensor):
            return {}  # what transformers makes of them is not judged
        with torch.set_grad_enabled(learns):
            return logits_of(copy.deepcopy(model).to(embeds.dtype), given)

    return Case(
        f"transformers' {family}",
        arguments,
        call,
        reference,
        lambda given: {"logits": torch.float32},
        arithmetic=dtype,
        differentiated=("embeds",) if learns else (),
        exact_infinities=False,
        note=str({name: getattr(model.config, name) for name in ("hidden_size", "state_size", "conv_kernel")}),
    )
