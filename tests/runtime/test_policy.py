import pytest
import torch

from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import ProfileError
from scanlab.runtime import dispatch
from scanlab.runtime.policy import DEFAULT, Policy, serve_by
from scanlab.runtime.profile import Profile, ProfileEntry

PROBLEM = ScanProblem(batch=1, dim=4, length=6)


def served(policy: Policy) -> str:
    with serve_by(policy):
        dispatch.scan(*make_inputs(PROBLEM))
    return dispatch.dispatcher(policy).decided[PROBLEM].backend


def test_a_named_backend_serves_inside_the_block_alone():
    before = dispatch.serving(dispatch.scan)
    assert served(Policy.of({"selective_scan": "two_phase"})) == "two_phase"
    assert dispatch.serving(dispatch.scan) is before


def test_ops_that_are_not_named_follow_the_other_selection():
    policy = Policy.of({"linear": "reference"}, others="chunked:chunk=8")
    assert policy.selection("linear") == "reference"
    assert served(policy) == "chunked"


def test_default_and_tuned_differ_by_the_profile(tmp_path):
    path = tmp_path / "profile.json"
    machine = this_machine()
    entry = ProfileEntry(PROBLEM, "two_phase", "", {})
    Profile(machine.silicon_id, machine.describe(), (entry,)).save(path)
    assert served(Policy(profile=path)) == "two_phase"
    assert served(Policy(others=DEFAULT, profile=path)) != "two_phase"


def test_models_under_different_policies_keep_plans_of_their_own():
    def kind(policy: Policy) -> object:
        with serve_by(policy), torch.inference_mode():
            return dispatch.input_kind(torch.zeros(1, 3, 8), dispatch.scan)

    assert kind(Policy(others="two_phase")) != kind(Policy(others="reference"))


def test_a_policy_without_tuned_ops_needs_no_profile(tmp_path):
    missing = tmp_path / "missing.json"
    assert served(Policy(others=DEFAULT, profile=missing)) != "none"
    with pytest.raises(ProfileError, match="cannot read the profile"):
        served(Policy(profile=missing))
