"""The search of one backend's space: an Optuna study, rebuilt from the records. The only file that imports optuna.

The records are the truth. A study holds nothing that could not be told to it again, so that a storage that is
lost or damaged costs nothing but its history of attempts that a crash cut short.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BruteForceSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import BaseJournalFileLock  # not exported, though JournalFileBackend takes one
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from scanlab.backend import Backend
from scanlab.errors import ResultsError
from scanlab.lab import owner
from scanlab.lab.prove import Proven, Setting
from scanlab.lab.results import Trial
from scanlab.space import Config, Value, config_key

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Up to this many legal configurations a search may try every one of them, where there is time for that.
EXHAUSTIVE_SIZE = 256
# A search that proposes only what it has tried, so many times in a row, has nothing left to say.
MOST_REPEATS = 40
# Fewer timed configurations than this say nothing about which tunable matters.
FEWEST_FOR_IMPORTANCE = 6
# A configuration during which a process has died this often is taken to be the cause.
MOST_DEATHS = 3


class Search:
    """The search of one backend's space for the fastest configuration in one setting.

    best       the fastest trial so far whose error is at most `max_error`
    best_scan  its scan, where this process built it
    lethal     configurations during which a process died too often
    """

    def __init__(
        self,
        backend: Backend,
        setting: Setting,
        anchor: Proven,
        recorded: Sequence[Trial],
        storage: optuna.storages.BaseStorage,
        max_error: float = math.inf,
        reload: Callable[[], Sequence[Trial]] = tuple,
    ) -> None:
        self.backend = backend
        self.problem = setting.problem
        self.max_error = max_error
        self.best: Trial | None = None
        self.best_scan: Proven | None = None
        self.lethal: list[Config] = []
        self._storage = storage
        self._records: dict[str, Trial] = {}
        self._asked: dict[str, optuna.Trial] = {}
        tried = [trial for trial in recorded if (trial.backend, trial.phase) == (backend.name, "search")]
        self._durations_s = [trial.duration_s for trial in tried if trial.state != "rejected"]
        legal = list(itertools.islice(backend.space.configs(setting.problem), EXHAUSTIVE_SIZE + 1))
        self._legal = {config_key(config) for config in legal} if len(legal) <= EXHAUSTIVE_SIZE else None
        self._distributions = {choice.name: CategoricalDistribution(choice.values) for choice in backend.space.choices}
        self._is_ours = partial(_is_of, backend, setting, anchor)
        self._reload = reload
        self._absorb(recorded)
        with _quiet():
            self._everything = _Everything(seed=setting.seed, avoid_premature_stop=True)
            self._learning = TPESampler(seed=setting.seed, group=True)
            self.study = optuna.create_study(
                study_name=study_name(backend, setting, anchor),
                storage=storage,
                sampler=self._everything,
                load_if_exists=True,
            )
        self._told = self._reconcile()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """What is recorded of this search, from this process and others."""
        return tuple(self._records.values())

    @property
    def spent_s(self) -> float:
        """What has been spent on it, by this process and others."""
        return sum(trial.duration_s for trial in self._records.values())

    @property
    def left(self) -> int | None:
        """How many legal configurations have not been tried; None where the space is too large to tell."""
        return None if self._legal is None else len(self._legal - self._records.keys())

    @property
    def rebuild_s(self) -> float:
        """What building a tried configuration again takes, in any process: the shortest of the builds so far.

        The first one compiles; after that libraries and generated code lie on disk.
        """
        timed = [trial.measurement for trial in self.trials if trial.measurement is not None]
        return min(((each.build_ms + each.first_call_ms) / 1e3 for each in timed), default=0.0)

    @property
    def expected_s(self) -> float | None:
        """What the next attempt will take, by the last few and a margin; None before the first."""
        return 1.5 * statistics.median(self._durations_s[-5:]) if self._durations_s else None

    def ask(self, available_s: float) -> dict[str, Value] | None:
        """The next configuration to try, or None where there is nothing left to try.

        Every configuration is tried where `available_s` suffices for that, and otherwise TPE chooses.
        """
        self._learn_from_others()
        if self.left == 0:
            return None
        everything_s = (self.left or 0) * (statistics.median(self._durations_s) if self._durations_s else 0.0)
        exhaustive = self.left is not None and everything_s <= available_s
        self.study.sampler = self._everything if exhaustive else self._learning
        grid = math.prod(len(each.choices) for each in self._distributions.values())
        for _ in range(MOST_REPEATS + (grid if exhaustive else 0)):
            asked = self.study.ask()
            asked.set_user_attr("owner", owner.this_process())
            config = self._suggested(asked)
            known = self._records.get(config_key(config))
            if known is not None:
                self._tell(asked, known)
            elif self.backend.space.forbids(config, self.problem) is not None:
                self.study.tell(asked, state=TrialState.FAIL)
            else:
                self._asked[config_key(config)] = asked
                return config
        return None

    def tell(self, trial: Trial, scan: Proven | None) -> None:
        """Take in the record of a configuration that was asked for."""
        asked = self._asked.pop(config_key(trial.config))
        self._durations_s.append(trial.duration_s)
        self._keep(trial)
        if self.best is trial:
            self.best_scan = scan
        self._tell(asked, trial)

    def learn(self, trial: Trial) -> None:
        """Take in the record of a configuration that was not asked for."""
        self._keep(trial)
        self.study.add_trial(self._frozen(trial))

    def give_back(self, config: Config) -> None:
        """A configuration that was asked for and not tried to the end will be asked for again."""
        asked = self._asked.pop(config_key(config))
        self._storage.set_trial_state_values(asked._trial_id, TrialState.WAITING)

    def _suggested(self, asked: optuna.Trial) -> dict[str, Value]:
        config: dict[str, Value] = {}
        for choice in self.backend.space.choices:
            value = asked.suggest_categorical(choice.name, choice.values)
            assert value is not None
            config[choice.name] = value
        return config

    def _absorb(self, recorded: Sequence[Trial]) -> None:
        for trial in recorded:
            # What was pruned may have been slower only than something less exact than is asked for now.
            reopened = trial.state == "pruned" and math.isfinite(self.max_error)
            if config_key(trial.config) not in self._records and self._is_ours(trial) and not reopened:
                self._keep(trial)

    def _learn_from_others(self) -> None:
        """Take in what another process has recorded of the same search since the last look."""
        everyone = self.study.get_trials(deepcopy=False)
        told = {each.user_attrs["record"] for each in everyone if "record" in each.user_attrs}
        if told - self._told - {trial.id for trial in self._records.values()}:
            self._absorb(self._reload())
        self._told |= told

    def _keep(self, trial: Trial) -> None:
        self._records[config_key(trial.config)] = trial
        eligible = trial.state == "ok" and error_of(trial) <= self.max_error
        if eligible and (self.best is None or log_ratio(trial) < log_ratio(self.best)):
            self.best, self.best_scan = trial, None

    def _tell(self, asked: optuna.Trial, trial: Trial) -> None:
        asked.set_user_attr("record", trial.id)
        if trial.measurement is None:
            asked.set_user_attr("reason", trial.reason)
            self.study.tell(asked, state=TrialState.FAIL)
        elif trial.state == "pruned":
            asked.report(log_ratio(trial), step=len(trial.measurement.blocks))
            self.study.tell(asked, state=TrialState.PRUNED)
        else:
            self.study.tell(asked, log_ratio(trial))

    def _reconcile(self) -> set[str]:
        """Make the study say what the records say: free what dead processes held, add what it does not know.

        Returns the records that it has been told of.
        """
        known: set[str] = set()
        waiting: set[str] = set()
        for told in self.study.get_trials(deepcopy=False):
            if told.state == TrialState.RUNNING and not _held(told):
                self._free(told)
            elif told.state == TrialState.WAITING:
                waiting.add(config_key(told.system_attrs.get("fixed_params", {})))
            elif told.state.is_finished() and "record" in told.user_attrs:
                known.add(told.user_attrs["record"])
        for trial in self._records.values():
            if trial.id not in known:
                self.study.add_trial(self._frozen(trial))
        defaults = self.backend.space.defaults
        if config_key(defaults) not in self._records.keys() | waiting:
            self.study.enqueue_trial(defaults)
        return known

    def _free(self, told: FrozenTrial) -> None:
        """Let a trial whose process died be asked for again, unless it looks like the cause.

        It waits again, as if it had never run. Failing it would end the search where the process died before
        the trial had all its parameters: BruteForceSampler cannot place a finished trial that lacks some.
        """
        whole = told.params.keys() == self._distributions.keys()
        deaths = told.user_attrs.get("deaths", 0) + whole
        if deaths >= MOST_DEATHS and config_key(told.params) not in self._records:
            self.lethal.append(told.params)
            self.study.tell(told.number, state=TrialState.FAIL)
        else:
            self._storage.set_trial_user_attr(told._trial_id, "deaths", deaths)
            self._storage.set_trial_state_values(told._trial_id, TrialState.WAITING)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        states = {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        measured = trial.measurement is not None
        return optuna.trial.create_trial(
            state=states.get(trial.state, TrialState.FAIL),
            value=log_ratio(trial) if trial.state == "ok" else None,
            intermediate_values={len(trial.measurement.blocks): log_ratio(trial)} if trial.measurement else {},
            params=dict(trial.config),
            distributions=dict(self._distributions),
            user_attrs={"record": trial.id} | ({} if measured else {"reason": trial.reason}),
        )


def _is_of(backend: Backend, setting: Setting, anchor: Proven, trial: Trial) -> bool:
    """Whether `trial` belongs to the search of `backend` in this setting beside this anchor."""
    identity = (
        setting.machine.silicon_id,
        setting.machine.software_id,
        setting.problem.key,
        setting.inputs_label,
        backend.name,
        backend.source_hash,
        config_key(trial.config),
    )
    same_anchor = trial.measurement is None or (
        trial.measurement.anchor_source_hash == anchor.backend.source_hash
        and trial.measurement.anchor_config == anchor.config
    )
    return trial.phase == "search" and trial.state != "rejected" and trial.identity == identity and same_anchor


def _held(told: FrozenTrial) -> bool:
    """Whether a process still works on a running trial."""
    begun = told.datetime_start
    age_s = math.inf if begun is None else time.time() - begun.timestamp()
    return owner.holds(told.user_attrs.get("owner"), age_s)


class _Everything(BruteForceSampler):
    """Tries everything; a Search knows by its records when that is done, so that it never stops the study."""

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        pass


class _KernelLock(BaseJournalFileLock):
    """A lock on the journal that the kernel releases when its holder dies; optuna's own outlives it by 30 s."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None


