"""The judge: faults that were planted are found, and what is right passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuzz.case import Arguments, Case, Kind, Results, fit, judge


def add(given: Arguments) -> Results:
    return {"out": given["x"] + given["y"]}


def reference(given: Arguments) -> Results:
    x = fit("x", given["x"], (-1,))
    return {"out": x + fit("y", given["y"], x.shape)}


def in_place(given: Arguments) -> Results:
    return {"out": given["x"].add_(given["y"])}


def fails_late(given: Arguments) -> Results:
    given["x"].zero_()
    raise ValueError("x does not fit")


def crashes(given: Arguments) -> Results:
    raise AttributeError("'Tensor' object has no attribute 'shap'")


def case(call: Callable[[Arguments], Results] = add, kind: Kind = "valid", **changes: object) -> Case:
    """Return a call of an addition of two vectors."""
    arguments = {"x": torch.ones(8)[::2], "y": torch.arange(4.0), **changes}
    return Case("add", arguments, call, reference, lambda given: {"out": torch.float32}, kind=kind)


def test_passes_what_is_right() -> None:
    differentiated = case()
    differentiated.differentiated = ("x", "y")
    assert judge(differentiated) == []


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        (case(lambda given: {"out": (given["x"] + given["y"]) * 1.001}), "out is off by"),
        (case(lambda given: {"out": given["x"].double() + given["y"]}), "must be torch.float32"),
        (case(lambda given: {"out": torch.full((4,), torch.nan)}), "is nan"),
        (case(in_place), "memory of 1 arguments changed"),
        (case(fails_late), "refused"),
        (case(fails_late, "hostile"), "memory of 1 arguments changed"),
        (case(crashes, "hostile"), "no refusal but AttributeError"),
        (case(kind="hostile", y=torch.ones(1)), "accepted what must be refused"),
    ],
    ids=["values", "dtype", "nan", "inputs", "refusal", "late refusal", "crash", "accepted"],
)
def test_finds_what_is_wrong(planted: Case, complaint: str) -> None:
    assert complaint in " ".join(judge(planted))


def test_finds_a_wrong_gradient() -> None:
    planted = case(lambda given: {"out": given["x"] + given["y"].detach()})
    planted.differentiated = ("x", "y")
    assert "grad_y" in " ".join(judge(planted))


def test_finds_what_is_written_beside_a_state() -> None:
    def update(given: Arguments) -> Results:
        given["x"].add_(given["y"])
        given["x"].as_strided((1,), (1,), 1).zero_()
        return {}

    planted = Case(
        "update",
        {"x": torch.ones(8)[::2], "y": torch.arange(4.0)},
        update,
        lambda given: {"x": reference(given)["out"]},
        lambda given: {},
        states=("x",),
    )
    assert judge(planted) == ["memory of 1 arguments changed"]
