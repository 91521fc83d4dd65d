"""Thread counts: what an op takes, and that holding torch to a number leaves the process as it was."""

from __future__ import annotations

import threading

import pytest
import torch

from scanlab.contract import registry
from scanlab.contract.backend import at_most
from scanlab.contract.cpu import pinned, thread_count, threads_tunable, torch_threads, usable_threads
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.errors import ConfigError


@pytest.fixture(autouse=True)
def kept():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_another_thread(action):
    """Return what `action` returns in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(action()))
    thread.start()
    thread.join()
    return found[0]


def test_torch_is_held_in_the_calling_thread_and_nowhere_else():
    torch.set_num_threads(2)
    with torch_threads(3):
        assert torch.get_num_threads() == 3
        assert in_another_thread(torch.get_num_threads) == 2
    assert torch.get_num_threads() == 2


def test_torch_is_held_beside_a_library_with_an_openmp_of_its_own():
    pytest.importorskip("sklearn.cluster")
    test_torch_is_held_in_the_calling_thread_and_nowhere_else()


def test_a_count_set_by_another_thread_meanwhile_stays():
    torch.set_num_threads(2)
    with torch_threads(3):
        in_another_thread(lambda: torch.set_num_threads(1))
    assert in_another_thread(torch.get_num_threads) == 1


def test_calls_from_several_threads_leave_the_count_of_the_process():
    torch.set_num_threads(2)
    calls = [pinned(lambda: torch.ones(1 << 16).exp(), count) for count in (1, 2, 3)]
    threads = [threading.Thread(target=lambda call=call: [call() for _ in range(50)]) for call in calls * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert in_another_thread(torch.get_num_threads) == 2


def test_without_a_number_torch_is_followed():
    tunable = threads_tunable()
    assert tunable.default == 0
    for count in (1, 2):
        torch.set_num_threads(count)
        assert thread_count({"threads": tunable.default}) == thread_count({}) == count
    assert thread_count({"threads": 1}) == 1

    def function():
        return torch.get_num_threads()

    assert pinned(function, 0) is function


def test_every_usable_number_may_be_named_and_few_are_searched():
    tunable, usable = threads_tunable(), usable_threads()
    assert set(tunable.legal) == set(range(usable + 1))
    assert usable not in tunable.values
    backend, config = registry.parse_selection(f"two_phase:threads={usable}")
    assert config == {"threads": usable}
    assert backend.build(ScanProblem(batch=1, dim=2, length=3), config)
    with pytest.raises(ConfigError, match=f"threads={usable + 1}"):
        registry.parse_selection(f"two_phase:threads={usable + 1}")


def test_a_backend_can_be_restricted_to_a_number():
    restricted = at_most(registry.get("two_phase"), 1)
    assert restricted.space.defaults == {"threads": 1}
    assert [config["threads"] for config in restricted.space.configs(ScanProblem(batch=1, dim=2, length=3))] == [1]
    with pytest.raises(ConfigError, match="two_phase runs on 1 to"):
        at_most(registry.get("two_phase"), 99)


@pytest.mark.parametrize("name", ["reference", "chunked", "native"])
def test_a_scan_follows_torch_call_by_call(name):
    backend = registry.get(name)
    if backend.unavailable():
        pytest.skip(str(backend.unavailable()))
    problem = ScanProblem(batch=1, dim=8, length=20)
    scan, inputs = backend.build(problem), make_inputs(problem)
    for count in (1, 2):
        torch.set_num_threads(count)
        scan(*inputs)
        assert torch.get_num_threads() == count