def open_storage(storage: str | None, folder: Path) -> tuple[optuna.storages.BaseStorage, tuple[str, ...]]:
    """The storage of the studies, and what had to be repaired.

    storage  None for a journal in `folder`; the path of a journal; or a database URL (sqlite:///file,
             postgresql://user@host/name)
    Raises ResultsError where it cannot be opened.
    """
    try:
        with _quiet():
            if storage is not None and "://" in storage:
                return optuna.storages.RDBStorage(storage), ()
            path = folder / "studies.journal" if storage is None else Path(storage)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = (
                JournalFileOpenLock(str(path)) if fcntl is None else _KernelLock(path.with_name(path.name + ".flock"))
            )
            notices = repair_journal(path, lock)
            return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock)), notices
    except Exception as error:  # each database driver has errors of its own
        raise ResultsError(
            f"--storage {storage or folder}: {type(error).__name__}: {error}."
            " Name a writable journal file, or a database URL whose driver is installed and whose server answers."
        ) from error


def repair_journal(path: Path, lock: BaseJournalFileLock) -> tuple[str, ...]:
    """Cut off what a crash left of the last line of a journal, which would swallow the next one.

    What is cut off is copied aside. A journal with damage further up cannot be read by anyone: it is moved
    aside whole, and the studies are rebuilt from the records.
    """
    if not path.exists():
        return ()
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        if not all(_is_json(line) for line in whole.splitlines()):
            path.rename(aside)
            return (f"{path}: damaged, moved to {aside.name}; the studies are rebuilt from the records",)
        if len(whole) == len(content):
            return ()
        aside.write_bytes(content[len(whole) :])
        os.truncate(path, len(whole))
        return (f"{path}: {len(content) - len(whole)} bytes of an unfinished last line moved to {aside.name}",)
    finally:
        lock.release()


