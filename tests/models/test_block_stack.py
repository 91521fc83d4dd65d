"""All blocks of a model in one native op: its bits are those of the blocks called one by one."""

import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scanlab.models import block_stack
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime.policy import DEFAULT, Policy, serve_by
from scanlab_kernels.cpu import extension
from scanlab_kernels.cpu.isa import chosen_isa, multiplies_bfloat16
from scanlab_kernels.linear import mkl

pytestmark = pytest.mark.skipif(extension.unavailable() is not None, reason="no native ops here")

DTYPES = [torch.float32] + [torch.bfloat16] * multiplies_bfloat16(chosen_isa())
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def model(dtype=torch.float32, **options):
    torch.manual_seed(1)
    return VisionMamba(img_size=64, depth=3, embed_dim=64, num_classes=5, **options).cast_(dtype).eval()


def native_policy(product="native"):
    ops = {"mamba_front": "mamba_front_native", "linear": f"linear_{product}", "add_norm": "add_norm_native"}
    return Policy.of(ops, others=DEFAULT)


@pytest.fixture(autouse=True)
def _native_ops():
    """Let native ops serve every part of a block, whatever is the default for such small ones on this silicon."""
    with serve_by(native_policy()):
        yield


@pytest.fixture
def stacked(monkeypatch):
    """Numbers of the blocks of each call of the native op."""
    calls = []

    def run_blocks(blocks, hidden):
        calls.append([block.number for block in blocks])
        return run(blocks, hidden)

    run = block_stack.run_blocks
    monkeypatch.setattr(block_stack, "run_blocks", run_blocks)
    return calls


@torch.inference_mode()
def one_by_one(of, images=IMAGES):
    """Return the logits with every block called: a hook must see each."""
    hooks = [layer.register_forward_hook(lambda *_: None) for layer in of.layers]
    logits = of(images.to(of.head.weight.dtype))
    for hook in hooks:
        hook.remove()
    return logits


@torch.inference_mode()
def twice(of, images=IMAGES):
    """Return the logits of a second call; the first one decides which ops serve."""
    images = images.to(of.head.weight.dtype)
    of(images)
    return of(images)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"bimamba_type": "none"}, {"rms_norm": False, "residual_in_fp32": False}])
def test_the_bits_are_those_of_the_blocks_one_by_one(stacked, dtype, options):
    of = model(dtype, **options)
    expected = one_by_one(of)
    assert not stacked
    assert torch.equal(twice(of), expected)
    assert len(stacked[-1]) == 3


def test_biases_of_projections_and_norms_are_added(stacked):
    of = model(rms_norm=False, ssm_cfg={"bias": True})
    with torch.no_grad():
        for name, parameter in of.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1)
    expected = one_by_one(of)
    assert torch.equal(twice(of), expected)
    assert stacked


@pytest.mark.parametrize(
    "options",
    [
        {"bimamba_type": "v1"},
        {"init_layer_scale": 0.5},
        {"fused_add_norm": False},
        {"if_rope": True},
        {"if_bidirectional": True, "depth": 4},
    ],
)
def test_other_blocks_are_called(stacked, options):
    torch.manual_seed(1)
    of = VisionMamba(**{"img_size": 64, "depth": 3, "embed_dim": 64, "num_classes": 5} | options).eval()
    assert torch.equal(twice(of), one_by_one(of))
    assert not stacked


def test_a_changed_or_replaced_weight_counts(stacked):
    of = model()
    before = twice(of)
    with torch.no_grad():
        of.layers[1].mixer.out_proj.weight.mul_(2)
    changed = twice(of)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, one_by_one(of))
    of.layers[2].norm.weight = torch.nn.Parameter(of.layers[2].norm.weight * 3)
    replaced = twice(of)
    assert not torch.equal(replaced, changed)
    assert torch.equal(replaced, one_by_one(of))
    with torch.no_grad():
        of.layers[0].norm.weight.mul_(0.5)  # read where it is
    assert torch.equal(twice(of), one_by_one(of))
    assert len(stacked) >= 4


