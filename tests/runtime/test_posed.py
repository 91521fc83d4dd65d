"""Inputs that `scanlab.serve` is given beside a problem: those of another one are refused, and none is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

import scanlab
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import ProblemError
from scanlab.runtime.posed import expect_posed
from scanlab_kernels.linear.op import LinearInputs, LinearProblem

SCAN = ScanProblem(batch=2, dim=6, length=20, state=4)
OPS = sorted(set(registry.ops()) - {"model"})  # whose inputs are whole models


@pytest.mark.parametrize("name", OPS)
def test_what_an_op_draws_poses_its_problem(name):
    op = registry.op(name)
    for problem in op.corners:
        expect_posed(problem, op.make_inputs(problem, 1))


@pytest.mark.parametrize("name", OPS)
def test_inputs_of_another_problem_are_refused(name):
    op = registry.op(name)
    problem = op.probes[0]
    size = problem.sizes[0]
    other = problem.replace(**{size: 2 * getattr(problem, size)})
    with pytest.raises(ProblemError):
        expect_posed(problem, op.make_inputs(other, 0))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda inputs: inputs._replace(u=inputs.u[..., :5], delta=inputs.delta[..., :5]), "must be"),
        (lambda inputs: inputs._replace(D=None), "inputs pose .*has_D=false.*, not batch=2,dim=6,length=20,state=4"),
        (lambda inputs: inputs._replace(A=inputs.A.double()), "A is"),
        (lambda inputs: inputs.u, "was given Tensor: it takes ScanInputs"),
        (lambda inputs: LinearInputs(torch.ones(2, 3), torch.ones(4, 3)), "was given LinearInputs"),
    ],
)
def test_a_scan_of_other_inputs_is_refused(change, complaint):
    (inputs,) = make_inputs(SCAN)
    with pytest.raises(ProblemError, match=complaint):
        scanlab.serve(SCAN, change(inputs))


@pytest.mark.parametrize("problem", [None, "batch=2,dim=6,length=20", ScanProblem])
def test_what_is_no_problem_is_refused(problem):
    with pytest.raises(ProblemError, match="is no problem"):
        scanlab.serve(problem, *make_inputs(SCAN))


def test_a_set_of_inputs_too_many_is_refused():
    with pytest.raises(ProblemError, match="was given ScanInputs, ScanInputs: it takes ScanInputs"):
        scanlab.serve(SCAN, *make_inputs(SCAN), *make_inputs(SCAN))


def test_a_product_of_more_rows_than_the_problem_has_is_refused():
    problem = LinearProblem(rows=2, in_features=8, out_features=4)
    with pytest.raises(ProblemError, match="rows=3"):
        scanlab.serve(problem, LinearInputs(torch.ones(3, 8), torch.ones(4, 8)))


class Signal(NamedTuple):
    x: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SignalProblem(Problem):
    """A problem of a third party, whose type cannot read it from tensors."""

    op: ClassVar[str] = "signal"
    length: int
    dtype: str = "float32"
    device: str = "cpu"
    gradients: bool = False


class SignalOp(NamedTuple):
    @staticmethod
    def make_inputs(problem, seed):
        return (Signal(torch.ones(problem.length)),)


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (Signal(torch.ones(5)), r"x is float32 \(5,\) on cpu: length=4 takes float32 \(4,\) on cpu"),
        (Signal(torch.ones(4).double()), "x is float64"),
        (Signal(torch.ones(4), torch.ones(4)), r"weight is float32 \(4,\) on cpu: length=4 takes none"),
    ],
)
def test_inputs_of_other_ops_must_be_shaped_as_those_that_are_drawn(inputs, complaint, monkeypatch):
    monkeypatch.setattr(registry, "op", lambda name: SignalOp())
    problem = SignalProblem(length=4)
    expect_posed(problem, (Signal(torch.zeros(4)),))
    with pytest.raises(ProblemError, match=complaint):
        expect_posed(problem, (inputs,))
