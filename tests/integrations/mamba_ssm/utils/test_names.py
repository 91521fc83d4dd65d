"""Small functions of mamba_ssm.utils by their upstream names."""

from __future__ import annotations

import torch

from scanlab.integrations.mamba_ssm.utils import determinism, generation


def test_filters_of_logits() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, 0.5, 0.1, 0.2]])
    kept = logits.clone()
    generation.modify_logits_for_top_k_filtering(kept, 2)
    assert kept.isfinite().tolist() == [[False, True, False, True], [True, True, False, False]]
    kept = logits.clone()
    generation.modify_logits_for_top_p_filtering(kept, 0.8)
    assert kept.isfinite().tolist() == [[False, True, False, True], [True, False, False, False]]
    kept = logits.clone()
    generation.modify_logits_for_min_p_filtering(kept, 0.3)
    assert kept.isfinite().tolist() == [[False, True, True, True], [True, True, False, False]]
    got = generation.modify_logit_for_repetition_penalty(logits.clone(), torch.tensor([[1], [0]]), 2.0)
    assert got.tolist()[0] == [0.0, 1.5, 1.0, 2.0]
    assert got[1, 0] == 2.0


def test_the_switch_of_determinism() -> None:
    assert not determinism.use_deterministic_mode()
    try:
        determinism.set_deterministic_mode(True)
        assert determinism.use_deterministic_mode()
    finally:
        determinism.set_deterministic_mode(None)
    assert determinism.use_deterministic_mode() == torch.are_deterministic_algorithms_enabled()
