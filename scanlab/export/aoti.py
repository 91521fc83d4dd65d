"""Export of a model to an AOTInductor package: compiled on this machine, loaded elsewhere by torch alone.

The graph calls the native ops by name, so their libraries are loaded before the package.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scanlab.contract import registry
from scanlab.contract.problem import Direction, ScanInputs, ScanOutput, ScanProblem
from scanlab.errors import UnavailableError
from scanlab.models.vision_mamba import VisionMamba
from scanlab.runtime.decisions import Decision, decisions, refuses
from scanlab.runtime.profile import Profile
from scanlab_kernels.torch_compiler import PRECOMPILED_HEADERS_OF_PACKAGES, private_cache

BACKEND = "native"  # whose scan is a torch op that a library registers without Python
LIBRARIES: Mapping[str, str] = {"scanlab": "native", "scanlab_mixer": "mixer"}  # the library of each namespace of ops


class FrozenScan:
    """A Scan to trace models with: the native op, in the best configuration this machine has for it, as constants.

    `decided` holds every problem seen so far and the decision that serves it.
    """

    def __init__(self, profile: Profile | None) -> None:
        self._profile = profile
        self.decided: dict[ScanProblem, Decision] = {}

    def __call__(
        self, *inputs: ScanInputs, delta_softplus: bool = True, direction: Direction = "forward"
    ) -> ScanOutput:
        """Return the scan of these tensors.

        Raises:
            UnavailableError: The native op cannot serve them.
        """
        problem = ScanProblem.of(*inputs, delta_softplus=delta_softplus, direction=direction)
        if problem not in self.decided:
            self.decided[problem] = self._decide(problem)
        output: ScanOutput = registry.get(BACKEND).build(problem, self.decided[problem].config)(*inputs)
        return output

    def _decide(self, problem: ScanProblem) -> Decision:
        for decision in decisions(problem, self._profile):
            if decision.backend == BACKEND:
                return decision
        raise UnavailableError(
            f"a package holds the native scan, which cannot serve {problem.key}: {refuses(BACKEND, {}, problem)}"
        )


@torch.no_grad()
def write_package(model: VisionMamba, images: Tensor, scan: FrozenScan, path: Path) -> tuple[Path, ...]:
    """Compile `model` for inputs of the shape of `images` into the package `path`, for processors like this machine's.

    Returns:
        The libraries that define the ops that the package calls.

    Raises:
        UnavailableError: No C++ compiler works on this machine.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    traced = copy.copy(model)
    traced.scan = scan
    program = torch.export.export(traced, (images,), strict=False)
    try:
        with private_cache():
            options = {PRECOMPILED_HEADERS_OF_PACKAGES: False}
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except (InvalidCxxCompiler, CppCompileError, InductorError) as error:
        cause = error.inner_exception if isinstance(error, InductorError) else error
        if not isinstance(cause, (InvalidCxxCompiler, CppCompileError)):
            raise
        raise UnavailableError(
            f"AOTInductor cannot compile here: {str(cause).strip()}. Install a C++ compiler (on Debian and Ubuntu"
            " `apt install g++`) or name one in the environment variable CXX; loading a package needs none."
        ) from error
    ops = {node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    needed = {LIBRARIES[op.namespace] for op in ops if op.namespace in LIBRARIES}
    loaded = sorted(Path(library) for library in torch.ops.loaded_libraries)
    return tuple(library for library in loaded if library.name.partition("-")[0] in needed)
