"""Covariates: from arrays, tables, columns of ``obs`` or a formula to one checked matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from formulaic import model_matrix
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.linalg.rank import CONSTANT, collinear_columns


@dataclass(frozen=True)
class Design:
    """Covariates of every spot, without the intercept (the models have their own).

    Attributes
    ----------
    values
        ``(N, P)``, float64.
    names
        P names, unique.
    factors
        For each covariate the name of what it came from. Covariates of one factor are the levels of a categorical
        column: they sum to one, so with an intercept one of them is redundant.
    given_terms
        For each covariate the term of a formula that it came from; empty where there was no formula.
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]
    factors: tuple[str, ...]
    given_terms: tuple[str, ...] = ()

    def take(self, spots: NDArray[Any]) -> Design:
        """The same covariates on some spots: a mask, or positions in any order."""
        return replace(self, values=self.values[spots])

    def only(self, columns: Sequence[int]) -> Design:
        """Some of the covariates, which must be linearly independent; each is then a factor of its own."""
        names = tuple(self.names[i] for i in columns)
        return Design(np.ascontiguousarray(self.values[:, list(columns)]), names, names)

    @property
    def terms(self) -> tuple[str, ...]:
        """What belongs together: for each covariate its term of the formula, else its factor."""
        return self.given_terms or self.factors

    @property
    def estimable(self) -> list[int]:
        """Covariates left when the first level of every factor is the reference."""
        repeated = {factor for factor in self.factors if self.factors.count(factor) > 1}
        first = {self.factors.index(factor) for factor in repeated}
        return [i for i in range(len(self.names)) if i not in first]

    @property
    def reduced(self) -> NDArray[np.float64]:
        """Covariates that can be estimated together, ``(N, P')``: all but the first level of every factor."""
        return self.values[:, self.estimable]

    @property
    def coding(self) -> NDArray[np.float64]:
        """Matrix ``(P + 1, P' + 1)`` from coefficients of ``reduced`` and intercept to those of all covariates.

        Effects of the levels of a factor are centred: they sum to zero, and the intercept takes up their mean, so that
        the linear predictor stays the same and no level is special.
        """
        kept = self.estimable
        matrix = np.zeros((len(self.names) + 1, len(kept) + 1))
        matrix[kept, np.arange(len(kept))] = 1.0
        matrix[-1, -1] = 1.0
        for factor in {factor for factor in self.factors if self.factors.count(factor) > 1}:
            levels = [i for i, name in enumerate(self.factors) if name == factor]
            mean = matrix[levels].mean(0)
            matrix[levels] -= mean
            matrix[-1] += mean
        return matrix

    def check(self) -> None:
        """Raise if a covariate is constant, or a combination of the intercept and the others."""
        largest = np.abs(self.values).max(axis=0, initial=0.0)
        constant = np.flatnonzero(np.ptp(self.values, axis=0) <= CONSTANT * largest)
        if len(constant):
            name = self.names[constant[0]]
            raise InvalidArgumentError(
                f"design_mtx: expected covariates that vary between spots, found constant {name!r} "
                f"(value {self.values[0, constant[0]]:g}); the models have an intercept already."
            )
        dependent = collinear_columns(torch.from_numpy(self.reduced))
        if dependent:
            name = self.names[self.estimable[dependent[0]]]
            raise InvalidArgumentError(
                f"design_mtx: expected linearly independent covariates, found {name!r} collinear with the intercept "
                "and the covariates before it. Leave it out."
            )


