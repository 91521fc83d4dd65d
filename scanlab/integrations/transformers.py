"""Let the state-space models of Hugging Face transformers compute with scanlab's ops: `patch()`.

Their PyTorch code walks through time in Python, or through chunks whose intermediate results fill the memory. Patched,
a mixer calls scanlab's ops instead; weights, caches, masks and gradients stay those of transformers.
`transformers_mamba` has the mixers of Mamba-1, `transformers_mamba2` those of Mamba-2.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from scanlab import settings
from scanlab.errors import ProblemError, UnavailableError
from scanlab.integrations import transformers_mamba, transformers_mamba2
from scanlab.integrations.notices import warn_once
from scanlab.integrations.transformers_cache import memory_of
from scanlab.integrations.transformers_layers import prepacked
from scanlab.models.plain_layers import is_plain_layer
from scanlab.runtime.ops import linear

# folder in transformers.models -> class of its mixer
MAMBA1 = {
    "mamba": "MambaMixer",
    "falcon_mamba": "FalconMambaMixer",
    "jamba": "JambaMambaMixer",
    "zamba": "ZambaMambaMixer",
}
MAMBA2 = {
    "mamba2": "Mamba2Mixer",
    "bamba": "BambaMixer",
    "falcon_h1": "FalconH1Mixer",
    "granitemoehybrid": "GraniteMoeHybridMambaLayer",
    "nemotron_h": "NemotronHMamba2Mixer",
    "zamba2": "Zamba2MambaMixer",
}
MAMBA2_SCAN = "mamba2_chunk_scan"
OLDEST, BEYOND = (4, 48), (6, 0)

Forward = Callable[..., Tensor]


def patch(model: nn.Module | None = None) -> ExitStack:
    """Let every Mamba mixer of transformers, or only those of `model`, compute with scanlab's ops.

    Served are the mixers of Mamba, FalconMamba, Jamba and Zamba (Mamba-1), and since transformers 5.16 those of Mamba2,
    Bamba, FalconH1, GraniteMoeHybrid, NemotronH and Zamba2 (Mamba-2).

    Prefill, cached decoding and training, under any mask and under autocast, give the results of the unpatched model,
    to rounding. Where a mixer cannot be served, its unpatched code runs: where its tensors are not on the CPU, its
    activation is not SiLU, or its convolution has hooks. That is logged once; with $SCANLAB_STRICT=1 it is an error.
    Several tokens at once after cached ones restart the scan of Mamba-1, as in transformers 5; with older versions,
    which compute something else, they are refused. Mamba-2 continues its scan. `seq_idx` keeps packed sequences of
    Mamba-2 apart, as transformers' GPU kernels do; its PyTorch code ignores it.

    Of a given model the layer that gives the logits is served too, where it is a plain linear layer.

    Patching twice is patching once. A copy or a pickle of a patched model is patched.

    Args:
        model: Any module that contains mixers; None patches the classes.

    Returns:
        A context that undoes this patch at its end; without `with` the patch stays.

    Raises:
        UnavailableError: transformers is missing or of another version.
        ProblemError: `model` has no such mixer, or something else has replaced the forward of one.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise ProblemError(f"patch got {model!r:.40}: must be a module of torch, or None for every model.")
    if model is None:
        undo = ExitStack()
        for mixer_class in mixer_classes():
            if not _is_ours(mixer_class.forward):
                undo.callback(setattr, mixer_class, "forward", mixer_class.forward)
                mixer_class.forward = _forward_instead_of(mixer_class.forward)
        return undo
    with ExitStack() as so_far:
        for mixer in _mixers(model):
            if "forward" not in vars(mixer):
                so_far.callback(_unpatch, mixer)
                mixer.forward = PatchedForward(mixer)
            elif not _is_ours(mixer.forward):
                raise ProblemError(
                    f"{type(mixer).__name__} {mixer.layer_idx} has a forward of its own: something, such as an"
                    " offloading hook, replaced it. Patch before that is done, or patch() every model."
                )
        head = _plain_head(model)
        if head is not None:
            so_far.callback(_unpatch, head)
            head.forward = PatchedHead(head)
        return so_far.pop_all()


def unpatch(model: nn.Module | None = None) -> None:
    """Undo `patch()`, or `patch(model)`; without a patch there is no effect."""
    if model is None:
        for mixer_class in mixer_classes():
            mixer_class.forward = _original(mixer_class.forward)
    else:
        for layer in (*_mixers(model), _head(model)):
            _unpatch(layer)


