"""What is tested: covariates, factors and contrasts of their coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyrosplice._usage.reading.design import Design
from pyrosplice.errors import InvalidArgumentError, check_option

By = Literal["covariate", "factor"]
Variance = Literal["robust", "model", "het"]
CovarianceLaw = Literal["averaged", "plugin"]
TestLaw = Literal["averaged", "plugin", "surrogates"]


@dataclass(frozen=True)
class Term:
    """Covariates that are tested together.

    Attributes
    ----------
    name
        Name of the covariate or factor.
    columns
        Their positions, linearly independent beside the nuisance.
    nuisance
        Positions of the covariates that the test adjusts for.
    """

    name: str
    columns: tuple[int, ...]
    nuisance: tuple[int, ...]

    @property
    def full(self) -> tuple[int, ...]:
        """Covariates of the larger model."""
        return tuple(sorted(self.columns + self.nuisance))


@dataclass(frozen=True)
class Contrast:
    """Combinations ``(C, P)`` of the coefficients, levels of a factor centred, that are tested to be zero together."""

    name: str
    rows: NDArray[np.float64]

    @property
    def columns(self) -> list[int]:
        """Covariates whose coefficients it combines."""
        return np.nonzero(self.rows.any(0))[0].tolist()


def terms_of(design: Design, by: By) -> list[Term]:
    """List the terms to test, one a covariate or a factor.

    A level by itself is tested without the factor's other levels: this level against all others.
    """
    check_option("by", by, ("covariate", "factor"))
    if by == "covariate":
        return [
            Term(name, (i,), tuple(j for j in design.estimable if design.factors[j] != design.factors[i]))
            for i, name in enumerate(design.names)
        ]
    terms = []
    for term in dict.fromkeys(design.terms):
        own = [i for i, name in enumerate(design.terms) if name == term]
        columns = tuple(i for i in own if i in design.estimable)
        nuisance = tuple(i for i in design.estimable if i not in own)
        terms.append(Term(design.names[own[0]] if len(own) == 1 else term, columns, nuisance))
    return terms


def contrasts_of(design: Design, by: By, given: object) -> list[Contrast]:
    """The contrasts that are asked for, or one a covariate or factor.

    Parameters
    ----------
    given
        ``{name: {covariate: weight, …}}``, ``{name: weights (P,) or (C, P)}``, or a matrix ``(T, P)`` of T contrasts of
        one row each; None for those of ``by``.

    Raises
    ------
    InvalidArgumentError
        Unknown covariates, another number of weights than covariates, weights that are not finite, rows that are zero
        or depend on each other.
    """
    unit = np.eye(len(design.names))
    if given is None:
        return [Contrast(term.name, unit[list(term.columns)]) for term in terms_of(design, by)]
    if not isinstance(given, Mapping):
        rows = _rows("contrasts", given)
        given = {f"contrast_{i + 1}": row for i, row in enumerate(rows)}
    if not given:
        raise InvalidArgumentError("contrasts: expected at least one, found none.")
    return [Contrast(str(name), _weights(str(name), value, design)) for name, value in given.items()]


def same_nuisance(terms: Sequence[Term]) -> list[list[int]]:
    """Positions of the terms, those with the same nuisance together."""
    return [
        [t for t, term in enumerate(terms) if term.nuisance == nuisance]
        for nuisance in dict.fromkeys(term.nuisance for term in terms)
    ]


def _rows(argument: str, given: object) -> NDArray[np.float64]:
    try:
        return np.atleast_2d(np.asarray(given, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{argument}: expected weights, numbers, such as {{'a or b': {{'region_a': 1, 'region_b': -1}}}}, found "
            f"{given!r}."
        ) from error


def _weights(name: str, given: object, design: Design) -> NDArray[np.float64]:
    """Rows ``(C, P)`` of one contrast, checked."""
    if isinstance(given, Mapping):
        unknown = [str(covariate) for covariate in given if covariate not in design.names]
        if unknown:
            raise InvalidArgumentError(
                f"contrasts[{name!r}]: expected covariates among {list(design.names)}, found {unknown}."
            )
        rows = _rows(f"contrasts[{name!r}]", [given.get(covariate, 0.0) for covariate in design.names])
    else:
        rows = _rows(f"contrasts[{name!r}]", given)
    if rows.ndim != 2 or rows.shape[1] != len(design.names):
        raise InvalidArgumentError(
            f"contrasts[{name!r}]: expected {len(design.names)} weights, one a covariate {list(design.names)}, found "
            f"shape {rows.shape}."
        )
    if not np.isfinite(rows).all():
        raise InvalidArgumentError(f"contrasts[{name!r}]: expected finite weights, found {rows.tolist()}.")
    free = rows @ design.coding[:-1, :-1]
    if np.linalg.matrix_rank(free, tol=1e-9 * np.abs(rows).max()) < len(rows):
        raise InvalidArgumentError(
            f"contrasts[{name!r}]: expected rows that are linearly independent and not zero (the effects of a factor's "
            f"levels sum to zero by themselves), found {rows.tolist()}."
        )
    return rows
