"""Generation of `mamba_ssm.utils.generation` on a CPU: its cache, sampling, and the loop over tokens.

The official loop times itself with CUDA events, and so runs on no other device. Captured graphs (`cg`) are a matter of
GPUs: asking for them changes nothing here.

Source: state-spaces/mamba@e9594ce, mamba_ssm/utils/generation.py. min_p compares probabilities here, as it is defined;
upstream it compares logits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scanlab.errors import ProblemError


@dataclass
class InferenceParams:
    """Cache of a generation: its progress and the states of each layer."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Start a new generation; the states of the layers stay where they are."""
        self.max_seqlen = max_seqlen
        self.max_batch_size = max_batch_size
        self.seqlen_offset = 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class Generated:
    """Result of a generation: sequences (batch, length), prompt included, and scores (batch, vocabulary) by token."""

    sequences: Tensor
    scores: tuple[Tensor, ...] | None


def sample(logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Return a token (batch,) for logits (batch, vocabulary): the likeliest where top_k is 1, else drawn.

    Drawn from the top_k likeliest (0: from all), of those the fewest whose probabilities exceed top_p together, and
    of those the ones at least min_p times as likely as the likeliest.
    """
    if top_k == 1:
        return logits.argmax(-1)
    if not 0.0 <= top_p <= 1.0:
        raise ProblemError(f"top_p={top_p}: must be from 0 to 1.")
    kept, tokens = logits.topk(min(top_k, logits.shape[-1]) if top_k > 0 else logits.shape[-1], dim=-1)
    probabilities = (kept / temperature).softmax(-1)  # in descending order
    if 0.0 < top_p < 1.0:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = torch.where(before < top_p, probabilities, 0.0)
    if min_p > 0.0:
        probabilities = torch.where(probabilities >= min_p * probabilities[..., :1], probabilities, 0.0)
    return tokens.gather(-1, torch.multinomial(probabilities, 1))[..., 0]


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Set logits (batch, vocabulary) below the top_k-th highest of their row to -inf, in place."""
    logits.masked_fill_(logits < logits.topk(top_k)[0][..., -1:], -torch.inf)


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Set the least likely logits (batch, vocabulary), together 1 - top_p of their row, to -inf, in place."""
    if 0.0 < top_p < 1.0:
        ascending, tokens = logits.sort(dim=-1)
        removed = ascending.softmax(-1).cumsum(-1) <= 1.0 - top_p
        logits.masked_fill_(removed.scatter(-1, tokens, removed), -torch.inf)


def modify_logits_for_min_p_filtering(logits: Tensor, min_p: float) -> None:
    """Set logits (batch, vocabulary) below min_p to -inf, in place: upstream compares logits and not probabilities."""
    if 0.0 < min_p < 1.0:
        logits.masked_fill_(logits < min_p, -torch.inf)


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float = 1.0
) -> Tensor:
    """Return logits (batch, vocabulary) after making previous tokens (batch, length) less likely, in place.

    Source: arXiv 1909.05858.
    """
    if repetition_penalty == 1.0:
        return logits
    before = logits.gather(1, prev_output_tokens)
    penalised = torch.where(before < 0, before * repetition_penalty, before / repetition_penalty)
    return logits.scatter_(1, prev_output_tokens, penalised)


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> Generated:
    """Continue input_ids (batch, length) to max_length tokens, or until eos_token_id stands in every row.

    `model(ids, position_ids=, inference_params=, num_last_tokens=1).logits` is called with the prompt and then with
    one token at a time. teacher_outputs (batch, length) are taken instead of drawn tokens, as far as they go.
    """
    start = time.perf_counter()
    params = InferenceParams(max_seqlen=max_length, max_batch_size=len(input_ids))
    sequences, latest = input_ids, input_ids
    scores: list[Tensor] = []
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while sequences.shape[1] < max_length:
        offset = params.seqlen_offset
        positions = None if offset == 0 else torch.full_like(latest, offset)
        logits = model(latest, position_ids=positions, inference_params=params, num_last_tokens=1).logits[:, -1]
        logits = logits[..., :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        params.seqlen_offset = sequences.shape[1]
        if teacher_outputs is not None and teacher_outputs.shape[1] > params.seqlen_offset:
            latest = teacher_outputs[:, params.seqlen_offset, None]
        else:
            logits = modify_logit_for_repetition_penalty(logits.clone(), sequences, repetition_penalty)
            latest = sample(logits, top_k, top_p, min_p, temperature)[:, None]
        sequences = torch.cat((sequences, latest), dim=1)
        if streamer is not None:
            streamer.put(latest.cpu())
        if eos_token_id is not None and bool((latest == eos_token_id).all()):
            break
    if streamer is not None:
        streamer.end()
    if enable_timing:
        print(f"Prompt processing + decoding time: {1e3 * (time.perf_counter() - start):.0f}ms")
    return Generated(sequences, tuple(scores))


class GenerationMixin:
    """Base class of models that generate from a prompt."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """Return the states of all layers; subclasses implement it."""
        raise NotImplementedError

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Tensor | Generated:
        """Return input_ids (batch, length) continued to max_length; other arguments are those of `decode`."""
        made = decode(
            input_ids, self, max_length, top_k, top_p, min_p, temperature, output_scores=output_scores, **kwargs
        )
        if not output_scores:
            made.scores = None
        return made if return_dict_in_generate else made.sequences
