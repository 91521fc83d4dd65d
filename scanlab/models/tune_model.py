"""From a model to its deployment: tune the problem of every op that it calls, then choose among whole models.

1. Run the model once on its input, and list the problems of its ops with their calls and times.
2. Tune each, with time in proportion to the possible gain by its roofline.
3. Put the winners into a profile of their own, and tune the model as one op, see `model_op`: each op by its winner
   or by its default, in each dtype that is exact enough. That comparison decides the deployment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from scanlab import settings
from scanlab.bench.context import Candidate
from scanlab.bench.objective import Objective
from scanlab.bench.records import Trial
from scanlab.bench.roofline import roofline_here
from scanlab.bench.store import TrialStore
from scanlab.contract import registry
from scanlab.contract.backend import restricted
from scanlab.contract.base import Problem
from scanlab.contract.verify import relative_error
from scanlab.errors import InputError, ProfileError
from scanlab.models.model_op import DTYPES, NONE, ModelProblem, forward, make_inputs, op_problems, subsets, tuned_ops
from scanlab.runtime.decisions import decide
from scanlab.runtime.policy import DEFAULT, Policy
from scanlab.runtime.profile import Profile, ProfileEntry, profile_path
from scanlab.tuning.result import Event, TuningResult
from scanlab.tuning.scheduler import Budget
from scanlab.tuning.selection import deployed_candidate, untuned_candidate
from scanlab.tuning.tune import tune

# Shares of the budget for the ops and for the comparison of whole models.
OPS_SHARE = 0.6
# Smallest share of a forward pass that a tuning may save, and shortest time of a tuning.
MIN_SAVING = 0.02
MIN_OP_S = 8.0
# Forward passes by which the times of ops are known before anything is tuned.
PASSES = 5
# Inputs on which the classes of a dtype are compared with those of float64.
AGREEMENT_SEEDS = range(8)
PRODUCTS_BY_TORCH = {"mamba_front": "mamba_front_composed", "linear": "linear_torch"}
# Lines of a program by which its model runs as one of DTYPES that is not its own.
APPLIED_BY = {
    "bfloat16": "from scanlab.models.model_op import cast; cast(model, torch.bfloat16)",
    "bfloat16_products": 'torch.backends.mkldnn.matmul.fp32_precision = "bf16"',
}
# Digits of the trained model that every Vision Mamba is judged by too; its classes are those of real training.
DIGITS = ModelProblem(model="digits", batch=360, size=8)


@dataclass(frozen=True)
class OpShare:
    """Problem of an op in one forward pass of a model.

    Attributes:
        calls: Calls in one forward pass.
        call_s: Time of one call, as served untuned.
        attainable_s: Time of a kernel that wastes nothing.
        dtypes: Dtypes of the model in which it is called.
    """

    problem: Problem
    calls: int
    call_s: float
    attainable_s: float
    dtypes: tuple[str, ...]

    @property
    def saving_s(self) -> float:
        """Largest time that tuning can save in one forward pass."""
        return self.calls * max(0.0, self.call_s - self.attainable_s)


@dataclass(frozen=True)
class DtypeCost:
    """Accuracy of a model in a dtype, compared with float64.

    Attributes:
        logit_error: Largest error of a logit, as a share of the largest logit.
        agreement: Share of the first classes that are the same.
        digits_agreement: The same for the trained digits model; None where the model is no Vision Mamba. It decides
            instead of `agreement`: classes of untrained weights lie too close together to tell.
    """

    dtype: str
    logit_error: float
    agreement: float
    digits_agreement: float | None

    def refusal(self, max_logit_error: float, min_agreement: float) -> str | None:
        """Return why the dtype is not exact enough, or None."""
        if not self.logit_error <= max_logit_error:
            return f"{self.dtype}: a logit is off by {self.logit_error:.1e}; {max_logit_error:.1e} is allowed"
        noun, share = "digits", self.digits_agreement
        if share is None:
            noun, share = "first classes", self.agreement
        if not share >= min_agreement:
            return f"{self.dtype}: {share:.1%} of the {noun} are the same; {min_agreement:.1%} is asked"
        return None


@dataclass
class ModelTuning:
    """Outcome of tuning a model.

    Attributes:
        shares: Every op problem, the one that takes longest first.
        costs: Accuracy by dtype.
        refused: Why dtypes that are not exact enough take no part, by dtype.
        ops: Results of those problems that were tuned.
        whole: Result for the model as one op; None where it was not reached.
        products_s: Time of the matrix products of one forward pass in the chosen dtype, as torch computes them.
        notices: Skipped problems, with reasons.
        interrupted: Whether a person stopped it.
    """

    problem: ModelProblem
    shares: tuple[OpShare, ...] = ()
    costs: tuple[DtypeCost, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    ops: list[TuningResult] = field(default_factory=list)
    whole: TuningResult | None = None
    products_s: float | None = None
    notices: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of the model before and after tuning."""
        first = self.costs[0].dtype
        winner = self.whole.winner if self.whole is not None else None
        return first, first if winner is None else str(winner.config["dtype"])

    @property
    def entries(self) -> list[ProfileEntry]:
        """Entries to deploy: the model's choice, and the winners of its ops."""
        if self.whole is None or self.whole.winner is None:
            return []
        chosen = _tuned_ops(self.whole.winner)
        winners = [found for found in self.ops if found.problem.op in chosen]
        return [found.entry for found in (*winners, self.whole) if found.entry is not None]


