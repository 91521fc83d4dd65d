"""The trained model reads digits it has never seen, with weights that ship with the package."""

from __future__ import annotations

import torch

from scanlab.models.digits import WEIGHTS, digits_model, digits_split, digits_test_set


def test_the_split_is_whole_disjoint_and_always_the_same():
    known, held_out = digits_split()
    assert len(known.labels) == 1437
    assert len(held_out.labels) == 360
    assert torch.bincount(held_out.labels).min() >= 34
    assert torch.equal(digits_test_set().images, held_out.images)
    rows = {row.numpy().tobytes() for row in known.images}
    assert not any(row.numpy().tobytes() in rows for row in held_out.images)


def test_the_trained_model_reads_held_out_digits():
    images, labels = digits_test_set()
    with torch.no_grad():
        read = digits_model("chunked:threads=1")(images).argmax(1)
    assert (read == labels).double().mean() >= 0.97
    assert WEIGHTS.stat().st_size < 1 << 20
