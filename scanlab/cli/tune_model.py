"""`scanlab tune --model`: tune every op of a model, then choose among whole models, report, and deploy."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from scanlab.bench.store import TrialStore
from scanlab.cli.console import notes, out, plain_table, print_json
from scanlab.cli.duration import spell_duration
from scanlab.cli.finished import FinishedTunings
from scanlab.cli.tune_options import TuneOptions
from scanlab.cli.tuning_output import as_json as tuning_as_json
from scanlab.cli.tuning_output import progress, say_why, show
from scanlab.contract.machine import this_machine
from scanlab.errors import InputError, did_you_mean
from scanlab.models.model_op import DTYPES, ModelProblem
from scanlab.models.tune_model import ModelTuning, op_times_ms, tune_model
from scanlab.models.workloads import default_sizes
from scanlab.report.breakdown import DtypeAccuracy, ModelBreakdown, OpTime, dtype_table, op_table, save_breakdown

AUTO = "auto"
# Allowed where the dtype is free and none is given: some three roundings of bfloat16 after 24 layers.
FREE_LOGIT_ERROR, FREE_AGREEMENT = 0.05, 0.95
FLOAT32_LOGIT_ERROR = 1e-4


def run_tune_model(
    workload: tuple[str, int | None, int | None],
    dtype: str,
    allowed: tuple[float | None, float | None],
    budget_s: float,
    options: TuneOptions,
) -> None:
    """Tune a model, report it, and deploy the winners.

    Args:
        workload: The model, and its batch and size; those by default where None.
        dtype: A dtype of the model, or "auto" to choose among all.
        allowed: Largest error of a logit and smallest agreement of the first classes; those of the dtype where None.
        budget_s: Time of the whole, without builds and report.
        options: Options of the command.

    Raises:
        typer.Exit: The tuning was interrupted, or the model has no winner.
    """
    model, batch, size = workload
    if dtype not in (AUTO, *DTYPES):
        raise InputError(
            f"--dtype {dtype}: must be {AUTO} or one of {', '.join(DTYPES)}.{did_you_mean(dtype, (AUTO, *DTYPES))}"
        )
    dtypes = DTYPES if dtype == AUTO else (dtype,)
    exact = dtypes == ("float32",)
    default_batch, default_size = default_sizes(model)
    max_logit_error, min_agreement = allowed
    if max_logit_error is None:
        max_logit_error = FLOAT32_LOGIT_ERROR if exact else FREE_LOGIT_ERROR
    if min_agreement is None:
        min_agreement = 0.0 if exact else FREE_AGREEMENT
    problem = ModelProblem(
        model=model,
        batch=batch or default_batch,
        size=size or default_size,
        max_logit_error=max_logit_error,
    )
    store = TrialStore(options.results)
    store.prepare()
    finished = FinishedTunings(store, options.deploys, spell_duration(budget_s))
    with progress(options.as_json) as on_event:
        tuning = tune_model(
            problem,
            budget_s,
            store,
            dtypes=dtypes,
            min_agreement=min_agreement,
            objective=options.objective,
            seed=options.seed,
            on_event=on_event,
            on_step=lambda text: notes.print(f"[dim]{escape(text)}[/]"),
        )
        finished.add([*tuning.ops, *([] if tuning.whole is None else [tuning.whole])], tuning.entries)
    breakdown = breakdown_of(tuning)
    if breakdown is not None:
        save_breakdown(breakdown, options.results)
    written = finished.write_report()
    winner = None if tuning.whole is None else tuning.whole.winner
    if options.as_json:
        print_json(_as_json(tuning, finished, breakdown, options.raw))
    else:
        _print(tuning, breakdown)
        finished.say_where(written, "whose choices for its ops serve from now on")
        say_why(
            "No choice: whole models were not compared." if tuning.whole is None else tuning.whole.why, bool(winner)
        )
    finished.end(tuning.interrupted, winner is not None)


def breakdown_of(tuning: ModelTuning) -> ModelBreakdown | None:
    """Return the breakdown of a tuned model; None where whole models were not compared."""
    whole = tuning.whole
    if whole is None or whole.comparison is None or whole.winner is None or whole.winner.measurement is None:
        return None
    ranked = [(each, each.trial.measurement) for each in whole.comparison.ranking]
    times_ms = {each.trial.config["dtype"]: measured.median_ms for each, measured in reversed(ranked) if measured}
    by_default = [measured.median_ms for each, measured in ranked if each.is_untuned and measured]
    after_ms = whole.winner.measurement.median_ms
    return ModelBreakdown(
        problem=tuning.problem.key,
        machine=this_machine(),
        before_ms=by_default[0] if by_default else after_ms,
        after_ms=after_ms,
        products_ms=None if tuning.products_s is None else 1e3 * tuning.products_s,
        why=whole.why,
        ops=tuple(
            OpTime(
                share.problem.op,
                share.problem.key,
                share.calls,
                before_ms,
                own_ms,
                1e3 * share.calls * share.attainable_s,
            )
            for share, before_ms, own_ms in op_times_ms(tuning)
        ),
        dtypes=tuple(
            DtypeAccuracy(
                cost.dtype,
                cost.logit_error,
                cost.agreement,
                cost.digits_agreement,
                times_ms.get(cost.dtype),
                tuning.refused.get(cost.dtype) or _why_uncompared(tuning, cost.dtype),
            )
            for cost in tuning.costs
        ),
    )


def _why_uncompared(tuning: ModelTuning, dtype: str) -> str | None:
    """Return why a dtype that is exact enough has no time, or None if it was compared."""
    assert tuning.whole is not None
    assert tuning.whole.comparison is not None
    if any(each.trial.config["dtype"] == dtype for each in tuning.whole.comparison.ranking):
        return None
    own = [trial for trial in tuning.whole.trials if trial.config["dtype"] == dtype]
    reasons = dict.fromkeys(trial.reason or "among the slower ones of the search" for trial in own)
    return f"not compared: {'; '.join(reasons) or 'no time was left to try it'}"


def _print(tuning: ModelTuning, breakdown: ModelBreakdown | None) -> None:
    for found in (*tuning.ops, *([tuning.whole] if tuning.whole is not None else [])):
        out.print(f"[bold]{escape(found.problem.op)}[/]  {escape(found.problem.key)}")
        show(found)
    for notice in tuning.notices:
        notes.print(f"[yellow]note:[/] {escape(notice)}")
    if breakdown is not None:
        for frame in (op_table(breakdown), dtype_table(breakdown)):
            table = plain_table(*frame.columns)
            for row in frame.itertuples(index=False):
                table.add_row(*map(escape, row))
            out.print(table)


def _as_json(
    tuning: ModelTuning, finished: FinishedTunings, breakdown: ModelBreakdown | None, raw: bool
) -> dict[str, Any]:
    shown = [tuning_as_json(*each, raw) for each in finished.tunings]
    whole = None if tuning.whole is None else shown.pop()
    return {
        "model": whole,
        "ops": shown,
        "breakdown": None if breakdown is None else breakdown.to_json(),
        "notices": tuning.notices,
    }