def tune_model(
    problem: ModelProblem,
    budget_s: float,
    store: TrialStore,
    *,
    dtypes: Sequence[str] = ("float32",),
    min_agreement: float = 0.0,
    objective: Objective = "median",
    seed: int = 0,
    on_event: Callable[[Event], None] = lambda event: None,
    on_step: Callable[[str], None] = lambda text: None,
    tune: Callable[..., TuningResult] = tune,
) -> ModelTuning:
    """Tune the ops of a model and the model itself; an interruption returns what was finished by then.

    Args:
        problem: The model and its input.
        budget_s: Seconds of measuring, for everything together.
        store: Takes the records.
        dtypes: Dtypes of DTYPES to choose among, the default first.
        min_agreement: Share of first classes that a dtype must keep.
        objective: The time that candidates are ranked by.
        seed: Seed of the inputs of the ops, of the searches, and of the order of samples.
        on_event: Takes the events of each tuning.
        on_step: Takes a line for each part that begins.
        tune: Tunes one op.

    Raises:
        InputError: No dtype is exact enough, or the model calls no op of scanlab.
    """
    if not dtypes or not set(dtypes) <= set(DTYPES):
        raise InputError(f"dtypes {', '.join(dtypes)}: must be of {', '.join(DTYPES)}.")
    result = ModelTuning(problem)
    staged = store.folder / "model-profile.json"
    try:
        on_step("running the model")
        with _served_without_profile(staged):
            result.shares = op_shares(problem, dtypes)
        if roofline_here().disturbed is not None:
            result.notices.append(
                "the attainable times are too long: other work ran while the limits of this machine were measured"
            )
        if not result.shares:
            raise InputError(
                f"{problem.model} calls no op of scanlab: let it import mamba_ssm or scanlab, or patch() it."
            )
        on_step("comparing dtypes with float64")
        # The share of the same first classes needs several inputs; where none is asked for, one input has the error.
        seeds = AGREEMENT_SEEDS if len(dtypes) > 1 or min_agreement > 0 else AGREEMENT_SEEDS[:1]
        with _served_without_profile(staged):
            result.costs = dtype_costs(problem, dtypes, seeds)
        refusals = {cost.dtype: cost.refusal(problem.max_logit_error, min_agreement) for cost in result.costs}
        result.refused = {dtype: reason for dtype, reason in refusals.items() if reason is not None}
        result.notices += result.refused.values()
        exact = [dtype for dtype in dtypes if dtype not in result.refused]
        if not exact:
            raise InputError(f"{'; '.join(result.notices)}. Allow more with --max-logit-error or --min-agreement.")
        possible = [share for share in result.shares if set(share.dtypes) & set(exact)]
        for share, seconds in budgets(possible, OPS_SHARE * budget_s).items():
            on_step(f"{share.problem.op} {share.problem.key}: {share.calls} calls of {1e6 * share.call_s:.0f} us")
            made = registry.op(share.problem.op).make_inputs(share.problem, seed)
            backends, _ = registry.load_all(share.problem.op)
            found = tune(
                share.problem,
                made,
                backends,
                Budget(seconds),
                store,
                inputs_label=f"drawn, seed {seed}",
                untuned=untuned_candidate(share.problem),
                deployed=deployed_candidate(share.problem),
                objective=objective,
                seed=seed,
                on_event=on_event,
            )
            result.ops.append(found)
            if found.interrupted:
                raise KeyboardInterrupt
        on_step(f"whole models of {problem.key}")
        profile, refused_profile = staging_profile(result.ops)
        profile.save(staged)
        result.notices += refused_profile
        changed = {found.problem.op for found in result.ops if found.winner is not None and found.gain is not None}
        assembly = restricted(registry.get("assembly"), "dtype", exact, exact[0])
        assembly = restricted(assembly, "tuned", subsets(sorted(changed)), NONE)
        in_torch = restricted(registry.get("model_in_torch"), "dtype", exact, exact[0])
        with _profile_at(staged):
            result.whole = tune(
                problem,
                make_inputs(problem, 0),
                (restricted(in_torch, "scan", ("chunked",), "chunked"), assembly),
                Budget((1 - OPS_SHARE) * budget_s),
                store,
                inputs_label=f"the input of {problem.model}",
                untuned=Candidate(assembly, assembly.space.defaults),
                objective=objective,
                seed=seed,
                on_event=on_event,
            )
            result.interrupted = result.whole.interrupted
            if result.whole.winner is not None:
                notices = (*result.whole.notices, _applied_by(result.whole.winner))
                result.whole = replace(result.whole, notices=notices)
            result.products_s = products_s(problem, result.dtypes[1])
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _applied_by(winner: Trial) -> str:
    """Return in a sentence how a program runs its model as `winner` did."""
    if winner.backend != "assembly":
        return f"to run it as {winner.label}, leave the model in PyTorch: no choice of scanlab is faster here"
    ops = "the profile serves its ops"
    dtype = str(winner.config["dtype"])
    line = APPLIED_BY.get(dtype)
    return ops if line is None else f"{ops}, and the program has to choose {dtype}: {line}"


