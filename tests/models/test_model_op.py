import sys
from typing import Any

import pytest
import torch

from helpers.official_names import untouched
from scanlab.contract import registry
from scanlab.contract.backend import restricted
from scanlab.contract.verify import reference_outputs, verify
from scanlab.errors import InputError, ProblemError
from scanlab.models.model_op import (
    ModelProblem,
    forward,
    fresh_inputs,
    make_inputs,
    op,
    op_problems,
    subsets,
    tuned_ops,
)
from scanlab.models.workloads import BUILT_IN, default_sizes, find_workload
from scanlab.runtime.policy import Policy

DIGITS = ModelProblem(model="digits", batch=4, size=8)
LOOSE = DIGITS.replace(max_logit_error=0.05)

USERS_MODEL = """
import torch

def make(batch=2, size=6):
    torch.manual_seed(0)
    return torch.nn.Linear(size, 3).eval(), torch.randn(batch, size)
"""


@pytest.fixture(scope="module")
def expected():
    return reference_outputs(LOOSE, make_inputs(LOOSE, 0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16_products", "bfloat16"])
def test_each_dtype_is_right_to_its_own_accuracy(expected, dtype):
    verdict = verify(registry.get("assembly").build(LOOSE, {"dtype": dtype}), expected)
    assert verdict.passed, verdict.reason
    assert verdict.worst < (1e-5 if dtype == "float32" else 0.05)


def test_a_dtype_that_is_not_exact_enough_is_wrong():
    strict = DIGITS.replace(max_logit_error=1e-4)
    function = registry.get("assembly").build(strict, {"dtype": "bfloat16"})
    assert not verify(function, reference_outputs(strict, make_inputs(strict, 0))).passed


def test_products_in_bfloat16_are_switched_on_inside_the_model_alone():
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    registry.get("assembly").build(LOOSE, {"dtype": "bfloat16_products"})(*make_inputs(LOOSE, 0))
    assert products.fp32_precision == before


def test_the_ops_of_a_forward_pass_are_counted():
    found = op_problems(DIGITS, make_inputs(DIGITS, 0))
    scans = {problem: calls for problem, (calls, _) in found.items() if problem.op == "selective_scan"}
    assert list(scans.values()) == [4]  # one in each layer, both directions at once
    assert all(seconds > 0 for _, seconds in found.values())


def test_fresh_inputs_differ_and_keep_tokens_legal():
    (given,) = make_inputs(DIGITS, 0)
    (fresh,) = fresh_inputs(DIGITS, (given,), 3)
    assert fresh.input.shape == given.input.shape
    assert not torch.equal(fresh.input, given.input)
    tokens = given._replace(input=torch.arange(12).view(2, 6))
    (shuffled,) = fresh_inputs(DIGITS, (tokens,), 3)
    assert not torch.equal(shuffled.input, tokens.input)
    assert torch.equal(shuffled.input.flatten().sort().values, tokens.input.flatten())


def test_a_model_of_the_users_own_is_an_op_too(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USERS_MODEL)
    name = f"{file}:make"
    assert default_sizes(name) == (2, 6)
    problem = ModelProblem(model=name, batch=2, size=6)
    expected = reference_outputs(problem, make_inputs(problem, 0))
    assert verify(registry.get("assembly").build(problem), expected).passed
    assert op.work(problem).multiply_adds == 0  # nothing in it is an op of scanlab


def test_a_set_of_tuned_ops_has_one_text():
    assert subsets(["linear", "add_norm"]) == ("add_norm+linear", "add_norm", "linear", "none")
    assert tuned_ops({"tuned": "add_norm+linear"}) == ("add_norm", "linear")
    assert tuned_ops({"tuned": "none"}) == ()
    assert set(subsets(["linear", "add_norm"])) <= set(registry.get("assembly").space.tunables[1].values)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_workload_is_found(name):
    assert callable(find_workload(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vim-huge", "no model is called"),
        ("no_such_module:make", "cannot be imported"),
        ("scanlab.models.workloads:nothing", "has no function"),
    ],
)
def test_an_unknown_workload_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        find_workload(name)


@pytest.mark.parametrize("function", ["def take(batch): ...", "def take(batch=1, size='large'): ...", "take = max"])
def test_a_function_of_other_arguments_is_no_workload(tmp_path, function):
    file = tmp_path / "odd.py"
    file.write_text(function)
    with pytest.raises(InputError, match="must take two arguments"):
        default_sizes(f"{file}:take")


def test_a_function_that_returns_no_model_is_no_workload(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text("def take(batch, size): return 3")
    with pytest.raises(InputError, match="returned a int: must be a model and one input tensor"):
        make_inputs(ModelProblem(model=f"{file}:take", batch=1, size=1), 0)


def test_an_error_of_the_users_code_is_told_in_a_sentence(tmp_path):
    importing, making, running = (tmp_path / f"{name}.py" for name in ("importing", "making", "running"))
    importing.write_text("sizes = {}\nsizes['large']")
    making.write_text("def make(batch, size):\n    return 1 // 0")
    running.write_text("import torch\ndef make(batch, size):\n    return torch.nn.Linear(3, 3), torch.zeros(1, 2)")
    with pytest.raises(InputError, match=r"importing.py:make raised KeyError: 'large' \(.*importing.py, line 2\)"):
        find_workload(f"{importing}:make")
    with pytest.raises(InputError, match=r"raised ZeroDivisionError: .* \(.*making.py, line 2\)"):
        make_inputs(ModelProblem(model=f"{making}:make", batch=1, size=1), 0)
    problem = ModelProblem(model=f"{running}:make", batch=1, size=1)
    with pytest.raises(InputError, match="raised RuntimeError"):
        forward(problem, "float32", Policy.of({}))(*make_inputs(problem, 0))


def test_a_module_of_the_current_folder_may_import_mamba_ssm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "users_mamba.py").write_text(
        "from mamba_ssm import Mamba\n\ndef make(batch=2, size=6):\n    return Mamba"
    )
    with untouched():
        made: Any = find_workload("users_mamba:make")(2, 6)
    assert made.__name__ == "Mamba"
    del sys.modules["users_mamba"]


@pytest.mark.parametrize("changes", [{"batch": 0}, {"dtype": "int8"}, {"max_logit_error": 2.0}])
def test_an_illegal_problem_is_refused(changes):
    with pytest.raises(ProblemError):
        DIGITS.replace(**changes)


def test_a_restricted_space_keeps_its_other_tunables():
    only = restricted(registry.get("assembly"), "dtype", ["bfloat16"], "bfloat16")
    assert only.space.defaults["dtype"] == "bfloat16"
    assert only.space.defaults["tuned"] == "none"
    assert only.make is registry.get("assembly").make
