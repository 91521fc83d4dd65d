"""Code with unconditional CUDA calls on a machine without CUDA, and that nothing is left of it afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scanlab.errors import UnavailableError
from scanlab.integrations.cuda_on_cpu import on_cpu

NAMES = [
    (threading.Thread, "start"),
    *((torch.Tensor, name) for name in ("cuda", "pin_memory", "to")),
    *((torch.nn.Module, name) for name in ("cuda", "to")),
    *((torch, name) for name in ("load", "zeros", "set_default_device")),
    *((torch.cuda, name) for name in ("synchronize", "current_device", "device", "FloatTensor", "Event", "Stream")),
    *((torch, name) for name in ("Generator", "set_default_tensor_type")),
    (torch.distributed, "init_process_group"),
    (torch.nn.parallel.DistributedDataParallel, "__init__"),
]


@pytest.fixture(autouse=True)
def without_cuda():
    if torch.cuda.is_available():
        pytest.skip("CUDA itself serves here")


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
        lambda: torch.ones(2).type("torch.cuda.FloatTensor"),
        lambda: torch.nn.Linear(2, 2, device="cuda").weight,
        lambda: torch.nn.Linear(2, 2).cuda().weight,
        lambda: torch.nn.Linear(2, 2).to("cuda").weight,
        lambda: torch.nn.Linear(2, 2).to(0).weight,
        lambda: torch.ones(2, device=torch.device(0)),
        lambda: torch.ones(2, pin_memory=True),
        lambda: torch.UntypedStorage(3, device="cuda"),
        lambda: torch.nn.parallel.data_parallel(torch.nn.Linear(2, 2).cuda(), torch.ones(1, 2).cuda(), device_ids=[0]),
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


@pytest.mark.parametrize("module", [torch.cuda, torch])
def test_events_measure_time_and_streams_order_nothing(module):
    place = () if module is torch.cuda else ("cuda",)
    with on_cpu():
        begin, end = (module.Event(*place, enable_timing=True) for _ in range(2))
        stream = module.Stream(*place)
        with pytest.raises(RuntimeError, match="was not recorded"):
            begin.elapsed_time(end)
        begin.record()
        with torch.cuda.stream(stream):
            x = torch.ones(2, device="cuda")
            x.record_stream(torch.cuda.current_stream())
        stream.wait_stream(torch.cuda.default_stream())
        end.record()
        torch.cuda.synchronize()
        assert end.query()
        assert 0.0 < begin.elapsed_time(end) < 1e5


def test_questions_about_the_device_are_answered_for_the_cpu():
    with on_cpu():
        properties = torch.cuda.get_device_properties(0)
        assert properties.name == torch.cuda.get_device_name() == "CPU"
        assert properties.gcnArchName == "CPU"  # read by torch.compile
        assert torch.cuda.get_device_capability() < (7, 0)
        free, total = torch.cuda.mem_get_info()
        assert 0 < free <= total == properties.total_memory
        torch.cuda.set_per_process_memory_fraction(0.5)
        with torch.cuda.nvtx.range("forward"):
            torch.cuda.nvtx.range_push("inner")


@pytest.mark.parametrize(
    "steer",
    [
        lambda: torch.cuda.seed_all(),
        lambda: torch.cuda.manual_seed_all(torch.cuda.initial_seed()),
        lambda: torch.cuda.set_rng_state_all(torch.cuda.get_rng_state_all()),
        lambda: torch.cuda.memory.reset_peak_memory_stats(),
        lambda: torch.cuda.reset_accumulated_memory_stats(),
        lambda: torch.cuda.memory._record_memory_history(),
        lambda: torch.cuda.streams.Stream().synchronize(),
        lambda: torch.cuda.profiler.start(),
        lambda: 8 // torch.cuda.device_count(),
        lambda: torch.cuda.utilization(),
        lambda: torch.cuda.make_graphed_callables(torch.nn.Linear(2, 2).cuda(), (torch.ones(1, 2),))(torch.ones(1, 2)),
    ],
)
def test_calls_that_only_steer_or_ask_a_device_end(steer):
    with on_cpu():
        steer()


def test_captured_graphs_are_refused_in_a_sentence():
    with on_cpu():
        assert torch.cuda.CUDAGraph | None
        with pytest.raises(UnavailableError, match="turn them off in the script"):
            torch.cuda.CUDAGraph()


def test_generators_are_those_of_the_cpu():
    with on_cpu():
        generator = torch.Generator(device="cuda").manual_seed(3)
        assert isinstance(generator, torch.Generator)
        assert isinstance(torch.default_generator, torch.Generator)
        drawn = torch.randn(4, generator=generator, device="cuda")
        with torch.random.fork_rng(devices=[0]):
            torch.manual_seed(3)
            assert torch.equal(torch.randn(4), drawn)
        assert torch.get_device_module("cuda:0") is torch.cuda
    assert torch.get_device_module("cuda") is torch.cuda
    with torch.random.fork_rng():
        torch.manual_seed(4)


@pytest.mark.filterwarnings("ignore:torch.set_default_tensor_type")
def test_a_default_type_is_mapped():
    with on_cpu():
        torch.set_default_tensor_type("torch.cuda.DoubleTensor")
        assert torch.zeros(2).dtype == torch.float64
        torch.set_default_tensor_type(torch.cuda.FloatTensor)  # type: ignore[attr-defined]
        assert torch.zeros(2).dtype == torch.float32


def test_a_process_group_of_one_trains_in_parallel(tmp_path):
    with on_cpu():
        torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
        try:
            layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).cuda()
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(layers)
            parallel = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0], output_device=0)
            parallel(torch.ones(3, 2).cuda()).sum().backward()
            assert torch.distributed.get_backend() == "gloo"
        finally:
            torch.distributed.destroy_process_group()
    assert all(each.grad is not None for each in model.parameters())


def test_versions_and_the_accelerator_are_answered():
    with on_cpu():
        torch.accelerator.synchronize()
        torch.accelerator.current_stream().synchronize()
        assert torch.accelerator.current_device_index() == 0
        torch.accelerator.current_stream().wait_stream(torch.accelerator.current_stream())
        assert torch.cuda.nccl.version() == (0, 0, 0)


def test_copies_for_several_devices_are_made_on_the_cpu():
    x = torch.arange(6.0).view(3, 2).requires_grad_()
    with on_cpu():
        parts = torch.nn.parallel.scatter(x, [0, 1])
        assert [len(each) for each in parts] == [2, 1]
        assert torch.equal(torch.nn.parallel.gather(parts, 0), x)
        first, second = torch.nn.parallel.replicate(torch.nn.Linear(2, 2).cuda(), [0, 1])
        assert torch.equal(first(x), second(x))
        (grad,) = torch.autograd.grad(torch.nn.parallel.gather(parts, 0).square().sum(), x)
        assert torch.equal(grad, 2 * x)
        copies = torch.cuda.comm.broadcast(x, devices=[0, 1])
        assert torch.equal(torch.cuda.comm.reduce_add(copies), 2 * x)


def test_a_compiled_function_may_name_cuda():
    with on_cpu():
        compiled = torch.compile(lambda x: x.cuda() + torch.ones(2, device="cuda"), backend="eager")
        assert compiled(torch.ones(2)).tolist() == [2, 2]
