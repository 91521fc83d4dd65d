"""Which tunable matters: the share of the variation of a backend's times that each of them explains."""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.distributions import CategoricalDistribution

from scanlab.bench.records import Trial, log_ratio
from scanlab.contract.space import config_key
from scanlab.tuning.fleet.storage import quiet_optuna

# Fewer timed configurations than this say nothing about which tunable matters.
FEWEST_FOR_IMPORTANCE = 6


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
        with quiet_optuna():
            study = optuna.create_study()
            for trial in best:
                params = {name: trial.config[name] for name in varied}
                study.add_trial(
                    optuna.trial.create_trial(value=log_ratio(trial), params=params, distributions=dict(varied))
                )
            evaluator = FanovaImportanceEvaluator(seed=0)
            shares[backend] = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    return shares
