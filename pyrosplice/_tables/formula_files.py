"""Designs of formulas as data for a file, and back: what a formula did is stored, and no code is ever evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import FormulaicError

from pyrosplice._io.codec import check_keys
from pyrosplice._io.stored_values import to_json
from pyrosplice._tables.formula_grammar import is_plain
from pyrosplice._tables.formulas import FormulaDesign, design_of, formula_source
from pyrosplice.errors import InvalidArgumentError, ModelFileError

PARTS = ("formula", "names", "levels", "numeric", "reference", "state")


def pack(design: FormulaDesign, reference: Mapping[str, float]) -> dict[str, Any] | None:
    """What a file needs to make the design's columns again; None for a formula that is more than a formula.

    Parameters
    ----------
    reference
        A value of each variable taken as a number at which the formula can be evaluated.
    """
    if not is_plain(design.formula, design.columns):
        return None
    state = dict(design.spec.transform_state)
    try:
        to_json(state, "state")
    except InvalidArgumentError:
        return None
    levels = {name: list(levels) for name, levels in design.levels.items()}
    parts = (design.formula, design.names, levels, list(design.numeric), dict(reference), state)
    return dict(zip(PARTS, parts, strict=True))


def unpack(stored: Mapping[str, Any]) -> FormulaDesign:
    """The design of :func:`pack`, without rows.

    Raises
    ------
    ModelFileError
        Where the formula is not plain, or does not make the columns that the file names.
    """
    check_keys(stored, PARTS, "design.recipe")
    formula, levels, numeric = stored["formula"], stored["levels"], tuple(stored["numeric"])
    check_plain(formula, (*levels, *numeric))
    n = max([len(v) for v in levels.values()], default=1)
    table = pd.DataFrame(
        {name: pd.Categorical([v[i % len(v)] for i in range(n)], categories=v) for name, v in levels.items()}
        | {name: np.full(n, float(stored["reference"].get(name, 0.0))) for name in numeric},
        index=range(n),
    )
    try:
        text, _, aliases = formula_source(formula, [*levels, *numeric], "path")
        spec = ModelSpec(formula=Formula(text), transform_state=stored["state"], na_action="ignore")
        matrix = spec.get_model_matrix(table.rename(columns=aliases))
        design = design_of(formula, matrix, {k: tuple(v) for k, v in levels.items()}, numeric, aliases, "path")
        if design.names != list(stored["names"]):
            raise ValueError(f"found {design.names}")
        return design
    except (FormulaicError, InvalidArgumentError, ArithmeticError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"path: the formula {formula!r} of the file does not make its columns ({error})."
        ) from error


def check_plain(formula: Any, columns: Any = ()) -> None:
    """Raise where a formula of a file is more than names, numbers, operators and known functions."""
    if not isinstance(formula, str) or not is_plain(formula, columns):
        raise ModelFileError(
            f"path: the file's formula {formula!r} holds more than names, numbers, operators and known functions; it "
            "is code, and is not evaluated."
        )
