r"""Linear constraints on coefficients as an affine map, :math:`\theta = C \theta_r + d`.

Every form of constraint becomes rows of :math:`A\theta = c`; elimination leaves each coefficient that a constraint
binds as a function of the free ones, which keep their names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._tables.cells import Cells, as_numbers
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import by_name
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
ZERO = 1e-10


@dataclass(frozen=True)
class Constraints:
    """Linear constraints: matrix C ``(P, F)``, ``shift`` d ``(P,)`` and the names of the F free coefficients."""

    matrix: Array
    shift: Array
    free_names: list[str]

    def full(self, reduced: Array) -> Array:
        """Work out all coefficients ``(P, G)`` from the free ones ``(F, G)``."""
        return self.matrix @ reduced + self.shift[:, None]


def no_constraints(names: Sequence[str]) -> Constraints:
    """The identity."""
    return Constraints(np.eye(len(names)), np.zeros(len(names)), list(names))


def resolve_constraints(
    constraints: Any, design: DesignMatrix, sample_description: pd.DataFrame | None, *, argument: str
) -> Constraints:
    """Any documented form of constraints for the columns of ``design``.

    Parameters
    ----------
    constraints
        None; the matrix C itself ``(P, F)`` (identity rows for free coefficients, −1 where one is bound to minus
        others; note that the original documentation describes its transpose); a dict ``{"batch": "condition"}``;
        or strings such as ``"batch1 + batch2 = 0"``, ``"2*a - b = 1"``.

    Raises
    ------
    InvalidArgumentError
        For constraints that contradict each other, unknown coefficients, or a matrix of another shape.
    """
    names = design.names
    if constraints is None:
        return no_constraints(names)
    if isinstance(constraints, (np.ndarray, pd.DataFrame)):
        return _from_matrix(
            as_numbers(by_name(constraints, pd.Index(names), argument, what="coefficient"), argument), names, argument
        )
    if isinstance(constraints, Mapping):
        rows = _from_groups(constraints, design, sample_description, argument)
    elif isinstance(constraints, (list, tuple)) and all(isinstance(c, str) for c in constraints):
        rows = [(c, *parse_constraint(c, names, argument)) for c in constraints]
    else:
        raise InvalidArgumentError(
            f"{argument}: expected None, ndarray, dict or strings, found {type(constraints).__name__}."
        )
    return eliminate(rows, names, argument)


def _from_matrix(matrix: Array, names: Sequence[str], argument: str) -> Constraints:
    if matrix.ndim != 2 or matrix.shape[0] != len(names) or not 1 <= matrix.shape[1] <= len(names):
        raise InvalidArgumentError(
            f"{argument}: expected the matrix C of θ = C θ_free, shape ({len(names)}, free): one row for every column "
            f"of the design {list(names)}; found shape {matrix.shape}."
        )
    if not np.isfinite(matrix).all():
        raise InvalidArgumentError(f"{argument}: NaN or infinite entries.")
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        raise InvalidArgumentError(f"{argument}: the columns of the constraint matrix are linearly dependent.")
    free: list[str] = []
    for k in range(matrix.shape[1]):
        alone = [i for i in range(len(names)) if matrix[i, k] == 1 and np.count_nonzero(matrix[i]) == 1]
        free.append(names[alone[0]] if alone else f"free{k}")
    return Constraints(matrix, np.zeros(len(names)), free)


def _from_groups(
    constraints: Mapping[str, str], design: DesignMatrix, sample_description: pd.DataFrame | None, argument: str
) -> list[tuple[str, Array, float]]:
    rows: list[tuple[str, Array, float]] = []
    if sample_description is None:
        raise InvalidArgumentError(f"{argument}: a dict needs sample_description.")
    cells = Cells(len(sample_description), None, sample_description)
    for factor, group in constraints.items():
        if group in constraints:
            raise InvalidArgumentError(f"{argument}: {group!r} is constrained itself; group by a free factor.")
        ours = cells.levels(factor, argument)
        groups = cells.levels(group, argument) if group != "1" else read_labels(["1"] * cells.n, argument)
        for code, value in enumerate(groups.levels):
            row = np.zeros(len(design.names))
            for level in np.unique(ours.codes[groups.codes == code]):
                name = f"{factor}[{ours.levels[level]}]"
                if name not in design.names:
                    raise InvalidArgumentError(f"{argument}: the design has no column {name!r}, found {design.names}.")
                row[design.names.index(name)] = 1
            rows.append((f"levels of {factor} within {group}={value}", row, 0.0))
    return rows


def eliminate(rows: Sequence[tuple[str, Array, float]], names: Sequence[str], argument: str) -> Constraints:
    """Solve ``row @ θ = value`` for one coefficient a row, the last that it mentions."""
    p = len(names)
    solved: dict[int, tuple[Array, float]] = {}  # bound coefficient -> (weights of the others, shift)
    for label, row, value in rows:
        row, value = row.astype(float).copy(), float(value)
        for j, (weights, shift) in solved.items():
            value -= row[j] * shift
            row = np.where(np.arange(p) == j, 0.0, row) + row[j] * weights
        size = np.abs(row).max()
        if size < ZERO:
            if abs(value) > ZERO:
                raise InvalidArgumentError(f"{argument}: {label!r} contradicts the constraints before it.")
            warnings.warn(f"{argument}: {label!r} already follows from the others.", UserWarning, stacklevel=3)
            continue
        j = int(np.flatnonzero(np.abs(row) > ZERO)[-1])
        weights, shift = -row / row[j], value / row[j]
        weights[j] = 0.0
        for k, (old, old_shift) in solved.items():
            solved[k] = (np.where(np.arange(p) == j, 0.0, old) + old[j] * weights, old_shift + old[j] * shift)
        solved[j] = (weights, shift)
    free = [i for i in range(p) if i not in solved]
    if not free:
        raise InvalidArgumentError(f"{argument}: the constraints leave no coefficient free.")
    matrix, offset = np.zeros((p, len(free))), np.zeros(p)
    matrix[free, np.arange(len(free))] = 1.0
    for j, (weights, shift) in solved.items():
        matrix[j], offset[j] = weights[free], shift
    return Constraints(matrix, offset, [names[i] for i in free])


def parse_constraint(text: str, names: Sequence[str], argument: str) -> tuple[Array, float]:
    """Coefficients of ``θ`` and the constant of one affine equality, as ``(row, value)`` with ``row @ θ = value``."""
    sides = text.split("=")
    if len(sides) != 2 or not all(s.strip() for s in sides):
        raise InvalidArgumentError(f"{argument}: expected one '=' with two sides in {text!r}.")
    (left, c), (right, d) = (_parse_side(side, names, text, argument) for side in sides)
    return left - right, d - c


def _parse_side(side: str, names: Sequence[str], text: str, argument: str) -> tuple[Array, float]:
    alias = _aliases(names)
    keys = sorted(alias, key=len, reverse=True)
    row, constant, rest, first = np.zeros(len(names)), 0.0, side.strip(), True
    while rest:
        sign = re.match(r"[+-]", rest)
        if sign is None and not first:
            raise InvalidArgumentError(f"{argument}: expected + or - before {rest!r} in {text!r}.")
        factor = -1.0 if sign and sign.group() == "-" else 1.0
        rest = rest[1:].lstrip() if sign else rest
        name = next((k for k in keys if rest.startswith(k) and not re.match(r"\w", rest[len(k) :])), None)
        number = None if name else re.match(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)\s*(\*?)\s*", rest)
        if number:
            factor *= float(number.group(1))
            rest = rest[number.end() :]
            name = next((k for k in keys if rest.startswith(k) and not re.match(r"\w", rest[len(k) :])), None)
            if name is None and number.group(2):
                raise InvalidArgumentError(
                    f"{argument}: unknown coefficient {rest!r} in {text!r}; found {list(names)}."
                )
        if name is not None:
            row[alias[name]] += factor
            rest = rest[len(name) :].lstrip()
        elif number:
            constant += factor
        else:
            raise InvalidArgumentError(f"{argument}: unknown coefficient {rest!r} in {text!r}; found {list(names)}.")
        first = False
    return row, constant


def _aliases(names: Sequence[str]) -> dict[str, int]:
    """Ways to write each coefficient: its name, ``factor[level]``, ``factorlevel``, and the level where unambiguous."""
    alias = {name: i for i, name in enumerate(names)}
    seen: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        match = re.fullmatch(r"([^\[\]:]+)\[(?:T\.)?([^\[\]]+)\]", name)
        if match:
            factor, level = match.groups()
            for key in (f"{factor}[{level}]", f"{factor}[T.{level}]", f"{factor}{level}", level):
                seen.setdefault(key, []).append(i)
    for key, where in seen.items():
        if key not in alias and len(where) == 1:
            alias[key] = where[0]
    return alias
