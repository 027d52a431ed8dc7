"""What the command line takes, and its help: what each job answers, what it reads, writes and takes by default."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyrosplice import __version__
from pyrosplice._expression.methods import METHODS
from pyrosplice._jobs import help_texts as told
from pyrosplice._jobs.demo_job import DemoOptions
from pyrosplice._jobs.input_file import spatial_key_given
from pyrosplice._jobs.states_job import FOLDS, StatesOptions
from pyrosplice._jobs.usage_job import UsageOptions

OF_A_FILE = {  # options of the demo that say what to read of --data
    "layer": "--layer",
    "gene_key": "--gene-key",
    "spatial_key": "--spatial-key",
    "section_key": "--section-key",
    "space": "--no-space",
    "covariates": "--covariate",
    "formula": "--formula",
    "as_label": "--as-label",
    "missing": "--missing",
}
OF_A_SIMULATION = {"n_spots": "--n-spots", "n_genes": "--n-genes"}
MOST_SEED = 2**32 - 1  # that NumPy's and scikit-learn's generators take


class CommandParser(argparse.ArgumentParser):
    """The parser of the command line, which refuses options that its others leave without effect."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the words of the command line."""
        found = super().parse_args(args, namespace)
        for name in ("covariates", "as_label", "as_numeric", "tests"):
            if hasattr(found, name):
                setattr(found, name, tuple(getattr(found, name)))
        if hasattr(found, "reference"):
            found.reference = self._references(found.reference)
        if found.job == "demo":
            without = OF_A_SIMULATION if hasattr(found, "data") else OF_A_FILE
            useless = [option for name, option in without.items() if hasattr(found, name)]
            if useless:
                words = (
                    "with --data nothing is simulated" if hasattr(found, "data") else "they are of a file; give --data"
                )
                self.error(f"{', '.join(useless)}: {words}")
        return found

    def _references(self, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Reference levels by column; a column that stands twice is refused."""
        columns = [column for column, _ in pairs]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            self.error(f"--reference: {twice[0]} has two reference levels")
        return dict(pairs)


def command_parser() -> CommandParser:
    """Make the parser; options that are not given are absent from what it returns."""
    parser = CommandParser(
        prog="pyrosplice", description=told.PROGRAM, epilog=told.CODES, formatter_class=_Help, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pyrosplice {__version__}")
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB", parser_class=argparse.ArgumentParser)
    for name, (line, add) in PARTS.items():
        text, epilog = told.JOBS[name]
        own = jobs.add_parser(
            name,
            help=line,
            description=text,
            epilog=f"{epilog}\n\n{told.CODES}",
            formatter_class=_Help,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        add(own)
        _add_output(own)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they are written; wide enough for a line of help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--out", "--output", type=_path, required=True, metavar="FOLDER", help="folder of the results; made if missing")
    add(
        "--force",
        action="store_true",
        help="write to a folder that holds something; replaces what an earlier run wrote",
    )
    add("--no-figures", dest="figures", action="store_false", help="tables and page only; without matplotlib")
    add("--parquet", action="store_true", help="write tables as parquet too (needs pyarrow: pyrosplice[parquet])")
    add("--write-h5ad", action="store_true", help="write annotated.h5ad: the data with the results in it")
    add("--quiet", action="store_true", help="no progress on standard error")


def _add_usage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=_path, metavar="FILE", help="h5ad file or zarr folder: spots x isoforms, raw counts"
    )
    _add_usage_data(parser)
    _add_usage_fit(parser)


def _add_usage_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is read").add_argument
    default = UsageOptions()
    _add_layer(add)
    add("--gene-key", metavar="COLUMN", help=f"column of var: the gene of each isoform (default: {default.gene_key})")
    _add_spatial(add, "default: 'spatial' where the file has it, else no spatial effect")
    add("--no-space", dest="space", action="store_false", help="fit no spatial effect although there are coordinates")
    append: dict[str, Any] = {"action": "append", "metavar": "COLUMN"}
    add("--covariate", dest="covariates", **append, help="column of obs that usage may follow; once for each column")
    add("--formula", metavar="FORMULA", help="instead: a formula of columns of obs, e.g. '~ layer + log(total)'")
    add("--as-label", **append, help="take a column of numbers as labels (clusters 0, 1, 2); once for each column")
    _add_missing(add)


def _add_usage_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is fitted").add_argument
    default = UsageOptions()
    size = f"genes fitted together, or auto: as many as memory allows (default: {default.batch_size})"
    add("--batch-size", type=_batch_size, metavar="N", help=size)
    add("--jobs", type=_whole(1), metavar="N", help=f"processes over genes (default: {default.jobs})")
    _add_device(add)
    _add_seed(add, "of what is drawn at random")


def _add_expression(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=_path, metavar="FILE", help="h5ad file or zarr folder: cells x genes, raw counts")
    model = parser.add_argument_group("the model and its tests").add_argument
    model("--formula", required=True, help="of the mean (log scale), as '~ condition + (1 | donor)'")
    model(
        "--test", dest="tests", action="append", required=True, metavar="FACTOR", help="factor to test; once for each"
    )
    model("--scale-formula", metavar="FORMULA", help="of the dispersion (default: '~ 1')")
    model("--method", choices=METHODS, help="test (default: wald); see below")
    model("--donors", metavar="COLUMN", help="of obs: units of --method cluster and glmm")
    model("--lfc-threshold", type=float, metavar="X", help="test against |log2 fold change| of at most X (default: 0)")
    model("--noise-model", choices=("nb", "poisson", "norm"), help="of the counts (default: nb)")
    add = parser.add_argument_group("what is read").add_argument
    _add_layer(add)
    append: dict[str, Any] = {"action": "append", "metavar": "COLUMN"}
    add("--as-numeric", **append, help="column of the formula that is a number; all others are labels. Once for each")
    equation = "level that a column's coefficients are against (default: the first by name, or of the categories)"
    add("--reference", action="append", type=_equation, metavar="COLUMN=LEVEL", help=equation)
    sizes = "depth of cells: total (total counts over their mean; default), none, or a column of obs"
    add("--size-factors", metavar="WHAT", help=sizes)
    add(
        "--gene-key", metavar="COLUMN", help="column of var with symbols for tables and figures (default: names of var)"
    )
    _add_spatial(add, "asks for a test of spatial variability too; default: no test in space")
    _add_missing(add)
    _add_device(add)


def _add_states(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=_path, metavar="FILE", help="h5ad file or zarr folder of cells")
    add = parser.add_argument_group("what is read").add_argument
    add(
        "--patient-key",
        metavar="COLUMN",
        help="of obs: patient (sample) of each cell (default: one mixture of all cells)",
    )
    add("--label-key", metavar="COLUMN", help="of obs: group of each patient, kept with the fit (default: none)")
    add("--use-rep", metavar="KEY", help="key of obsm to fit, or X (default: X_pca, else an X of at most 50 columns)")
    _add_missing(add, "cells without a patient or group")
    fit = parser.add_argument_group("the mixtures").add_argument
    default = StatesOptions(data=Path(), components=(1,))
    fit("--components", type=_numbers, required=True, metavar="K", help="states: 4; or to choose from: 1-8, or 2,4,6")
    fit("--folds", type=_whole(2), metavar="N", help=f"choose by N-fold cross-validation (default, with N = {FOLDS})")
    fit("--select", choices=("aic", "bic", "heldout_nll"), help="choose by a criterion instead; aic takes too many")
    fit("--covariance", choices=("full", "diag", "tied", "spherical"), help=f"(default: {default.covariance})")
    fit(
        "--sharing",
        choices=("sample_specific", "global"),
        help=f"components a patient, or of all (default: {default.sharing})",
    )
    prior = "of covariances: pooled learns one from all patients, for patients of few cells (default: none)"
    fit("--prior", choices=("none", "pooled", "weak"), help=prior)
    fit("--max-iter", type=_whole(1), metavar="N", help=f"most iterations of EM (default: {default.max_iter})")
    fit(
        "--restarts",
        type=_whole(1),
        metavar="N",
        help=f"starts, of which the best is kept (default: {default.restarts})",
    )
    _add_seed(fit, "of starts and folds")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    default = DemoOptions()
    add = parser.add_argument_group("the simulated tissue").add_argument
    add("--n-spots", type=_whole(5), metavar="N", help=f"its size (default: {default.n_spots})")
    add("--n-genes", type=_whole(1), metavar="N", help=f"its genes (default: {default.n_genes})")
    other = parser.add_argument_group("or a file, as by 'pyrosplice usage'").add_argument
    other("--data", type=_path, metavar="FILE", help="h5ad file or zarr folder, in the place of the simulation")
    other(
        "--covariates",
        dest="covariates",
        action="extend",
        nargs="+",
        metavar="COLUMN",
        help="several --covariate in one",
    )
    _add_usage_data(parser)
    _add_usage_fit(parser)


def _add_layer(add: Any) -> None:
    add("--layer", metavar="LAYER", help="layer of the raw counts, or X (default: 'counts' where there is one, else X)")


def _add_spatial(add: Any, default: str) -> None:
    key = f"coordinates: a key of obsm, or columns of obs as x,y ({default})"
    add("--spatial-key", type=spatial_key_given, metavar="KEY", help=key)
    section = "column of obs: section (slide) of each spot; spots of two have nothing in common in space (default: one)"
    add("--section-key", metavar="COLUMN", help=section)


def _add_missing(add: Any, what: str = "cells without a label or number in a column used") -> None:
    add(
        "--missing",
        choices=("raise", "drop"),
        help=f"{what}: refuse, or leave them out and say how many (default: raise)",
    )


def _add_device(add: Any) -> None:
    add("--device", metavar="NAME", help="cpu, cuda or mps (default: cpu)")


def _add_seed(add: Any, what: str) -> None:
    add("--seed", type=_whole(0, MOST_SEED), metavar="N", help=f"{what} (default: 0)")


PARTS = {
    "usage": ("which genes use their isoforms differently in space, or with covariates", _add_usage),
    "expression": ("which genes answer to a condition, or vary in space", _add_expression),
    "states": ("which states cells are in, and how patients differ in them", _add_states),
    "demo": ("the job 'usage' on a simulated tissue, estimates beside the truth", _add_demo),
}


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, found nothing")
    return Path(text)


def _whole(least: int, most: int | None = None) -> Any:
    """A reader of whole numbers of at least this."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            up = "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}{up}, found {text!r}")
        return number

    return read


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else _whole(1)(text)


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers of components: one, several with commas, ranges with a hyphen."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, hyphen, last = part.partition("-")
        low = _whole(1)(first.strip())
        high = _whole(low)(last.strip()) if hyphen else low
        numbers |= set(range(low, high + 1))
    return tuple(sorted(numbers))


def _equation(text: str) -> tuple[str, str]:
    column, sign, level = text.partition("=")
    if not (column and sign and level):
        raise argparse.ArgumentTypeError(f"expected COLUMN=LEVEL, found {text!r}")
    return column, level
