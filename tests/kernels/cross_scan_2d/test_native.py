"""The C++ scan of a feature map: what it refuses, and what torch's counter of operations counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scanlab_kernels.cross_scan_2d import native
from scanlab_kernels.cross_scan_2d.problem import CrossScanProblem, make_inputs


@pytest.mark.parametrize("rank", [0, 5])
def test_operations_are_counted(rank: int) -> None:
    problem = CrossScanProblem(batch=2, dim=6, height=3, width=4, state=3, rank=rank)
    scan, (inputs,) = native.backend.build(problem), make_inputs(problem)
    with FlopCounterMode(display=False) as counter:
        scan(inputs)
    positions_and_directions = 2 * 3 * 4 * 4
    assert counter.get_total_flops() == 2 * positions_and_directions * 6 * (4 * 3 + rank)


def test_a_projection_that_does_not_fit_is_refused() -> None:
    problem = CrossScanProblem(batch=1, dim=6, height=3, width=4, state=1, rank=5)
    scan, (inputs,) = native.backend.build(problem), make_inputs(problem)
    with pytest.raises(ValueError, match="dt_weight"):
        scan(inputs._replace(dt_weight=torch.ones(4, 6)))
    with pytest.raises(ValueError, match="delta"):
        scan(inputs._replace(dt_weight=torch.ones(4, 6, 4)))
