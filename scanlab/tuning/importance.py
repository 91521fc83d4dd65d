"""Importance of tunables: the share of the variation of a backend's times that each of them explains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import optuna
from optuna.distributions import CategoricalDistribution

from scanlab.bench.records import Trial, log_ratio
from scanlab.contract.space import config_key
from scanlab.tuning.fleet.storage import quiet_optuna

# Fewer timed configurations than this say nothing about the importance of a tunable.
MIN_CONFIGURATIONS = 6


def importances(trials: Iterable[Trial]) -> dict[str, dict[str, float]]:
    """Return the importance of each tunable by backend (functional ANOVA).

    Loads scikit-learn: call it when there is nothing left to measure.

    Args:
        trials: Records. Of each backend the timed trials of its largest search are used.

    Returns:
        Shares of the variation that add up to 1, by backend. A backend with one varied tunable, or with fewer than
        MIN_CONFIGURATIONS timed configurations, is left out.

    Source: Hutter et al. 2014, as in optuna.importance.FanovaImportanceEvaluator.
    """
    shares = {backend: _shares(searched) for backend, searched in _largest_searches(trials).items()}
    return {backend: found for backend, found in shares.items() if found}


def _largest_searches(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    searches: dict[str, dict[tuple[str, ...], dict[str, Trial]]] = {}
    for trial in trials:
        if trial.phase == "search" and trial.state == "ok" and trial.config:
            search = searches.setdefault(trial.backend, {}).setdefault(trial.identity[:-1], {})
            search[config_key(trial.config)] = trial
    return {backend: list(max(own.values(), key=len).values()) for backend, own in searches.items()}


def _shares(searched: Sequence[Trial]) -> dict[str, float]:
    # Here and not above: scikit-learn brings a second OpenMP runtime into the process that times kernels.
    from optuna.importance import FanovaImportanceEvaluator

    values = {name: sorted({trial.config[name] for trial in searched}, key=str) for name in searched[0].config}
    varied = {name: CategoricalDistribution(found) for name, found in values.items() if len(found) > 1}
    if len(searched) < MIN_CONFIGURATIONS or len(varied) < 2:
        return {}
    with quiet_optuna():
        study = optuna.create_study()
        for trial in searched:
            params = {name: trial.config[name] for name in varied}
            study.add_trial(
                optuna.trial.create_trial(value=log_ratio(trial), params=params, distributions=dict(varied))
            )
        return dict(optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))
