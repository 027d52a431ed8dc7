"""The demo, ``python -m pyrosplice demo --out demo``: a whole analysis of isoform usage on a simulated tissue.

Estimates stand beside the truth in its report. The tables that it makes are functions here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyrosplice._jobs.command_line import console, run_command
from pyrosplice._jobs.demo_job import simulated_tissue
from pyrosplice._jobs.usage_job import discoveries, effect_table, strongest_effect

__all__ = ["discoveries", "effect_table", "main", "simulated_tissue", "strongest_effect"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``pyrosplice demo`` with these arguments, those of the command line by default; the exit code.

    Examples
    --------
    >>> from pyrosplice.demo import main
    >>> main(["--out", "demo", "--data", "nowhere.h5ad", "--quiet"])  # and says so on standard error
    1
    """
    return run_command(["demo", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    console(["demo", *sys.argv[1:]])