def build_design(design_mtx: Any, obs: pd.DataFrame, *, covariate_names: Sequence[str] | None = None) -> Design:
    """Covariates of the spots of ``obs``.

    Parameters
    ----------
    design_mtx
        Array, tensor or sparse matrix ``(N, P)`` or ``(N,)``; DataFrame with N rows (matched by index where it has
        the spots' names, by position otherwise); name of a column of ``obs`` or a list of names; or a one-sided
        formula on ``obs`` such as ``"~ region + log(total)"``. Text, boolean and categorical columns become one
        covariate a level, ``column_level``; the columns of arrays are called ``factor_1``, …
    obs
        Table of spots.
    covariate_names
        P names to use instead.

    Raises
    ------
    InvalidArgumentError
        A column that ``obs`` lacks; another number of rows than spots; NaN; wrong number of names.
    """
    table, factors, terms = _table(design_mtx, obs)
    values = np.ascontiguousarray(table.to_numpy(dtype=np.float64))
    if len(values) != len(obs):
        raise InvalidArgumentError(f"design_mtx: expected {len(obs)} rows (spots), found {len(values)}.")
    names = [str(name) for name in (table.columns if covariate_names is None else covariate_names)]
    if len(names) != values.shape[1]:
        raise InvalidArgumentError(f"covariate_names: expected {values.shape[1]} names, found {len(names)}: {names}.")
    if len(set(names)) != len(names):
        raise InvalidArgumentError(f"covariate_names: expected unique names, found {names}.")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise InvalidArgumentError(
            f"design_mtx: expected finite values, found {len(wrong)} missing (first: {names[column]!r} of spot "
            f"{obs.index[row]!r})."
        )
    return Design(values, tuple(names), tuple(factors), tuple(terms))


def _table(design_mtx: Any, obs: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Numeric columns and, for each, the name of its source and its term in a formula (none without formula)."""
    if isinstance(design_mtx, str) and "~" in design_mtx:
        return _from_formula(design_mtx, obs)
    return *_without_formula(design_mtx, obs), []


def _without_formula(design_mtx: Any, obs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    if isinstance(design_mtx, str):
        return _from_columns(_columns([design_mtx], obs))
    if isinstance(design_mtx, pd.Series):
        design_mtx = design_mtx.to_frame()
    if isinstance(design_mtx, pd.DataFrame):
        return _from_columns(_aligned(design_mtx, obs))
    if isinstance(design_mtx, list | tuple) and all(isinstance(name, str) for name in design_mtx):
        return _from_columns(_columns(list(design_mtx), obs))
    return _from_array(design_mtx)


def _from_array(design_mtx: Any) -> tuple[pd.DataFrame, list[str]]:
    if isinstance(design_mtx, torch.Tensor):
        design_mtx = design_mtx.detach().to_dense().cpu().numpy()
    elif sp.issparse(design_mtx):
        design_mtx = design_mtx.toarray()
    try:
        values = np.asarray(design_mtx, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "design_mtx: expected an array, tensor, DataFrame, column(s) of adata.obs or a formula, found "
            f"{type(design_mtx).__name__} that is not numeric."
        ) from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] == 0:
        raise InvalidArgumentError(f"design_mtx: expected shape (n_spots, n_factors), found {values.shape}.")
    names = [f"factor_{i + 1}" for i in range(values.shape[1])]
    return pd.DataFrame(values, columns=names), names


def _columns(names: list[str], obs: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in names if name not in obs.columns]
    if missing or not names:
        raise InvalidArgumentError(
            f"design_mtx: expected columns of adata.obs, which has {list(map(str, obs.columns))}; found {missing}."
        )
    return obs[names]


def _aligned(table: pd.DataFrame, obs: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the spots: by name if it has the spots' names, else by position."""
    if len(table) != len(obs) or not table.index.isin(obs.index).any():
        return table
    if not (table.index.is_unique and table.index.isin(obs.index).all()):
        raise InvalidArgumentError(
            "design_mtx: expected a DataFrame indexed by all the names of the spots or by none, found some of them."
        )
    return table.loc[obs.index]


def _from_columns(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    pieces, factors = [], []
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            piece = column.astype(np.float64).to_frame(str(name))
        else:
            piece = pd.get_dummies(column, prefix=str(name), dtype=np.float64)
            piece = piece.loc[:, piece.any()]  # a categorical may list levels that no spot has
            piece[column.isna()] = np.nan
        pieces.append(piece)
        factors += [str(name)] * piece.shape[1]
    return pd.concat(pieces, axis=1), factors


def _from_formula(formula: str, obs: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    matrix = model_matrix(formula, obs, na_action="ignore")
    indices = matrix.model_spec.term_indices
    term_of = {matrix.columns[i]: str(term) for term, columns in indices.items() for i in columns}
    table = pd.DataFrame(matrix).drop(columns="Intercept", errors="ignore")
    if table.shape[1] == 0:
        raise InvalidArgumentError(f"design_mtx: formula {formula!r} has no covariates beside the intercept.")
    names = [str(name) for name in table.columns]
    return table, names, [term_of[name] for name in names]
