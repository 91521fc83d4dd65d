"""Selection after the search: the candidates that are compared, and the hold-out comparison.

The fastest of many noisy measurements is faster in them than it really is (selection bias). The hold-out comparison, on
fresh inputs in fresh processes, is free of that bias: its numbers are those that are published and deployed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scanlab.bench.compare import MIN_ROUNDS, Comparer
from scanlab.bench.context import Candidate
from scanlab.bench.objective import Objective, level
from scanlab.bench.ranking import Comparison, beats, choose, places
from scanlab.bench.records import Trial, error_of
from scanlab.bench.samples import Measurement
from scanlab.bench.timing import block_s
from scanlab.contract import registry
from scanlab.contract.base import Problem
from scanlab.errors import ProfileError, UnavailableError
from scanlab.runtime.decisions import decide, refuses
from scanlab.runtime.profile import Profile, profile_path
from scanlab.tuning.search import Search, upper_end

# A search takes few blocks, so that its leader may have been lucky: candidates that may lie within this of the leader
# are compared too, up to so many candidates.
NEAR = math.log(1.15)
MAX_CANDIDATES = 12
# Rounds that show a small difference: no more candidates are compared than fit into the time so often.
WANTED_ROUNDS = 12
# Of the leader's backend, and of every other one within reach.
MIN_OF_LEADER = 3
MIN_OF_OTHERS = 2

MAX_PROCESSES = 5
# Calls that it takes to verify and calibrate a candidate, and those that it takes to compare it.
PREPARE_CALLS = 7
COMPARISON_CALLS = PREPARE_CALLS + MIN_ROUNDS


@dataclass(frozen=True)
class Finalists:
    """Candidates of a comparison, with the time of preparing each in a fresh process, and notices of those left out."""

    prepare_s: dict[Candidate, float]
    notices: tuple[str, ...] = ()

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates, the defaults first."""
        return list(self.prepare_s)


def untuned_candidate(problem: Problem) -> Candidate | None:
    """Return the candidate that serves `problem` where nothing was tuned, or None."""
    try:
        decision = decide(problem, None)
    except UnavailableError:
        return None
    return Candidate.of(registry.get(decision.backend), decision.config, problem)


def deployed_candidate(problem: Problem) -> Candidate | None:
    """Return the entry of this machine's profile for exactly `problem`; None if it has none that can serve."""
    path = profile_path()
    try:
        entry = Profile.load(path).exact(problem) if path.exists() else None
    except (OSError, ProfileError):  # deployment moves it aside, with a notice, or cannot write there
        return None
    if entry is None or refuses(entry.backend, entry.config, problem) is not None:
        return None
    return Candidate.of(registry.get(entry.backend), entry.config, problem)


def finalists(
    searches: Sequence[Search], kept: Sequence[Candidate], available_s: float, objective: Objective = "median"
) -> Finalists:
    """Return the candidates of the comparison after the search.

    Those of `kept` always are: the untuned and the deployed choice. So are the best three of the fastest backend
    and its defaults, and the best two of every other one within reach. As many as the time allows are added of those
    that may be as fast as the fastest, and the best of each backend that is far behind. Candidates are ordered by the
    pessimistic end of their intervals. A search goes by the median: for another objective, the best three by that one
    are compared too.
    """
    found = [search for search in searches if search.eligible]
    if not found:
        return Finalists(dict.fromkeys(kept, 0.0))
    leader = min(found, key=lambda search: search.best_upper_end)
    limit = leader.best_upper_end + NEAR
    chosen: dict[Candidate, float] = dict.fromkeys(kept, 0.0)
    near: list[tuple[Search, Trial]] = []
    far: list[tuple[Search, Trial]] = []
    for search in found:
        own = search.eligible
        within = [trial for trial in own if _lower_end(trial) <= limit]
        few = own[:MIN_OF_LEADER] if search is leader else within[:MIN_OF_OTHERS]
        if search is leader:
            few += [trial for trial in own if search.candidate(trial.config).is_default]
        chosen |= {search.candidate(trial.config): _prepare_s(search, trial) for trial in few}
        near += [(search, trial) for trial in within]
        far += [(search, own[0])] if not within else []
    if objective != "median":
        every = [(search, trial) for search in found for trial in search.eligible]
        every.sort(key=lambda each: level(_measurement(each[1]).blocks, objective).value)
        chosen |= {search.candidate(trial.config): _prepare_s(search, trial) for search, trial in every[:MIN_OF_LEADER]}
    near = [each for each in near if each[0].candidate(each[1].config) not in chosen]
    near = sorted(near, key=_upper_end)[: max(0, MAX_CANDIDATES - len(chosen) - len(far))]
    usual_s = _block_s(leader.eligible[0])
    # Beside the candidates a round has the baseline, the reference and one candidate for a second time.
    left_s = available_s / WANTED_ROUNDS - (len(chosen) + 3) * usual_s
    skipped: list[str] = []
    for search, trial in (*near, *sorted(far, key=_upper_end)):
        own_s = min(_block_s(trial), 4 * usual_s)  # those that take longer take part in fewer rounds
        if own_s > left_s or COMPARISON_CALLS * _call_s(trial) > available_s / len(found):
            skipped.append(search.backend.name)
            continue
        left_s -= own_s
        chosen[search.candidate(trial.config)] = _prepare_s(search, trial)
    names = ", ".join(name if count == 1 else f"{name} ({count})" for name, count in Counter(skipped).items())
    notice = f"{names}: no time to compare these too; the numbers are those of the search"
    return Finalists(chosen, (notice,) if skipped else ())


