"""Write what the small models of transformers compute: python observe_transformers.py FILE [--drop-in].

With --drop-in scanlab's drop-in is installed before transformers is imported.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.transformers_families import FAMILIES, VARIANTS, prompt, small
from scanlab.contract.cpu import torch_threads

NEW_TOKENS = (5, 17, 40)


def logits_of(output: Any) -> Tensor:
    """The logits of a language model, the last hidden state of one without a head."""
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def whole(model: Any, padded: bool) -> Tensor:
    """The output at each token that is not padding."""
    given = prompt(padded)
    return logits_of(model(**given))[given["attention_mask"].bool()]


def generated(model: Any, padded: bool) -> Tensor:
    """The logits of each step of a generation whose tokens are given, so that rounding cannot change them."""
    length = prompt(padded)["input_ids"].shape[1]
    result = model.generate(
        **prompt(padded),
        max_new_tokens=len(NEW_TOKENS),
        do_sample=False,
        prefix_allowed_tokens_fn=lambda batch, ids: [NEW_TOKENS[len(ids) - length]],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(result.logits)


def continued(model: Any) -> Tensor:
    """The logits of three tokens at once after those in the cache."""
    name = "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"
    ids = prompt(padded=False)["input_ids"]
    cache = getattr(model(ids[:, :8], use_cache=True), name)
    return logits_of(model(ids[:, 8:11], use_cache=True, **{name: cache}))


def trained(model: Any, padded: bool) -> Iterator[tuple[str, Tensor]]:
    """The gradient of each parameter in one step of training."""
    given = prompt(padded)
    model.zero_grad()
    logits = logits_of(model(**given, use_cache=False)).float()
    labels = given["input_ids"].clamp(max=logits.shape[-1] - 1).masked_fill(given["attention_mask"] == 0, -100)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def observed(model: Any, autocast: bool) -> Iterator[tuple[str, Tensor]]:
    """Every observation of `model` in float32 or under autocast to bfloat16, by name."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for padded in (False, True):
            case = "padded" if padded else "whole"
            with torch.no_grad():
                yield f"forward, {case}", whole(model.eval(), padded)
                if hasattr(model, "generate"):
                    yield f"generate, {case}", generated(model, padded)
            gradients = dict(trained(model.train(), padded))
            yield f"gradients, {case}", torch.cat([each.flatten() for each in gradients.values()])
            if not autocast:
                for name, gradient in gradients.items():
                    yield f"gradient of {name}, {case}", gradient.clone()
        with torch.no_grad():
            yield "continued", continued(model.eval())


if __name__ == "__main__":
    if "--drop-in" in sys.argv:
        import scanlab.integrations.mamba_ssm as drop_in

        drop_in.install()
    observations = {}
    with torch_threads(1):
        for family in FAMILIES:
            model = small(family)
            observations[family, "float32"] = dict(observed(model, autocast=False))
            if family not in VARIANTS:
                observations[family, "autocast"] = dict(observed(model, autocast=True))
    torch.save(observations, sys.argv[1])
