"""The command line: ``pyrosplice usage``, ``expression``, ``states`` and ``demo``; also ``python -m pyrosplice``."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, NoReturn

from pyrosplice._jobs.command_options import command_parser
from pyrosplice._jobs.demo_job import DemoOptions, run_demo
from pyrosplice._jobs.expression_job import ExpressionOptions, run_expression
from pyrosplice._jobs.job_progress import Steps, say, warnings_told
from pyrosplice._jobs.results_folder import PAGE, Conclusion, OutputOptions, ResultsFolder, RunRecord, finish
from pyrosplice._jobs.states_job import StatesOptions, run_states
from pyrosplice._jobs.usage_figures import run_usage
from pyrosplice._jobs.usage_job import UsageOptions
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NotReadyError

DONE, REFUSED, INTERRUPTED = 0, 1, 130
OURS = (InvalidArgumentError, ModelFileError, NotReadyError, MemoryError, OSError)  # told without a traceback


@dataclass(frozen=True)
class Job:
    """What a word of the command line runs, with which options, in how many steps."""

    options: type
    run: Callable[[Any, ResultsFolder, Steps], Conclusion]
    n_steps: int


JOBS = {
    "usage": Job(UsageOptions, run_usage, 4),
    "expression": Job(ExpressionOptions, run_expression, 5),
    "states": Job(StatesOptions, run_states, 5),
    "demo": Job(DemoOptions, run_demo, 4),
}


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and say on standard output what was found.

    Parameters
    ----------
    arguments
        Words of the command line after ``pyrosplice``; ``sys.argv`` by default.

    Returns
    -------
    int
        The exit code: 0 done; 1 refused or failed, with a message on standard error; 2 wrong options; 130 interrupted.

    Examples
    --------
    >>> from pyrosplice._jobs.command_line import run_command
    >>> run_command(["usage", "nowhere.h5ad", "--out", "results"])  # and says so on standard error
    1
    """
    words = tuple(sys.argv[1:] if arguments is None else arguments)
    try:
        given = command_parser().parse_args(words)
    except SystemExit as stopped:  # of argparse, which has said why: help asked for, or wrong options
        return stopped.code if isinstance(stopped.code, int) else REFUSED
    program = f"pyrosplice {given.job}"
    try:
        lead, place = _run(given, words, program)
    except KeyboardInterrupt:
        say(sys.stderr, f"\n{program}: interrupted; nothing is complete without run.json.")
        return INTERRUPTED
    except OURS as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        said = str(error) or type(error).__name__
        say(sys.stderr, f"{program}: error: {said}{' ' + notes if notes else ''}")
        return REFUSED
    say(sys.stdout, f"{lead}\n{place}")
    return DONE


def console(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line as a program of its own, which draws without a screen, and leave with its exit code."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.exit(run_command(arguments))


def _run(given: Namespace, words: tuple[str, ...], program: str) -> tuple[str, str]:
    """Run a job; what was found, and where the page is."""
    job, told, started = JOBS[given.job], list[str](), datetime.now(UTC)
    options, output = _chosen(job.options, given), _chosen(OutputOptions, given)
    folder = ResultsFolder(output)
    folder.keep_input(getattr(options, "data", None))
    folder.open()
    steps = Steps(job.n_steps, show=not output.quiet)
    try:
        with warnings_told(program, told):
            conclusion = job.run(options, folder, steps)
    finally:
        steps.close()
        folder.discard()
    record = RunRecord(job=given.job, arguments=words, options=options, started=started, warnings=told)
    finish(folder, record, conclusion)
    return conclusion.lead, f"{len(folder.files)} files in {folder.place}; begin with {folder.place / PAGE}"


def _chosen(kind: type, given: Namespace) -> Any:
    """Options of a kind as given; what was not given is absent, and has the default of the class."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in vars(given).items() if name in names})