def hold_out(
    compared: Comparison,
    comparer: Comparer,
    searches: Sequence[Search],
    kept: Sequence[Candidate],
    baseline: Candidate,
    deadline: float,
) -> Comparison | str:
    """Compare the winner and the best of every backend on fresh inputs in fresh processes.

    Those of `kept` take part too, the untuned choice first. The winner of `compared` is confirmed or demoted.
    Backends that take too long to build for the time are left out.

    Returns:
        The hold-out comparison, or why there was none.
    """
    if not comparer.worker.isolated:
        return "there are no fresh processes for backends that are not installed"
    by_name = {search.backend.name: search for search in searches}
    untuned = kept[0]
    prepare_s = dict.fromkeys(kept, 0.0)
    for each in compared.ranking:
        search = by_name.get(each.trial.backend)
        if search is not None and (each is compared.winner or each.trial.backend not in _names(prepare_s)):
            prepare_s[search.candidate(each.trial.config)] = _prepare_s(search, each.trial)
    winner = compared.winner
    left_out: list[str] = []
    available_s = deadline - comparer.clock.now()
    while not (processes := fresh_processes(comparer.worker.start_s, prepare_s.values(), available_s)):
        others = [each for each in prepare_s if each != untuned and winner and each.label != winner.trial.label]
        if not others:
            return "there was no time to start fresh processes; give it a larger budget"
        slowest = max(others, key=lambda candidate: prepare_s[candidate])
        left_out.append(
            f"{slowest.backend.name} takes {prepare_s.pop(slowest):.0f} s to build and verify: its numbers stay those"
            " of the comparison"
        )
    context = comparer.context.with_fresh_inputs()
    comparer.worker.restart(context)
    held = replace(comparer, context=context).compare(
        list(prepare_s),
        deadline,
        phase="holdout",
        baseline=baseline if baseline in prepare_s else None,
        untuned=untuned,
        processes=processes,
    )
    return replace(confirmed(held, compared), notices=(*left_out, *held.notices))


def confirmed(held: Comparison, compared: Comparison) -> Comparison:
    """Return `held` led by the winner of `compared`, unless it shows another to be faster; then it says so."""
    if compared.winner is None or held.winner is None:
        return held
    chosen = compared.winner.trial
    own = next((each for each in held.ranking if each.trial.label == chosen.label), None)
    if own is held.winner:
        return held
    untuned = next((each for each in held.ranking if each.is_untuned), None)
    if (
        own is not None
        and own.place.tied
        and not held.winner.is_untuned
        and (untuned is None or beats(own, untuned, held.noise_floor, held.processes, held.objective))
    ):
        return replace(held.led_by(own), confirms=True)
    reason = "failed there" if own is None else "is not shown to be faster there"
    notice = f"{chosen.label} won the comparison and {reason}: the hold-out names {held.winner.trial.label} instead"
    return replace(held, notices=(*held.notices, notice))


def exact_enough(compared: Comparison, max_error: float) -> Comparison:
    """Return `compared` with the best winner whose error is at most `max_error`."""
    if compared.winner is None or error_of(compared.winner.trial) <= max_error:
        return compared
    able = [each for each in compared.ranking if error_of(each.trial) <= max_error]
    # Places among themselves: the fastest of all may be one that is not exact enough.
    found = places([_measurement(each.trial).blocks for each in able], compared.noise_floor, compared.objective)
    able = [replace(each, place=place) for each, place in zip(able, found, strict=True)]
    winner = choose(able, compared.noise_floor, compared.processes, compared.objective)
    others = ", ".join(each.trial.label for each in compared.ranking if error_of(each.trial) > max_error)
    notice = f"{others}: not exact enough for an error of {max_error:.2g}"
    return replace(compared, ranking=tuple(able), notices=(*compared.notices, notice)).led_by(winner)


def fresh_processes(start_s: float, prepare_s: Iterable[float], available_s: float) -> int:
    """Return how many fresh processes fit into the time, each spending no more than half of its share on starting."""
    return max(0, min(MAX_PROCESSES, int(available_s / (2 * (start_s + sum(prepare_s))))))


def _measurement(trial: Trial) -> Measurement:
    assert trial.measurement is not None
    return trial.measurement


def _lower_end(trial: Trial) -> float:
    return _measurement(trial).baseline_interval.low


def _call_s(trial: Trial) -> float:
    return _measurement(trial).median_ms / 1e3


def _upper_end(found: tuple[Search, Trial]) -> float:
    return upper_end(found[1])


def _block_s(trial: Trial) -> float:
    """Return the time that the samples of one block take."""
    measurement = _measurement(trial)
    return block_s(measurement.calls, len(measurement.blocks[0].candidate_ns), _call_s(trial))


def _prepare_s(search: Search, trial: Trial) -> float:
    """Return the time that building and verifying takes in a fresh process."""
    return search.rebuild_s + PREPARE_CALLS * _call_s(trial)


def _names(candidates: Iterable[Candidate]) -> set[str]:
    return {each.backend.name for each in candidates}
