"""Code with unconditional CUDA calls on a machine without CUDA, and that nothing is left of it afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scanlab.integrations.cuda_on_cpu import on_cpu

NAMES = [
    (threading.Thread, "start"),
    *((torch.Tensor, name) for name in ("cuda", "pin_memory", "to")),
    *((torch.nn.Module, name) for name in ("cuda", "to")),
    *((torch, name) for name in ("load", "zeros", "set_default_device")),
    *((torch.cuda, name) for name in ("synchronize", "current_device", "device", "FloatTensor")),
]


@pytest.fixture(autouse=True)
def without_cuda():
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2).cuda(),
        lambda: torch.ones(2).cuda(0, non_blocking=True),
        lambda: torch.ones(2).to("cuda"),
        lambda: torch.ones(2).to("cuda:1", torch.float64),
        lambda: torch.ones(2).to(device=torch.device("cuda", 0)),
        lambda: torch.ones(2).to(torch.cuda.current_device()),
        lambda: torch.ones(2).pin_memory().cuda(),
        lambda: torch.zeros(2, device="cuda"),
        lambda: torch.tensor([1.0], device=torch.device("cuda:0")),
        lambda: torch.arange(3, device=0),
        lambda: torch.ones(2).new_zeros(3, device="cuda"),
        lambda: torch.rand_like(torch.ones(2), device="cuda"),
        lambda: torch.cuda.FloatTensor([1.0]),  # type: ignore[attr-defined]
        lambda: torch.nn.Linear(2, 2, device="cuda").weight,
        lambda: torch.nn.Linear(2, 2).cuda().weight,
        lambda: torch.nn.Linear(2, 2).to("cuda").weight,
        lambda: torch.nn.DataParallel(torch.nn.Linear(2, 2), device_ids=[0, 1]).cuda().module.weight,
    ],
)
def test_tensors_and_modules_stay_on_the_cpu(make):
    with on_cpu():
        assert make().device.type == "cpu"


def test_a_default_device_is_mapped():
    with on_cpu():
        with torch.device("cuda"):
            assert torch.zeros(2).is_cpu
        torch.set_default_device("cuda")
        assert torch.zeros(2).is_cpu
        torch.set_default_device(None)


class Subclass(threading.Thread):
    def __init__(self, work):
        super().__init__()
        self.work = work

    def run(self):
        self.work()


@pytest.mark.parametrize("kind", [Subclass, lambda work: threading.Thread(target=work)], ids=["subclass", "target"])
def test_devices_are_mapped_in_threads_too(kind):
    made = []
    with on_cpu():
        thread = kind(lambda: made.append(torch.ones(2, device="cuda")))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(1) as pool:
            made.append(pool.submit(lambda: torch.zeros(2, device="cuda:1")).result())
    assert [each.is_cpu for each in made] == [True, True]


def test_other_arguments_are_passed_as_they_are():
    with on_cpu():
        moved = torch.ones(2).to("cuda", dtype=torch.float64)
        assert moved.dtype == torch.float64
        assert torch.zeros(2, device="meta").is_meta
        assert torch.full((2,), 3).tolist() == [3, 3]


@pytest.mark.parametrize(
    "location", [None, "cuda", "cuda:3", torch.device("cuda"), {"cuda:1": "cuda:0"}, lambda storage, _: storage.cuda(0)]
)
def test_checkpoints_are_loaded_to_the_cpu(tmp_path, location):
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "model.pt")
    with on_cpu():
        loaded = torch.load(tmp_path / "model.pt", map_location=location, weights_only=False)
    assert loaded["weight"].tolist() == [0, 1, 2]
    assert loaded["weight"].is_cpu


def test_one_line_says_so_and_all_is_undone(capsys):
    before = [getattr(owner, name) for owner, name in NAMES]
    with pytest.raises(ZeroDivisionError), on_cpu():
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name in NAMES] == before
    assert "cuda" not in vars(torch.Tensor)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["scanlab: this machine has no CUDA; code for a cuda device runs on the CPU."]
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(2).cuda()


def test_nothing_is_touched_where_there_is_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = [getattr(owner, name) for owner, name in NAMES]
    with on_cpu():
        assert [getattr(owner, name) for owner, name in NAMES] == before
    assert capsys.readouterr().err == ""