def products_s(problem: ModelProblem, dtype: str) -> float | None:
    """Return the time of the matrix products of one forward pass, as torch computes them; None where there are none."""
    found = op_problems(problem, make_inputs(problem, 0), dtype, PASSES, PRODUCTS_BY_TORCH)
    seconds = [seconds for each, (_, seconds) in found.items() if each.op == "linear"]
    return sum(seconds) if seconds else None


def op_shares(problem: ModelProblem, dtypes: Sequence[str]) -> tuple[OpShare, ...]:
    """Return the op problems of one forward pass in each of `dtypes`, the one that takes longest first."""
    found: dict[Problem, OpShare] = {}
    roofline, threads = roofline_here(), torch.get_num_threads()
    for dtype in dtypes:
        for each, (calls, seconds) in op_problems(problem, make_inputs(problem, 0), dtype, PASSES).items():
            before = found.get(each)
            if before is None:
                attainable_s = roofline.attainable_s(each, threads)
                found[each] = OpShare(each, calls, seconds / calls, attainable_s, (dtype,))
            else:
                found[each] = replace(before, dtypes=(*before.dtypes, dtype))
    return tuple(sorted(found.values(), key=lambda share: share.calls * share.call_s, reverse=True))


def budgets(shares: Sequence[OpShare], seconds: float) -> Mapping[OpShare, float]:
    """Return the seconds for each problem that is worth tuning, in proportion to the possible gain, largest first."""
    whole_s = sum(share.calls * share.call_s for share in shares)
    worth = [share for share in shares if share.saving_s > MIN_SAVING * whole_s]
    worth.sort(key=lambda share: share.saving_s, reverse=True)
    worth = worth[: max(1, int(seconds / MIN_OP_S))]
    saved_s = sum(share.saving_s for share in worth)
    spare_s = max(0.0, seconds - MIN_OP_S * len(worth))
    return {share: MIN_OP_S + spare_s * share.saving_s / saved_s for share in worth}


