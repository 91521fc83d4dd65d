"""`scanlab run`: run a script unchanged, with scanlab instead of mamba_ssm and causal_conv1d."""

from __future__ import annotations

import os
import runpy
import sys
import threading
from contextlib import nullcontext
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from scanlab.cli.console import Exit, notes
from scanlab.errors import InputError, did_you_mean
from scanlab.integrations import mamba_ssm
from scanlab.integrations.children import in_children
from scanlab.integrations.cuda_on_cpu import on_cpu
from scanlab.runtime.usage import UsageFile, UsageLog, log_usage
from scanlab.suites import CAPTURED, recorded_suite

# Options after the script are the script's.
CONTEXT_SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": True}
OPTIONS = ("-m", "--record", "--cpu", "--help")


def run(
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="A script, or with -m a module.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="The script's own.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module, as for `python -m`.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Write the script's scan problems to this file, as a suite to tune.")
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Run code for a cuda device on the CPU; no effect where CUDA is.")
    ] = False,
) -> None:
    """Run a Python script as it is; scanlab serves its imports of mamba_ssm and causal_conv1d on the CPU.

    Nothing has to be installed or changed for it. Processes that the script starts are served too. Exits as the script
    does.

    Example:
        scanlab run -m timeit -n 1 -r 1 "import mamba_ssm"
        scanlab run train.py --epochs 1
    """
    if not module and not Path(target).exists():
        if target.startswith("-"):
            near = did_you_mean(target, OPTIONS)
            raise InputError(
                f"there is no option {target}: `scanlab run --help` has them; those of a script come after it.{near}"
            )
        nearest = did_you_mean(target, map(str, Path(target).parent.glob("*.py")))
        raise InputError(f"there is no script {target}.{nearest or f' For a module: scanlab run -m {target}.'}")
    if not module and Path(target).is_dir() and not (Path(target) / "__main__.py").exists():
        raise InputError(f"{target} is a folder without a __main__.py: name a script in it.")
    if module and not _is_found(target.partition(".")[0]):
        raise InputError(f"there is no module {target}: install it, or run from the folder that it is in.")
    file = None if record is None else UsageFile(record)
    if file is not None and file.path.exists() and not file.path.read_bytes().startswith(f"[{CAPTURED}]".encode()):
        raise InputError(
            f"--record {record}: this file is not a recorded suite and was left as it is; name a new file."
        )
    mamba_ssm.install()

    def save(log: UsageLog, is_new: bool) -> None:
        if file is not None and log.scans:  # the program may be killed, or end by os._exit
            file.save(lambda: recorded_suite(target, log.scans), is_new)

    with on_cpu() if cpu else nullcontext(), in_children(cpu=cpu), log_usage(save) as log:
        try:
            try:
                _run_as_main(target, arguments or [], module)
            finally:
                _join_threads()
        finally:
            if file is not None and file.is_ours:
                file.write(recorded_suite(target, log.scans) if log.scans else "")
                suite = f"{record}:{CAPTURED}"
                found = "1 problem" if len(log.scans) == 1 else f"{len(log.scans)} problems"
                said = f"wrote {record}: {found}, for scanlab tune --suite {suite}"
                notes.print(escape(said if log.scans else f"{target} called no scan: {record} was not written"))


def _join_threads() -> None:
    """Wait for the threads of the script, as Python does after its main program."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _is_found(package: str) -> bool:
    """Return whether `package` can be imported where a module runs: from the current folder, or as installed."""
    return PathFinder.find_spec(package, [os.getcwd()]) is not None or find_spec(package) is not None


def _run_as_main(target: str, arguments: list[str], module: bool) -> None:
    """Run `target` as Python would, with its own arguments and search path; an exception ends the process with 1."""
    before = sys.argv, sys.path[0]
    sys.argv = [target, *arguments]
    sys.path[0] = os.getcwd() if module else str(Path(target).resolve().parent)
    try:
        if module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except Exception as error:  # noqa: BLE001  # errors of a script are printed as Python prints them
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        raise typer.Exit(Exit.CHECK_FAILED) from None
    finally:
        sys.argv, sys.path[0] = before
