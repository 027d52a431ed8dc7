"""The contract of a random effect of groups, tested on a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice.effects._effect import Effect
from pyrosplice.effects._level_spaces import NOTHING
from pyrosplice.errors import InvalidArgumentError, NotStatedError
from pyrosplice.testing._problems import Problems

Array = NDArray[np.float64]


def check_effect(effect: Effect, table: pd.DataFrame) -> None:
    """Test a random effect of groups on a table that it is for.

    Labels, columns and their names; that rows in another order are in the same groups, and have the same columns; that
    the basis has one matrix for each parameter, none of which says what others say; that related groups are related by
    their names, whatever their order; and that engines take it.

    Parameters
    ----------
    effect
        An object of a subclass of :class:`~pyrosplice.effects.Effect`.
    table
        One row an observation.

    Raises
    ------
    ContractError
        With every finding in words (an ``AssertionError``).

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.effects import Effect
    >>> from pyrosplice.testing import check_effect
    >>> class Donor(Effect):
    ...     def levels(self, table):
    ...         return table["donor"]
    >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
    >>> check_effect(Donor(), cells)
    """
    problems = Problems(effect)
    if not isinstance(effect, Effect):
        problems.add("expected an object of a subclass of pyrosplice.effects.Effect.")
        problems.finish()
    if not isinstance(effect.name, str) or not effect.name.strip():
        problems.add(f"name: expected text, found {effect.name!r}.")
    order = np.random.default_rng(0).permutation(len(table))
    labels = _labels(problems, effect, table)
    if labels is not None:
        _levels_in_order(problems, labels, _labels(problems, effect, table.iloc[order]), order)
        _root(problems, effect, labels.levels)
    columns = _columns(problems, effect, table)
    if columns is not None:
        again = _columns(problems, effect, table.iloc[order])
        if again is not None:
            found, expected = torch.from_numpy(again), torch.from_numpy(columns[order])
            problems.close("columns() of rows in another order", found, expected, tolerance=1e-9)
        _basis(problems, effect, table, columns.shape[1])
    if not problems.found:
        try:
            effect.bind(table)
        except InvalidArgumentError as error:
            problems.add(f"bind(): {error}")
    problems.finish()


def _labels(problems: Problems, effect: Effect, table: pd.DataFrame) -> Labels | None:
    try:
        labels = read_labels(effect.levels(table), "levels()")
    except (InvalidArgumentError, NotStatedError) as error:
        problems.add(str(error))
        return None
    if len(labels.codes) != len(table):
        problems.add(f"levels(): expected {len(table)} labels, one a row, found {len(labels.codes)}.")
        return None
    return labels


def _levels_in_order(problems: Problems, labels: Labels, again: Labels | None, order: NDArray[np.intp]) -> None:
    if again is None:
        return
    moved = np.flatnonzero(labels.names[order] != again.names)
    if len(moved):
        problems.add(
            f"levels() of rows in another order: {len(moved)} of {len(order)} rows are in another group; a row's group "
            "must follow from the row."
        )


def _columns(problems: Problems, effect: Effect, table: pd.DataFrame) -> Array | None:
    values = np.asarray(effect.columns(table), dtype=np.float64)
    if values.ndim != 2 or len(values) != len(table) or values.shape[1] == 0:
        problems.add(f"columns(): expected shape ({len(table)}, effects of a group), found {values.shape}.")
        return None
    if not np.isfinite(values).all():
        problems.add("columns(): expected finite numbers.")
        return None
    return values


def _basis(problems: Problems, effect: Effect, table: pd.DataFrame, q: int) -> None:
    """One matrix a parameter, each with a meaning of its own for the covariance."""
    given = effect.columns(table)
    names = [str(name) for name in given.columns] if isinstance(given, pd.DataFrame) else [str(k + 1) for k in range(q)]
    basis = np.asarray(effect.basis(names), dtype=np.float64)
    if basis.ndim != 3 or basis.shape[1:] != (q, q) or not len(basis):
        problems.add(f"basis(): expected shape (parameters, {q}, {q}), found {basis.shape}.")
        return
    if not np.isfinite(basis).all():
        problems.add("basis(): expected finite numbers.")
        return
    if not np.array_equal(basis, np.asarray(effect.basis(names))):
        problems.add("basis(): expected the same matrices at every call; L(psi) is linear in psi.")
    flat = basis.reshape(len(basis), -1)
    if np.linalg.matrix_rank(flat, tol=NOTHING * np.abs(flat).max()) < len(basis):
        problems.add("basis(): expected independent matrices; one of them is a combination of the others.")
        return
    psi = np.random.default_rng(0).standard_normal(len(basis)) + 2.0
    root = np.einsum("j,jkl->kl", psi, basis)
    if np.linalg.matrix_rank(root) < q:
        problems.add("basis(): L(psi) is singular for every psi; some combination of the effects never varies.")
    slopes = basis @ root.T
    slopes = (slopes + slopes.transpose(0, 2, 1)).reshape(len(basis), -1)
    if np.linalg.matrix_rank(slopes, tol=1e-7 * np.abs(slopes).max()) < len(basis):
        problems.add(
            f"basis(): {len(basis)} parameters say less of the covariance L L' than that; different ones give the same."
        )


def _root(problems: Problems, effect: Effect, levels: tuple[str, ...]) -> None:
    """Shape, rank, and that a group's relations go by its name."""
    given, size = effect.root(levels), len(levels)
    if given is None:
        return
    root = np.asarray(given, dtype=np.float64)
    if root.shape != (size, size) or not np.isfinite(root).all():
        problems.add(f"root(): expected finite numbers, shape ({size}, {size}), found {root.shape}.")
        return
    if np.linalg.matrix_rank(root) < size:
        problems.add("root(): expected a matrix of full rank; some groups say no more than others.")
    turned = np.asarray(effect.root(levels[::-1]), dtype=np.float64)[::-1]
    covariance, other = (torch.from_numpy(np.ascontiguousarray(r @ r.T)) for r in (root, turned))
    problems.close("root() R R' of groups in another order", other, covariance, tolerance=1e-8)