class PatchedForward:
    """The forward of one patched mixer; a copy or a pickle is that of the mixer's copy."""

    def __init__(self, mixer: nn.Module) -> None:
        self._mixer = mixer
        self._forward = _forward_instead_of(_original(type(mixer).forward))

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the output of the mixer for the arguments of the unpatched forward."""
        return self._forward(self._mixer, *arguments, **named)

    def __reduce__(self) -> tuple[type[PatchedForward], tuple[nn.Module]]:
        return PatchedForward, (self._mixer,)


class PatchedHead:
    """The forward of the layer that gives the logits, which takes a third of a token's time; copied as its layer is."""

    def __init__(self, head: nn.Linear) -> None:
        self._head = head

    def __call__(self, input: Tensor) -> Tensor:
        """Return the logits of input (..., dim)."""
        head = self._head
        return linear(input, prepacked(head, "weight", head.weight), head.bias)

    def __reduce__(self) -> tuple[type[PatchedHead], tuple[nn.Module]]:
        return PatchedHead, (self._head,)


def _head(model: nn.Module) -> nn.Module | None:
    """Return the layer that gives the logits of a model of transformers, or None."""
    found: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return found


def _plain_head(model: nn.Module) -> Any:
    """Return the layer that gives the logits if it is a plain linear layer, else None."""
    head = _head(model)
    return head if head is not None and is_plain_layer(head, (nn.Linear,)) else None


def _unpatch(layer: nn.Module | None) -> None:
    if layer is not None and "forward" in vars(layer) and _is_ours(layer.forward):
        del layer.forward


@functools.cache
def mixer_classes() -> tuple[Any, ...]:
    """Return the classes of mixers that the patch serves with the installed transformers.

    Raises:
        UnavailableError: transformers is missing, or of another version.
    """
    try:
        version: str = importlib.import_module("transformers").__version__
    except ImportError as error:
        raise UnavailableError("transformers is not installed: pip install 'transformers>=4.48'.") from error
    if not OLDEST <= tuple(int(part) for part in version.split(".")[:2]) < BEYOND:
        raise UnavailableError(
            f"transformers {version} is installed: this scanlab patches 4.48 up to 5.x; install one."
        )
    mamba1 = [getattr(_modeling(family), name) for family, name in MAMBA1.items()]
    # All families have one forward since it calls this function; those before are left as they are.
    mamba2 = [
        getattr(_modeling(family), name)
        for family, name in MAMBA2.items()
        if importlib.util.find_spec(f"transformers.models.{family}") and hasattr(_modeling(family), MAMBA2_SCAN)
    ]
    return *mamba1, *mamba2


def _modeling(family: str) -> ModuleType:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def _mixers(model: nn.Module) -> list[Any]:
    found = [module for module in model.modules() if isinstance(module, mixer_classes())]
    if not found:
        raise ProblemError(
            f"{type(model).__name__} has no mixer that this patch serves: with this version of transformers it serves"
            f" {', '.join(each.__name__ for each in mixer_classes())}."
        )
    return found


def _is_ours(forward: Forward) -> bool:
    return forward.__module__ == __name__


def _original(forward: Forward) -> Forward:
    original: Forward = inspect.unwrap(forward, stop=lambda each: not _is_ours(each))
    return original


def _forward_instead_of(original: Forward) -> Forward:
    """Return a forward with the parameters of `original`, whose order differs from version to version."""
    _, _, *names = inspect.signature(original).parameters
    module = inspect.getmodule(original)
    is_mamba2 = hasattr(module, MAMBA2_SCAN)
    # Older versions mask the input of the convolution, newer ones that of the projection.
    masks_hidden = hasattr(module, "apply_mask_to_padding_states")

    def forward(mixer: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        reason = _refusal(mixer, hidden_states)
        if reason is not None:
            _announce(f"{type(mixer).__name__} runs unpatched: {reason}.")
            return original(mixer, hidden_states, *arguments, **named)
        given = dict(zip(names, arguments, strict=False)) | named
        memory = memory_of(mixer, given.get("cache_params"), given.get("cache_position"))
        mask = given.get("attention_mask")
        if is_mamba2:
            return transformers_mamba2.mix(mixer, hidden_states, memory, mask, given.get("seq_idx"))
        return transformers_mamba.mix(mixer, hidden_states, memory, mask, masks_hidden)

    return functools.update_wrapper(forward, original, assigned=(), updated=())


def _refusal(mixer: Any, hidden: Tensor) -> str | None:
    """Return why this mixer cannot be served, or None."""
    if not hidden.is_cpu:
        return f"its tensors are on {hidden.device}, and this patch serves the CPU"
    if mixer.activation not in ("silu", "swish"):
        return f"its activation is {mixer.activation}, and the kernels have silu"
    if _is_hooked(mixer.conv1d):
        return "its convolution has hooks, such as those of offloading, and the kernels read its weight"
    return None


def _is_hooked(layer: nn.Module) -> bool:
    """Return whether calling `layer` runs something that reading its weight does not; global hooks only watch."""
    own = vars(layer)
    return type(layer) is not nn.Conv1d or "forward" in own or bool(own["_forward_hooks"] or own["_forward_pre_hooks"])


def _announce(message: str) -> None:
    if settings.strict():
        raise UnavailableError(f"{message} ({settings.STRICT.name}=1 makes this an error.)")
    warn_once(message)
