"""A product is served by what was measured for it: environment, profile, defaults of the silicon, else torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import scanlab
from scanlab.contract.machine import Silicon, this_machine
from scanlab.errors import ConfigError, ProblemError
from scanlab.runtime import decisions, defaults, dispatch
from scanlab.runtime.decisions import decide
from scanlab.runtime.ops import PrepackedWeight, linear
from scanlab.runtime.policy import Policy, serve_by
from scanlab.runtime.profile import Profile, ProfileEntry
from scanlab.runtime.usage import log_usage
from scanlab_kernels.linear.op import LinearProblem

PROBLEM = LinearProblem(rows=40, in_features=24, out_features=16)


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    """No profile, no environment, and nothing decided."""
    monkeypatch.delenv("SCANLAB_LINEAR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    dispatch.clear()
    yield
    dispatch.clear()


@pytest.fixture
def unknown_silicon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that nobody measured."""
    monkeypatch.setattr(decisions, "most_similar", lambda problem: iter(()))


def multiply(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A product that poses PROBLEM, checked."""
    x, weight = torch.randn(40, 24).to(dtype), PrepackedWeight(torch.randn(16, 24).to(dtype))
    out = linear(x, weight)
    torch.testing.assert_close(out, F.linear(x, weight.weight), rtol=2e-2, atol=2e-2)
    return out


@pytest.mark.usefixtures("unknown_silicon")
def test_on_silicon_that_nobody_measured_torch_multiplies() -> None:
    for dtype in ("float32", "bfloat16"):
        assert decide(PROBLEM.replace(dtype=dtype), None).backend == "linear_torch"
    multiply()
    assert f"linear {PROBLEM.key}: linear_torch" in scanlab.explain()


@pytest.mark.usefixtures("unknown_silicon")
def test_a_named_backend_serves_what_its_instruction_set_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_LINEAR", "native")
    monkeypatch.setenv("SCANLAB_ISA", "plain")
    multiply(torch.bfloat16)
    assert "instruction set plain of this machine has no products" in scanlab.explain()


@pytest.mark.usefixtures("unknown_silicon")
def test_the_profile_decides_for_its_problem_and_the_nearest() -> None:
    entry = ProfileEntry(PROBLEM, "linear_onednn", "0", {"threads": 0})
    profile = Profile.empty().with_entry(entry)
    assert decide(PROBLEM, profile).basis == "exact"
    assert decide(PROBLEM.replace(rows=80), profile).backend == "linear_onednn"
    assert decide(PROBLEM.replace(dtype="float64"), profile).backend == "linear_torch"


@pytest.mark.parametrize("name", ["torch", "onednn"])
def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SCANLAB_LINEAR", name)
    multiply(torch.bfloat16)
    decided = dispatch.dispatcher().decided[PROBLEM.replace(dtype="bfloat16")]
    assert (decided.backend, decided.basis) == (f"linear_{name}", "named")


def test_what_the_named_backend_cannot_multiply_torch_does_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_LINEAR", "onednn")
    decision = decide(PROBLEM.replace(dtype="float64"), None)
    assert decision.backend == "linear_torch"
    assert "SCANLAB_LINEAR=onednn cannot serve: linear_onednn: dtype float64" in decision.reason


def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANLAB_LINEAR", "cublas")
    with pytest.raises(ConfigError, match="SCANLAB_LINEAR=cublas: must be one of gemv"):
        decide(PROBLEM, None)


def test_a_policy_names_a_backend_inside_its_block() -> None:
    policy = Policy.of({"linear": "linear_onednn"})
    with serve_by(policy):
        multiply()
    assert dispatch.dispatcher(policy).decided[PROBLEM].backend == "linear_onednn"
    assert PROBLEM not in dispatch.dispatcher().decided


def test_usage_of_products_is_logged() -> None:
    with log_usage() as log:
        multiply()
        multiply()
    assert log.usage[PROBLEM].calls == 2
    assert log.scans == {}


def silicon(vendor: str, *flags: str) -> Silicon:
    """A processor with these instruction sets."""
    here = this_machine().silicon
    facts = {name: getattr(here, name) for name in Silicon.__dataclass_fields__}
    return Silicon(**facts | {"vendor": vendor, "flags": flags})


def test_defaults_hold_for_their_kind_of_silicon_alone() -> None:
    amx = defaults.of_silicon(silicon("GenuineIntel", "avx512f", "avx512_bf16", "amx_bf16"))
    genoa = defaults.of_silicon(silicon("AuthenticAMD", "avx512f", "avx512_bf16"))
    assert amx != genoa
    assert {each.problem.op for each in (*amx, *genoa)} >= {"linear", "mamba_front"}
    assert defaults.of_silicon(silicon("GenuineIntel", "avx2")) == ()
    for each in (*amx, *genoa):
        assert list(each.entries) == sorted(each.entries, key=lambda entry: -entry.speedup)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_tensor_without_data_among_others_is_refused(missing: str) -> None:
    tensors = {"weight": torch.randn(16, 24), "bias": torch.randn(16)}
    tensors[missing] = tensors[missing].to("meta")
    with pytest.raises(ProblemError, match=f"{missing} is on meta, x on cpu"):
        linear(torch.randn(40, 24), PrepackedWeight(tensors["weight"]), tensors["bias"])


@pytest.mark.parametrize("features", [25, 26])
@pytest.mark.parametrize("backend", ["native", "onednn", "torch"])
def test_rows_of_other_features_than_the_weight_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, backend: str, features: int
) -> None:
    """bfloat16 weights are packed in pairs: one of 25 features as one of 26 whose last is zero."""
    monkeypatch.setenv("SCANLAB_LINEAR", backend)
    weight = PrepackedWeight(torch.randn(16, features).bfloat16())
    for other in (features - 1, features + 1):
        with pytest.raises(RuntimeError):
            linear(torch.randn(40, other).bfloat16(), weight)
    with pytest.raises(RuntimeError):
        linear(torch.randn(40, features).bfloat16(), PrepackedWeight(weight.weight[:, 1:]))


def test_a_quantized_bias_is_refused() -> None:
    bias = torch.quantize_per_tensor(torch.randn(16), 0.1, 0, torch.qint8)
    with pytest.raises(ProblemError, match="bias is torch.qint8: must be floating"):
        linear(torch.randn(40, 24), PrepackedWeight(torch.randn(16, 24)), bias)


def test_numbers_that_no_backend_multiplies_are_left_to_torch() -> None:
    x, weight = torch.arange(6).reshape(2, 3), torch.arange(12).reshape(4, 3)
    assert torch.equal(linear(x, PrepackedWeight(weight)), x @ weight.T)
    both = [torch.quantize_per_tensor(each.float(), 0.1, 0, torch.qint8) for each in (x, weight)]
    with pytest.raises((NotImplementedError, RuntimeError)):
        linear(both[0], PrepackedWeight(both[1]))
