"""Tracing with the native scan: which configuration is frozen in, and what there is to say where it cannot be."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys

import pytest
import torch

from helpers.tiny_vim import trained_tiny_vim
from scanlab.contract import registry
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.contract.space import Config
from scanlab.errors import UnavailableError
from scanlab.export.aoti import FrozenScan, write_package
from scanlab.runtime.profile import Profile, ProfileEntry

IMAGES = torch.zeros(1, 3, 32, 32)
PROBLEM = ScanProblem(batch=1, dim=64, length=17, direction="bidirectional", layout="dim_last")
CONFIG: Config = {"threads": 1, "time_block": 32, "channel_tile": 16, "time_chunks": 1, "exp": "fast"}


@pytest.fixture
def native():
    backend = registry.get("native")
    if backend.unavailable() is not None:
        pytest.skip(backend.unavailable())
    return backend


def test_the_profile_is_frozen_into_the_graph(native):
    profile = Profile.empty().with_entry(ProfileEntry(PROBLEM, "native", native.source_hash, CONFIG))
    scan = FrozenScan(profile)
    model = copy.copy(trained_tiny_vim())
    model.scan = scan
    with torch.no_grad():
        program = torch.export.export(model, (IMAGES,), strict=False)
    (node,) = (node for node in program.graph.nodes if node.target is torch.ops.scanlab.scan.default)
    softplus, reverse, threads, time_block, channel_tile, time_chunks, exp, _ = node.args[-8:]
    assert (softplus, reverse, threads, time_block, channel_tile, time_chunks, exp) == (True, False, 1, 32, 16, 1, 0)
    assert scan.decided[PROBLEM].basis == "exact"


def test_a_profile_that_prefers_another_backend_still_gives_the_native_scan(native):
    reference = registry.get("reference")
    profile = Profile.empty().with_entry(
        ProfileEntry(PROBLEM, "reference", reference.source_hash, reference.space.defaults)
    )
    scan = FrozenScan(profile)
    inputs = make_inputs(PROBLEM)
    out = scan(*inputs, direction="bidirectional").out
    expected = reference.build(PROBLEM)(*inputs).out
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert scan.decided[PROBLEM].backend == "native"


def test_without_the_native_scan_there_is_a_reason(tmp_path):
    code = """
from scanlab.contract.problem import ScanProblem, make_inputs
from scanlab.export.aoti import FrozenScan
problem = ScanProblem(batch=1, dim=8, length=5, direction="bidirectional")
try:
    FrozenScan(None)(*make_inputs(problem), direction="bidirectional")
except Exception as error:
    print(type(error).__name__, error)
"""
    surroundings = os.environ | {"CXX": "no-such-compiler", "SCANLAB_CACHE": str(tmp_path)}
    # a process of its own: a library that is loaded serves whatever became of its compiler
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    said = r"UnavailableError .*holds the native scan.*no-such-compiler.*install a C\+\+20 compiler"
    assert re.match(said, done.stdout.replace("\n", " ")), done.stdout + done.stderr


def test_without_a_compiler_for_the_package_there_is_a_cure(native, tmp_path):
    from torch._inductor import config

    with (
        config.patch("cpp.cxx", ("no-such-compiler",)),
        pytest.raises(UnavailableError, match="cannot compile here.*CXX; loading a package needs none"),
    ):
        write_package(trained_tiny_vim(), IMAGES, FrozenScan(None), tmp_path / "model.pt2")
