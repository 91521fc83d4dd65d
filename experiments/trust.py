"""The lab keeps its promises: no trial is lost, no difference invented, no choice replaced on weaker evidence.

Of 200 SIGKILLs at random moments, half of a writer and half of a tuning process whose successor takes up from there,
none loses a record that was said to be on disk, and what was running is tried again; nor do kills of three tuners at
once on one storage, or lead to a wrong choice. Of comparisons of one configuration with itself at most 5 % report a
difference: some are run, and 200 are drawn from recorded noise of this machine. In 100 simulated tunings with injected
artefacts (samples 5 to 20 times too fast or too slow, stretches that are disturbed) the true winner is chosen or
declared a tie; in 200 on a machine that changes unseen (it heats up, has slow phases, pauses, or a neighbour in one
phase alone) none chooses what is slower than the defaults. Of simulated tunings that are interrupted, starved, kept
busy or killed, 100 of each, none lowers the rank of the evidence that a deployed choice rests on. Backends with planted
faults, of strides and of races too, are caught by `scanlab verify` and by the contract test. Of ten runs of `scanlab
tune` beside a neighbour that hogs a CPU at random, and of ten with cold caches, none deploys what a quiet comparison
shows to be slower than the defaults by more than the noise floor:

    python experiments/trust.py
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import common
import pandas as pd
import trust_faults
import typer
from trust_changes import changing
from trust_claim import Claim
from trust_fleet import kills_of_a_fleet
from trust_kills import kills_of_a_tuner, kills_of_a_writer
from trust_noise import comparisons_drawn, comparisons_run
from trust_simulated import artefacts, cut_short
from trust_tunings import tunings as tunings_held

PARTS = ("kills", "fleet", "comparisons", "simulated", "faults", "tunings")
SECTIONS = {
    "faults": "Planted faults, and the first problem that shows each",
    "tunings": "Tunings, and the time of each choice over that of the defaults",
}


def write(claims: Sequence[Claim], details: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Write the page of the results so far, and as CSV the claims, the faults and the tunings."""
    numbers = pd.DataFrame([{**claim._asdict(), "holds": claim.holds} for claim in claims])
    caption = "; ".join(dict.fromkeys(claim.setting for claim in claims))
    shown = numbers.drop(columns="setting").assign(
        holds=numbers.holds.map({True: "yes", False: "NO"}), seconds=numbers.seconds.map("{:.0f}".format)
    )
    sections = {"Claims": shown.astype(str)}
    for name, rows in details.items():
        if rows:
            frame = pd.DataFrame(rows)
            sections[SECTIONS[name]] = frame.map(
                lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
            )
            common.write_csv(out, frame, name)
    common.write_page(out, __doc__, caption, {}, sections, numbers)


def known(out: Path) -> tuple[list[Claim], dict[str, list[dict[str, Any]]]]:
    """Return the claims, and the faults and tunings in detail, that were tried before on this kind of machine."""
    claims = common.read_csv(out).drop(columns="holds", errors="ignore").to_dict("records")
    details = {name: common.read_csv(out, name).to_dict("records") for name in SECTIONS}
    return [Claim(**{str(name): value for name, value in each.items()}) for each in claims], details


def main(
    parts: Annotated[str, typer.Option(help="Separated by commas; the others stay as they were found.")] = ",".join(
        PARTS
    ),
    kills: Annotated[int, typer.Option(help="SIGKILLs in all.")] = 200,
    drawn: Annotated[int, typer.Option(help="Comparisons drawn from recorded noise.")] = 200,
    real: Annotated[int, typer.Option(help="Comparisons that are run.")] = 40,
    simulations: Annotated[int, typer.Option(help="Simulated tunings of each kind.")] = 100,
    tunings: Annotated[int, typer.Option(help="Tunings beside the neighbour, and as many with cold caches.")] = 10,
    budget: Annotated[str, typer.Option(help="Of each tuning.")] = "4m",
    quiet_s: Annotated[float, typer.Option(help="Seconds of the comparison that holds the choices.")] = 60.0,
    kept: Annotated[
        Path | None, typer.Option(help="Folder of the tunings; a run that names it again goes on from there.")
    ] = None,
    out: Path = common.RESULTS / "trust",
) -> None:
    """Try the claims one after the other, and write the page after each; exit code 1 where one does not hold."""
    asked = parts.split(",")
    if unknown := set(asked) - set(PARTS):
        raise SystemExit(f"--parts {', '.join(sorted(unknown))}: must be some of {', '.join(PARTS)}")
    setting = common.setting()
    claims, details = known(out)

    def keep(claim: Claim) -> None:
        print(f"{claim.claim}: {claim.wrong} of {claim.tried} in {claim.seconds:.0f} s; {claim.said}", flush=True)
        by_name = {each.claim: each for each in claims} | {claim.claim: claim._replace(setting=setting)}
        claims[:] = by_name.values()
        write(claims, details, out)

    with tempfile.TemporaryDirectory(prefix="scanlab-trust-") as name:
        place = Path(name)
        if "kills" in asked:
            keep(kills_of_a_writer(kills // 2, place / "writer"))
            keep(kills_of_a_tuner(kills - kills // 2, place / "tuner"))
        if "fleet" in asked:
            keep(kills_of_a_fleet(kills // 2, place / "fleet"))
        if "comparisons" in asked:
            keep(comparisons_run(real, place / "comparisons"))
            keep(comparisons_drawn(drawn))
        if "simulated" in asked:
            keep(artefacts(simulations, place / "artefacts"))
            keep(changing(2 * simulations, place / "changing"))
            keep(cut_short(simulations, place / "cut-short"))
        if "faults" in asked:
            claim, details["faults"] = trust_faults.planted()
            keep(claim)
        if "tunings" in asked:
            details["tunings"] = []
            for claim, rows in tunings_held(tunings, budget, quiet_s, kept or place / "tunings"):
                details["tunings"] += rows
                keep(claim)
    failed = [claim.claim for claim in claims if not claim.holds]
    if failed:
        raise SystemExit(f"the claim does not hold: {'; '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)