def dtype_costs(problem: ModelProblem, dtypes: Sequence[str], seeds: Sequence[int]) -> tuple[DtypeCost, ...]:
    """Return the accuracy of the model in each dtype, served by its defaults, on its input and inputs like it.

    Args:
        problem: Problem of the model.
        dtypes: Dtypes of DTYPES to judge.
        seeds: Seeds of the inputs; 0 is the model's own input.
    """
    own = _against_float64(problem, dtypes, seeds)
    digits = _against_float64(DIGITS, dtypes, (0,)) if problem.model.startswith("vim-") else None
    return tuple(DtypeCost(each, *own[each], None if digits is None else digits[each][1]) for each in dtypes)


def _against_float64(
    problem: ModelProblem, dtypes: Sequence[str], seeds: Sequence[int]
) -> Mapping[str, tuple[float, float]]:
    """Return, by dtype, the largest error of a logit and the share of first classes that are the same."""
    policy = Policy(others=DEFAULT)
    exact = forward(problem, "float64", policy)
    errors: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    same: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for seed in seeds:
        (inputs,) = make_inputs(problem, seed)
        truth = exact(inputs).logits
        for dtype in dtypes:
            logits = forward(problem, dtype, policy)(inputs).logits
            errors[dtype].append(relative_error(logits, truth))
            same[dtype].append((logits.argmax(-1) == truth.argmax(-1)).double().mean().item())
    return {dtype: (max(errors[dtype]), sum(same[dtype]) / len(seeds)) for dtype in dtypes}


def staging_profile(found: Sequence[TuningResult]) -> tuple[Profile, list[str]]:
    """Return this machine's profile with the winners of `found` in it, and a notice where it cannot be read."""
    path, notices = profile_path(), []
    try:
        profile = Profile.load(path) if path.exists() else Profile.empty()
    except (OSError, ProfileError) as error:
        profile, notices = Profile.empty(), [f"whole models were compared without the profile: {error}"]
    for each in found:
        if each.entry is not None:
            profile = profile.with_entry(each.entry)
    return profile, notices


@contextmanager
def _served_without_profile(staged: Path) -> Iterator[None]:
    """Let an empty profile at `staged` serve inside this block where the one that is named is yet to be written."""
    if settings.PROFILE.get() is None or profile_path().exists():
        yield
        return
    Profile.empty().save(staged)
    with _profile_at(staged):
        yield


@contextmanager
def _profile_at(path: Path) -> Iterator[None]:
    """Let everything that reads its profile inside this block, worker processes too, read the one at `path`."""
    before = os.environ.get(settings.PROFILE.name)
    os.environ[settings.PROFILE.name] = os.path.realpath(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[settings.PROFILE.name]
        else:
            os.environ[settings.PROFILE.name] = before


def op_times_ms(result: ModelTuning) -> list[tuple[OpShare, float, float]]:
    """Return each op problem with the milliseconds of all its calls in one forward pass, before and after tuning.

    A tuned problem has the medians of its own comparison; any other keeps the time of the first run. A problem that
    the model has in one of the two dtypes alone takes no time in the other.
    """
    tuned = {found.problem: found for found in result.ops}
    shares = [share for share in result.shares if not _is_counted_by_its_parts(share.problem)]
    winner = result.whole.winner if result.whole else None
    chosen = _tuned_ops(winner) if winner else ()
    rows = []
    for share in shares:
        before_ms = after_ms = 1e3 * share.call_s
        found = tuned.get(share.problem)
        if found is not None and found.comparison is not None and found.winner is not None:
            by_default = [each.trial for each in found.comparison.ranking if each.is_untuned]
            before_ms = _median_ms(by_default[0]) if by_default else before_ms
            after_ms = _median_ms(found.winner) if share.problem.op in chosen else before_ms
        first, last = result.dtypes
        rows.append(
            (share, share.calls * before_ms * (first in share.dtypes), share.calls * after_ms * (last in share.dtypes))
        )
    return [row for row in rows if row[1] or row[2]]


def _is_counted_by_its_parts(problem: Problem) -> bool:
    """Return whether the backend of a problem calls ops that are listed themselves, as a composed front does."""
    return decide(problem, None).backend.endswith("_composed")


def _tuned_ops(winner: Trial) -> tuple[str, ...]:
    return tuned_ops(winner.config) if winner.backend == "assembly" else ()


def _median_ms(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.median_ms