def study_name(backend: Backend, setting: Setting, anchor: Proven) -> str:
    """One study for each machine, software, problem, inputs, anchor, backend source and space."""
    space = json.dumps([[choice.name, choice.values] for choice in backend.space.choices])
    sources = f"{anchor.backend.source_hash} {config_key(anchor.config)} {backend.source_hash} {space}"
    digest = hashlib.sha256(sources.encode()).hexdigest()[:12]
    machine = f"{setting.machine.silicon_id}-{setting.machine.software_id}"
    return f"{backend.name} {setting.problem.key} {setting.inputs_label} {machine} {digest}"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def log_ratio(trial: Trial) -> float:
    """log(time / anchor's time) of a trial that was measured."""
    assert trial.measurement is not None
    return trial.measurement.log_ratio


Sampler = Literal["random", "tpe"]


def simulate(
    values: Mapping[str, Sequence[Value]],
    outcome: Callable[[Config], float | None],
    trials: int,
    sampler: Sampler,
    seed: int,
) -> None:
    """Ask `sampler` for `trials` configurations of these tunables, each answered by `outcome`; nothing is stored.

    An `outcome` of None is a configuration that nothing is known of; neither it nor a repetition counts.
    """
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(list(choices)) for name, choices in values.items()
    }
    told: dict[str, float | None] = {}
    with _quiet():
        chosen = RandomSampler(seed=seed) if sampler == "random" else TPESampler(seed=seed, group=True)
        study = optuna.create_study(sampler=chosen)
        for _ in range(20 * trials + MOST_REPEATS):
            asked = study.ask(distributions)
            key = config_key(asked.params)
            if key not in told:
                told[key] = outcome(asked.params)
            answer = told[key]
            study.tell(asked, answer, state=TrialState.FAIL if answer is None else TrialState.COMPLETE)
            if sum(value is not None for value in told.values()) >= trials:
                return


