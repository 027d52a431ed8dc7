"""What a model of expression is fitted to: every argument checked, and paired with the cells and genes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.call_options import is_default, known_options
from pyrosplice._expression.constraints import Constraints, resolve_constraints
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine.row_source import Design
from pyrosplice._expression.formula_design import DesignMatrix, check_full_rank, from_formula, from_matrix
from pyrosplice._expression.mixed.cell_effects import EffectsRequest
from pyrosplice._expression.noise_models import check_multiplies, likelihood_of
from pyrosplice._expression.positions import Spots
from pyrosplice._expression.size_factors import resolve_size_factors
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.formulas import complete_rows
from pyrosplice._tables.names import by_name
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]


@dataclass(frozen=True)
class InputData:
    """What a model is fitted to.

    Attributes
    ----------
    counts
        Counts, read in blocks.
    location, scale
        Designs with all columns.
    constraints_loc, constraints_scale
        How the full coefficients follow from the free ones.
    size_factors : (N,) or None
        Size factors as given.
    offset : (N,) or (N, G)
        What they, and gene-wise offsets, add to the location predictor.
    weights
        Observation weights, or None.
    cells
        The cells with their table; ``cells.used`` says which of the data were fitted where some were left out.
    effects
        Random effects of the cells that are fitted, or None.
    """

    counts: CountMatrix
    location: DesignMatrix
    scale: DesignMatrix
    constraints_loc: Constraints
    constraints_scale: Constraints
    size_factors: Array | None
    offset: Array
    weights: Array | None
    cells: Cells
    likelihood: Likelihood
    effects: BoundEffects | None = None

    @property
    def sample_description(self) -> pd.DataFrame | None:
        """The sample table of the cells that are fitted, in their order."""
        return self.cells.table

    def design(self) -> Design:
        """The design of the free coefficients."""
        c, s = self.constraints_loc, self.constraints_scale
        fixed = self.location.matrix @ c.shift
        offset = self.offset + (fixed if self.offset.ndim == 1 else fixed[:, None])
        return Design(
            self.location.matrix @ c.matrix,
            self.scale.matrix @ s.matrix,
            offset,
            self.scale.matrix @ s.shift,
            self.weights,
        )


def prepare(  # noqa: PLR0913 (what fit.model takes)
    data: Any,
    *,
    formula_loc: str | None,
    formula_scale: str | None = "~1",
    as_numeric: Sequence[str] | str = (),
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    dmat_loc: Any = None,
    dmat_scale: Any = None,
    constraints_loc: Any = None,
    constraints_scale: Any = None,
    noise_model: str | Likelihood = "nb",
    size_factors: Any = None,
    size_factors_logged: bool = True,
    offsets: Array | None = None,
    weights: Array | None = None,
    layer: str | None = None,
    missing: str | NDArray[np.bool_] = "raise",
    effects: EffectsRequest | None = None,
) -> InputData:
    """Check every argument of ``fit.model`` and turn it into what the estimator fits."""
    check_switches(size_factors_logged=size_factors_logged)
    likelihood = likelihood_of(noise_model)
    if not likelihood.free:
        given = {"formula_scale": formula_scale, "dmat_scale": dmat_scale, "constraints_scale": constraints_scale}
        _check_no_scale(likelihood, {name: value for name, value in given.items() if not is_default(value, "~1")})
        formula_scale, dmat_scale, constraints_scale = "~1", None, None
    counts = CountMatrix(data, gene_names=gene_names, layer=layer, counts=likelihood.of_counts)
    cells = Cells.of(data, sample_description, counts.shape[0])
    formula_loc, asked = _random_terms(formula_loc, dmat_loc, effects or EffectsRequest(), cells, as_numeric)
    read = {"loc": (formula_loc, dmat_loc), "scale": (formula_scale, dmat_scale)}
    formulas = {part: None if dmat is not None else formula for part, (formula, dmat) in read.items()}
    cells = _in_use(cells, missing, formulas, as_numeric, asked)
    counts = counts if cells.used is None else counts.take(np.flatnonzero(cells.used))
    parts: list[tuple[DesignMatrix, Constraints]] = []
    for formula, dmat, constraints, part in (
        (formula_loc, dmat_loc, constraints_loc, "loc"),
        (formula_scale, dmat_scale, constraints_scale, "scale"),
    ):
        design = _design(formula, dmat, constraints, part, cells, as_numeric)
        resolved = resolve_constraints(constraints, design, cells.table, argument=f"constraints_{part}")
        check_full_rank(
            design.matrix @ resolved.matrix, resolved.free_names, _source(dmat, part), hint=design.labels_hint
        )
        parts.append((design, resolved))
    factors = resolve_size_factors(size_factors, cells)
    if factors is not None and size_factors_logged:
        check_multiplies(likelihood)
    offset = np.zeros(cells.n_used) if factors is None else np.log(factors) if size_factors_logged else factors
    if offsets is not None:
        offset = offset[:, None] + _per_gene("offsets", offsets, cells, counts)
    observation_weights = _weights(weights, cells, counts)
    _check_identified(parts, observation_weights)
    (location, free_location), (scale, free_scale) = parts
    effort = (factors, offset, observation_weights)
    bound = asked.bind(cells, Spots.of(data))
    if bound is not None:
        check_mixed(scale, observation_weights)
    return InputData(counts, location, scale, free_location, free_scale, *effort, cells, likelihood, bound)


def _random_terms(
    formula: str | None, dmat: Any, asked: EffectsRequest, cells: Cells, as_numeric: Sequence[str] | str
) -> tuple[str | None, EffectsRequest]:
    """A formula without its random terms, and all random effects that were asked for."""
    if formula is None:
        return formula, asked
    rest, asked_too = asked.with_formula(formula, cells, "formula_loc", as_numeric)
    if dmat is not None and rest != formula:
        raise InvalidArgumentError(
            f"formula_loc: dmat_loc is in its place, and {formula!r} has random terms; give these as "
            "effects=[pyrosplice.effects.Groups(...)]."
        )
    return rest, asked_too


def check_mixed(scale: DesignMatrix, weights: Array | None) -> None:
    """Refuse what a fit with random effects has not."""
    if scale.matrix.shape[1] > 1:
        raise InvalidArgumentError(
            f"formula_scale: a gene has one dispersion in a fit with random effects, found {', '.join(scale.names)}."
        )
    if weights is not None:
        raise InvalidArgumentError("weights: a fit with random effects takes no observation weights; leave them out.")


def _check_no_scale(likelihood: Likelihood, asked: Mapping[str, Any]) -> None:
    """Warn of options of a scale that the likelihood does not have; refuse those of one that it holds."""
    if asked and likelihood.hyperparameters:
        name = next(iter(asked))
        raise InvalidArgumentError(
            f"{name}: {likelihood!r} holds its scale, found {asked[name]!r}; leave one of the two out."
        )
    known_options("fit.model", asked, (), dict.fromkeys(asked, f"{likelihood.name} noise has no scale"))


def _in_use(
    cells: Cells,
    missing: Any,
    formulas: Mapping[str, str | None],
    as_numeric: Sequence[str] | str,
    asked: EffectsRequest,
) -> Cells:
    """The cells to fit: all, those of a mask, or those that have every label and number which the formulas use."""
    if isinstance(missing, str):
        check_option("missing", missing, ("raise", "drop"))
        if missing == "raise" or cells.table is None:
            return cells
        used = asked.complete_rows(cells)
        for part, formula in formulas.items():
            if formula is not None:
                used &= complete_rows(formula, cells.table, f"formula_{part}", as_numeric=as_numeric)
    else:
        used = np.asarray(cells.rows(missing, "missing"))
        if used.dtype != bool or used.shape != (cells.n,):
            raise InvalidArgumentError(f"missing: expected 'raise', 'drop' or a mask of {cells.n} cells.")
    if not used.any():
        raise InvalidArgumentError("missing: no cell is left to fit.")
    return cells if used.all() else cells.keep(used)


def _source(dmat: Any, part: str) -> str:
    return f"formula_{part}" if dmat is None else f"dmat_{part}"


def _design(
    formula: str | None, dmat: Any, constraints: Any, part: str, cells: Cells, as_numeric: Sequence[str] | str
) -> DesignMatrix:
    if dmat is not None:
        return from_matrix(dmat, n_cells=cells.n_used, argument=f"dmat_{part}", cells=cells)
    if formula is None:
        raise InvalidArgumentError(f"formula_{part}: expected a formula, or a design in dmat_{part}.")
    every_level = list(constraints) if isinstance(constraints, Mapping) else []
    argument, n_cells = f"formula_{part}", cells.n_used
    return from_formula(
        formula, cells.table, as_numeric=as_numeric, n_cells=n_cells, argument=argument, full_rank_except=every_level
    )


def _per_gene(name: str, value: Any, cells: Cells, counts: CountMatrix) -> Array:
    """Finite numbers, cells × genes; the columns of a DataFrame by the names of the genes."""
    if isinstance(value, pd.DataFrame):
        value = by_name(value.T, pd.Index(counts.gene_names), name, what="gene").T
    array = cells.numbers(value, name)
    if array.shape != counts.shape or not np.isfinite(array).all():
        raise InvalidArgumentError(
            f"{name}: expected finite values of shape {counts.shape}, found shape {array.shape}"
            f"{', some not finite' if array.shape == counts.shape else ''}."
        )
    return array


def _weights(weights: Any, cells: Cells, counts: CountMatrix) -> Array | None:
    if weights is None:
        return None
    if np.ndim(weights) == 2 and np.shape(weights)[1] != 1:
        array = _per_gene("weights", weights, cells, counts)
    else:
        array = cells.numbers(weights, "weights")
        array = array[:, 0] if array.ndim == 2 else array
        if array.shape != (cells.n_used,) or not np.isfinite(array).all():
            raise InvalidArgumentError(
                f"weights: expected {cells.n_used} finite values, one a cell, found shape {array.shape}."
            )
    if (array < 0).any() or not (array.sum(0) > 0).all():
        raise InvalidArgumentError("weights: expected no negative weight, and a positive one for every gene.")
    return array


def _check_identified(parts: Sequence[tuple[DesignMatrix, Constraints]], weights: Array | None) -> None:
    """Raise where the cells of positive weight do not identify every coefficient of location and scale."""
    if weights is None or weights.ndim > 1 or (weights > 0).all():
        return
    for (design, resolved), part in zip(parts, ("location", "scale"), strict=True):
        check_full_rank(
            design.matrix[weights > 0] @ resolved.matrix, resolved.free_names, f"weights: cells above 0, {part} model"
        )