def test_a_layer_that_computes_otherwise_is_called(stacked):
    class Halved(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    of = model()
    before = twice(of)
    plain = of.layers[1].mixer.out_proj
    of.layers[1].mixer.out_proj = Halved(plain.in_features, plain.out_features, bias=False)
    of.layers[1].mixer.out_proj.weight = plain.weight
    stacked.clear()
    assert not torch.equal(twice(of), before)
    assert not stacked


@pytest.mark.skipif(mkl.unavailable() is not None, reason="this torch has no MKL")
def test_the_output_projection_by_mkl(stacked):
    of = model()
    with serve_by(native_policy("mkl")):
        expected = one_by_one(of)
        assert torch.equal(twice(of), expected)
    assert stacked


@pytest.mark.parametrize(
    "selection",
    [
        {"mamba_front": "mamba_front_composed"},
        {"linear": "linear_torch"},
        {"linear": "linear_native:threads=1"},
        {"add_norm": "add_norm_torch"},
        {"selective_scan": "chunked"},
    ],
)
def test_blocks_with_another_choice_are_called(stacked, selection):
    of = model()
    with serve_by(Policy.of(dict(native_policy().selections) | selection, others=DEFAULT)):
        assert torch.equal(twice(of), one_by_one(of))
    assert not stacked


def test_a_named_scan_is_called(stacked):
    of = model(scan="chunked")
    assert torch.equal(twice(of), one_by_one(of))
    assert not stacked


def test_gradients_and_training_go_through_the_blocks(stacked):
    of = model()
    twice(of)
    stacked.clear()
    of(IMAGES).sum().backward()
    assert of.layers[0].mixer.in_proj.weight.grad is not None
    of.train()
    with torch.no_grad():
        of(IMAGES)
    assert not stacked


def test_profilers_and_flop_counters_see_every_op():
    of = model()
    twice(of)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        of(IMAGES)
    fronts = [event for event in profile.events() if event.name == "scanlab_mixer::mamba_front"]
    assert len(fronts) == 3
    counts = []
    for _ in range(2):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            of(IMAGES)
        counts.append(counter.get_total_flops())
        twice(of)
    assert counts[0] == counts[1] > 0


def test_threads_of_one_process_get_the_same_bits():
    of = model()
    expected = twice(of)
    found = {}

    def call(thread):
        with torch.inference_mode(), serve_by(native_policy()):
            found[thread] = [of(IMAGES) for _ in range(5)]

    threads = [threading.Thread(target=call, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(logits, expected) for each in found.values() for logits in each)


def test_the_default_device_is_not_used(stacked):
    of = model()
    expected = twice(of)
    stacked.clear()
    with torch.device("meta"):
        assert torch.equal(twice(of), expected)
    assert stacked


# The bound blocks hold the last references to tensors that Python finalises, while the main thread forks.
FORKS_DURING_RELEASES = """
import os, threading, time
import torch
from scanlab_kernels.cpu import extension

class Finalised(torch.Tensor):
    def __del__(self):
        time.sleep(0.0005)

def bind():
    norm = torch.zeros(4).as_subclass(Finalised)
    other = torch.zeros(4)
    front = [other, None, other] + [None] * 9 + [1, 3]
    out = [other, None, None, 4, 0]
    return torch.ops.scanlab_mixer.bind_block(
        norm, None, 1e-5, False, True, *front, other, *[None] * 5, *out, -1, 1, 1, 1, 0, 0
    )

def bind_and_release():
    while not over:
        for number in [bind() for _ in range(20)]:
            torch.ops.scanlab_mixer.release_block(number)

extension.load()
torch.set_num_threads(1)
over = False
threads = [threading.Thread(target=bind_and_release) for _ in range(3)]
for thread in threads:
    thread.start()
ends = []
for _ in range(50):
    time.sleep(0.003)
    child = os.fork()
    if child == 0:
        os._exit(0)
    ends.append(os.waitpid(child, 0)[1])
over = True
for thread in threads:
    thread.join()
print(ends)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forks")
def test_a_process_may_fork_while_blocks_are_released():
    words = [sys.executable, "-W", "ignore", "-c", FORKS_DURING_RELEASES]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == f"{[0] * 50}\n"


def test_a_block_is_released_with_its_weights(stacked):
    of = model()
    twice(of)
    (numbers,) = {tuple(call) for call in stacked}
    hidden = torch.randn(1, 17, 64)
    with torch.inference_mode():
        torch.ops.scanlab_mixer.run_blocks(torch.tensor(numbers, dtype=torch.int32), hidden, None)
        del of
        with pytest.raises(IndexError, match=f"block {numbers[0]} is not bound"):
            torch.ops.scanlab_mixer.run_blocks(torch.tensor(numbers, dtype=torch.int32), hidden, None)


@pytest.mark.parametrize(
    "numbers", [torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2), torch.zeros(4, dtype=torch.int32)[::2]]
)
def test_other_numbers_than_a_dense_row_are_refused(numbers):
    extension.load()
    with torch.inference_mode(), pytest.raises(ValueError, match="the numbers of the blocks must be int32"):
        torch.ops.scanlab_mixer.run_blocks(numbers, torch.randn(1, 5, 64), None)


def test_a_block_has_no_gradient():
    of = model()
    twice(of)
    hidden = torch.randn(1, 17, 64, requires_grad=True)
    out, _ = torch.ops.scanlab_mixer.run_blocks(torch.tensor([], dtype=torch.int32), hidden, hidden)
    with pytest.raises(NotImplementedError, match="has no derivative"):
        out.sum().backward()
