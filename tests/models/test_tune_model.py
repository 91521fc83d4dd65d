import pytest

from scanlab import settings
from scanlab.bench.store import TrialStore
from scanlab.contract.problem import ScanProblem
from scanlab.errors import InputError
from scanlab.models.model_op import ModelProblem
from scanlab.models.tune_model import DtypeCost, OpShare, budgets, dtype_costs, op_shares, products_s, tune_model
from scanlab.tuning.result import TuningResult

DIGITS = ModelProblem(model="digits", batch=2, size=8, max_logit_error=0.05)
USERS_MODEL = """
import torch

def make(batch=2, size=6):
    return torch.nn.Linear(size, 3).eval(), torch.randn(batch, size)
"""


def share(length: int, calls: int, call_s: float, attainable_s: float) -> OpShare:
    problem = ScanProblem(batch=1, dim=8, length=length)
    return OpShare(problem, calls, call_s, attainable_s, ("float32",))


class RecordedTune:
    """Stand-in for `tune` that finds no winner, and notes what it was asked for."""

    def __init__(self, interrupts: bool = False) -> None:
        self.asked = []
        self._interrupts = interrupts

    def __call__(self, problem, inputs, backends, budget, store, **options):
        self.asked.append((problem, budget.seconds, tuple(backends), settings.PROFILE.get()))
        return TuningResult(
            problem, "drawn", "median", (), (), 0, None, None, frozenset(), (), (), self._interrupts, 0.0
        )


def test_time_goes_where_most_can_be_saved():
    slow, fast, done = share(100, 24, 3e-3, 1e-3), share(200, 24, 2e-3, 1e-3), share(300, 24, 1e-3, 1e-3)
    given = budgets((slow, fast, done), 100.0)
    assert list(given) == [slow, fast]
    assert given[slow] > given[fast]
    assert sum(given.values()) == pytest.approx(100.0)


def test_little_time_goes_to_the_largest_saving_alone():
    slow, fast = share(100, 24, 3e-3, 1e-3), share(200, 24, 2e-3, 1e-3)
    assert list(budgets((fast, slow), 9.0)) == [slow]


def test_the_ops_of_all_dtypes_are_listed_once():
    shares = op_shares(DIGITS, ("float32", "bfloat16_products", "bfloat16"))
    assert len({each.problem for each in shares}) == len(shares)
    scans = {each.problem.dtype: each.dtypes for each in shares if each.problem.op == "selective_scan"}
    assert scans == {"float32": ("float32", "bfloat16_products"), "bfloat16": ("bfloat16",)}


def test_the_products_of_a_pass_are_those_of_its_fronts_too():
    assert 0 < products_s(DIGITS, "float32") < 1


def test_a_dtype_that_changes_classes_is_refused():
    assert DtypeCost("bfloat16", 0.01, 0.99, None).refusal(0.05, 0.98) is None
    assert "logit" in DtypeCost("bfloat16", 0.06, 0.99, None).refusal(0.05, 0.98)
    assert "first classes" in DtypeCost("bfloat16", 0.01, 0.97, None).refusal(0.05, 0.98)
    assert "digits" in DtypeCost("bfloat16", 0.01, 0.99, 0.97).refusal(0.05, 0.98)
    assert DtypeCost("bfloat16", 0.01, 0.5, 0.99).refusal(0.05, 0.98) is None  # the trained model decides
    assert DtypeCost("bfloat16", float("nan"), 1.0, None).refusal(0.05, 0.0) is not None


def test_the_cost_of_a_dtype_is_measured_against_float64():
    exact, coarse = dtype_costs(DIGITS, ("float32", "bfloat16"), range(2))
    assert exact.logit_error < 1e-5 < coarse.logit_error < 0.05
    assert exact.agreement == 1.0


def test_ops_are_tuned_first_and_then_the_model_on_their_profile(tmp_path):
    tune = RecordedTune()
    result = tune_model(DIGITS, 60.0, TrialStore(tmp_path), dtypes=("float32", "bfloat16"), tune=tune)
    *ops, (problem, seconds, backends, profile) = tune.asked
    assert {asked.op for asked, *_ in ops} <= {each.problem.op for each in result.shares}
    assert sum(asked_s for _, asked_s, *_ in ops) == pytest.approx(36.0)
    assert (problem, seconds) == (DIGITS, pytest.approx(24.0))
    assert profile == str(tmp_path / "model-profile.json")
    assert settings.PROFILE.get() != profile
    in_torch, assembly = backends
    assert in_torch.space.tunables[1].values == ("chunked",)
    assert assembly.space.tunables[0].values == ("float32", "bfloat16")
    assert assembly.space.tunables[1].values == ("none",)  # no op has a better choice than its default
    assert result.entries == []


def test_problems_of_a_dtype_that_is_refused_are_not_tuned(tmp_path):
    tune = RecordedTune()
    strict = DIGITS.replace(max_logit_error=1e-4)
    tune_model(strict, 60.0, TrialStore(tmp_path), dtypes=("float32", "bfloat16"), tune=tune)
    assert {asked.dtype for asked, *_ in tune.asked} == {"float32"}


def test_an_interruption_ends_it_with_what_there_is(tmp_path):
    tune = RecordedTune(interrupts=True)
    result = tune_model(DIGITS, 60.0, TrialStore(tmp_path), tune=tune)
    assert len(tune.asked) == 1
    assert result.interrupted
    assert result.whole is None


def test_no_dtype_that_is_exact_enough_is_an_error(tmp_path):
    strict = DIGITS.replace(max_logit_error=1e-4)
    with pytest.raises(InputError, match="max-logit-error"):
        tune_model(strict, 60.0, TrialStore(tmp_path), dtypes=("bfloat16",), tune=RecordedTune())


def test_a_model_without_ops_of_scanlab_is_an_error(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USERS_MODEL)
    problem = ModelProblem(model=f"{file}:make", batch=2, size=6)
    with pytest.raises(InputError, match="calls no op of scanlab"):
        tune_model(problem, 60.0, TrialStore(tmp_path), tune=RecordedTune())
