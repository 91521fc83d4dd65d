"""The scan of Hugging Face transformers where its fast path is not available: a loop over time in PyTorch."""

from collections.abc import Callable

from scanlab.contract.cpu import pinned, threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config
from scanlab.errors import UnavailableError
from scanlab_peers.peer import peer, without_groups


def make(problem: ScanProblem, config: Config) -> Callable[[ScanInputs], ScanOutput]:
    """Return the forward scan; raises UnavailableError where this transformers has it inside of its mixer only."""
    from transformers.models.mamba import modeling_mamba

    slow = getattr(modeling_mamba, "mamba_selective_scan", None)
    if slow is None:
        raise UnavailableError("transformers has no mamba_selective_scan: install transformers>=5.10.")

    def scan(inputs: ScanInputs) -> ScanOutput:
        u, delta, A, B, C, D, z, bias, _ = inputs
        B, C = without_groups(B), without_groups(C)
        softplus = problem.delta_softplus
        return ScanOutput(*slow(u, delta, A, B, C, D, z, bias, delta_softplus=softplus, return_last_state=True))

    return pinned(scan, int(config["threads"]))


backend = peer("transformers", "transformers: its slow path", 102, __file__, ("transformers",), make, threads_tunable())