def error_of(trial: Trial) -> float:
    """The largest error of any tensor of a trial that was proved, as a share of that tensor's largest value."""
    assert trial.verdict is not None
    return trial.verdict.worst


def importances(trials: Iterable[Trial]) -> dict[str, dict[str, float]]:
    """By backend: the share of the variation of its times that each tunable explains (functional ANOVA).

    Taken from the timed search trials of the problem that the backend was searched on most. Backends with one
    tunable, or with fewer than FEWEST_FOR_IMPORTANCE timed configurations, are left out: a share means nothing there.
    Loads scikit-learn: call it when there is nothing left to measure.
    Source: Hutter et al. 2014, as in optuna.importance.FanovaImportanceEvaluator.
    """
    # Here and not above: scikit-learn brings a second OpenMP runtime into the process that times kernels.
    from optuna.importance import FanovaImportanceEvaluator

    groups: dict[str, dict[tuple[str, ...], dict[str, Trial]]] = {}
    for trial in trials:
        if trial.phase == "search" and trial.state == "ok" and trial.config:
            alike = groups.setdefault(trial.backend, {}).setdefault(trial.identity[:-1], {})
            alike[config_key(trial.config)] = trial
    shares = {}
    for backend, searched in groups.items():
        best = list(max(searched.values(), key=len).values())
        values = {name: sorted({trial.config[name] for trial in best}, key=str) for name in best[0].config}
        varied = {name: CategoricalDistribution(found) for name, found in values.items() if len(found) > 1}
        if len(best) < FEWEST_FOR_IMPORTANCE or len(varied) < 2:
            continue
        with _quiet():
            study = optuna.create_study()
            for trial in best:
                params = {name: trial.config[name] for name in varied}
                study.add_trial(
                    optuna.trial.create_trial(value=log_ratio(trial), params=params, distributions=dict(varied))
                )
            evaluator = FanovaImportanceEvaluator(seed=0)
            shares[backend] = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    return shares


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep optuna from announcing studies, and from warning that what is used here is young."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
