"""Scans of feature maps as models call them: dtypes are promoted, backends named, gradients served."""

from __future__ import annotations

import pytest
import torch

from scanlab.contract.verify import relative_error
from scanlab.errors import ProblemError, RejectedError, UnknownBackendError
from scanlab.runtime import dispatch
from scanlab.runtime.cross_scan import cross_scan_2d
from scanlab_kernels.cross_scan_2d.problem import CrossScanInputs, CrossScanProblem, make_inputs

PROBLEM = CrossScanProblem(batch=1, dim=5, height=4, width=6, state=2)
BACKENDS = ("cross_scan_2d_torch", "cross_scan_2d_composed", "cross_scan_2d_native")


def inputs(**options: object) -> CrossScanInputs:
    return make_inputs(PROBLEM.replace(**options))[0]


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_every_backend_gives_the_same(backend):
    expected = cross_scan_2d(inputs(dtype="float64"), backend="cross_scan_2d_torch")
    with torch.no_grad():
        assert relative_error(cross_scan_2d(inputs(), backend=backend), expected) < 2e-5
    assert BACKENDS[2] in dispatch.explain()


def test_directions_are_rows_columns_and_both_reversed():
    """With decays of zero each step is on its own; with steps of one position the outputs tell the orders apart."""
    u = torch.arange(6.0).view(1, 1, 2, 3)
    ones = torch.ones(1, 4, 1, 2, 3)
    for k, order in enumerate(([0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0])):
        C = torch.zeros(1, 4, 1, 2, 3)
        C[:, k] = 1
        out = cross_scan_2d(CrossScanInputs(u, ones, torch.zeros(4, 1, 1), ones, C), delta_softplus=False)
        assert out.flatten()[order].tolist() == u.flatten()[order].cumsum(0).tolist()


def test_mixtures_of_dtypes_are_promoted():
    given = inputs()
    mixed = given._replace(u=given.u.bfloat16(), A=given.A.double())
    out = cross_scan_2d(mixed)
    assert out.dtype == torch.bfloat16
    wide = cross_scan_2d(given._replace(u=given.u.bfloat16().float()))
    assert torch.equal(out, wide.bfloat16())


@pytest.mark.parametrize("rank", [0, 3])
def test_gradients_are_served_and_are_those_of_the_loop(rank):
    def gradients(backend: str | None) -> list[torch.Tensor]:
        given = inputs(rank=rank)
        leaves = CrossScanInputs(*(None if each is None else each.clone().requires_grad_() for each in given))
        cross_scan_2d(leaves, backend=backend).square().sum().backward()
        return [leaf.grad for leaf in leaves if leaf is not None]

    for ours, loop in zip(gradients(None), gradients("cross_scan_2d_torch"), strict=True):
        assert relative_error(ours, loop) < 2e-5
    with pytest.raises(RejectedError, match="gradients"):
        gradients("cross_scan_2d_native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(5, 4, 6)}, "u is float32 .5, 4, 6. on cpu: must be .batch, dim, height, width."),
        ({"delta": torch.ones(1, 4, 5, 4, 5)}, "delta is .*: must be float32 .1, 4, 5, 4, 6."),
        ({"A": torch.ones(4, 5)}, "A is .*: must be .4, dim, state."),
        ({"B": torch.ones(1, 2, 2, 4, 6)}, "B is .*: must be float32 .1, 4, 2, 4, 6."),
        ({"D": torch.ones(5)}, "D is .*: must be float32 .4, 5."),
        ({"dt_weight": torch.ones(4, 5)}, "dt_weight is .*: must be .4, dim, rank."),
        ({"dt_weight": torch.ones(4, 5, 3)}, "delta is .*: must be float32 .1, 4, 3, 4, 6."),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ProblemError, match=message):
        cross_scan_2d(inputs()._replace(**change))


def test_a_backend_that_is_not_there_is_refused():
    with pytest.raises(UnknownBackendError, match="did you mean|Did you mean"):
        cross_scan_2d(inputs(), backend="cross_scan_2d_nativ")
