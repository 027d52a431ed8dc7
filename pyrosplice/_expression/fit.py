"""``fit.model`` and its siblings: maximum likelihood for each gene, as documented for diffxpy.

The whole port of a script is its import line: ``import pyrosplice.api as de``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.call_options import defaults_of, is_default, known_options
from pyrosplice._expression.cell_entries import group_codes, options_of
from pyrosplice._expression.constraints import Constraints, resolve_constraints
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.estimator import Estimator, InputData
from pyrosplice._expression.formula_design import DesignMatrix, check_full_rank, from_formula, from_matrix
from pyrosplice._expression.noise_models import check_multiplies, likelihood_of
from pyrosplice._expression.size_factors import resolve_size_factors
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.formulas import complete_rows
from pyrosplice._tables.names import by_name
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]


def model(  # noqa: PLR0913 (a documented interface)
    data: Any,
    formula_loc: str | None = None,
    formula_scale: str | None = "~1",
    as_numeric: Sequence[str] | str = (),
    init_a: Array | str = "AUTO",
    init_b: Array | str = "AUTO",
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    dmat_loc: Any = None,
    dmat_scale: Any = None,
    constraints_loc: Any = None,
    constraints_scale: Any = None,
    noise_model: str | Likelihood = "nb",
    size_factors: Array | pd.Series | str | None = None,
    batch_size: int | tuple[int, int] | None = None,
    training_strategy: str | Sequence[Mapping[str, Any]] | Callable[[Estimator], Any] = "AUTO",
    quick_scale: bool = False,
    dtype: str = "float64",
    *,
    size_factors_logged: bool = True,
    offsets: Array | None = None,
    weights: Array | None = None,
    layer: str | None = None,
    missing: str | NDArray[np.bool_] = "raise",
    device: str = "cpu",
    **kwargs: Any,
) -> Estimator:
    r"""Fit a model of every gene's counts by maximum likelihood.

    .. math:: y \sim NB(\mu, r), \quad \log\mu = X_a a + \log s, \quad \log r = X_b b, \quad
              \operatorname{var} y = \mu + \mu^2 / r

    Parameters
    ----------
    data
        Cells × genes: AnnData (also backed or lazy), its ``.raw``, ndarray, sparse, Tensor, Dask array or DataFrame.
        Tables, Series and arrays below have one row a cell; where they and the data carry names of cells they are
        paired by name, else by position, and names that agree in part are refused.
    formula_loc, formula_scale
        Formulas of the location and scale models; names of columns that are no words (``percent.mt``) in backticks.
    as_numeric
        Columns of ``sample_description`` to take as numbers; all others are categorical.
    init_a, init_b
        Where to start: ``"AUTO"``, ``"standard"`` (intercept at the mean; scale at zero), ``"closed_form"`` (group
        means; moments), ``"all_zero"``, or free coefficients × genes (a DataFrame: by their names). The optimum does
        not depend on it.
    gene_names
        Names, where the data has none.
    sample_description
        One row a cell; ``data.obs`` for AnnData.
    dmat_loc, dmat_scale
        Pre-built designs; they override the formulas.
    constraints_loc, constraints_scale
        A matrix C (design columns × free coefficients), a dict ``{"batch": "condition"}`` (levels of batch sum to zero
        within each condition; ``"1"``: over all), or strings ``["batch1 + batch2 = 0"]``.
    noise_model
        ``"nb"``, ``"poisson"`` or ``"norm"`` (identity link; scale is the log standard deviation), or a likelihood of
        one count a cell, shipped or your own (:class:`pyrosplice.likelihoods.Likelihood`): its free hyper-parameter is
        :math:`e^{\pm\zeta}` with :math:`\zeta = X_b b`, and one that it holds, as
        ``NegativeBinomial(dispersion=0.3)``, is held.
    size_factors
        Positive, one a cell, or the column that holds them; their logarithm is added to the location predictor. Refused
        for a likelihood of one's own whose mean is not a multiple of :math:`e^\eta`, which they would not multiply.
    batch_size
        Cells read at a time, or (cells, genes).
    training_strategy
        ``"AUTO"``, ``"DEFAULT"``, ``"QUICK"``; a list of arguments of :meth:`Estimator.train`; or a function of the
        estimator.
    quick_scale
        Leave the scale at its moment estimate.
    dtype
        Type of the results; the arithmetic is in float64.
    size_factors_logged
        False adds size factors to the predictor as they are, as diffxpy 0.7.4 did.
    offsets
        Gene-wise offsets of the location predictor ``(N, G)``, added to the size factors'; a DataFrame by the names of
        cells and genes.
    weights
        Observation weights, ``(N,)`` or ``(N, G)``, not negative; also as a Series, DataFrame or column.
    layer
        Layer of the AnnData to fit.
    missing
        ``"raise"`` where a formula uses a column with missing labels or numbers; ``"drop"`` leaves those cells out, or
        a mask ``(N,)`` says which to fit. ``estimator.input_data.cells.used`` tells which were fitted.
    device
        Torch device of the arithmetic.
    kwargs
        ``train_args``, arguments for every step of the training strategy; and the options of the original that have no
        effect here (:data:`pyrosplice._expression.call_options.WITHOUT_EFFECT`), with a warning. Others are
        refused.

    Returns
    -------
    Estimator
        The estimator, with the estimates; the model itself in ``.model``.

    Raises
    ------
    InvalidArgumentError
        Before anything is fitted; names the argument.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> counts = np.random.default_rng(0).poisson(3.0, (20, 4))
    >>> estim = model(counts, "~1+group", sample_description=pd.DataFrame({"group": ["a", "b"] * 10}))
    >>> estim.a_var.shape, estim.model.design_loc_names
    ((2, 4), ['Intercept', 'group[T.b]'])
    """
    train_args = known_options("fit.model", kwargs, (*defaults_of(model), "train_args")).get("train_args") or {}
    if not isinstance(train_args, Mapping):
        raise InvalidArgumentError(
            f"train_args: expected a dict of arguments of a training step, found {train_args!r}."
        )
    inputs = prepare(
        data,
        formula_loc=formula_loc,
        formula_scale=formula_scale,
        as_numeric=as_numeric,
        gene_names=gene_names,
        sample_description=sample_description,
        dmat_loc=dmat_loc,
        dmat_scale=dmat_scale,
        constraints_loc=constraints_loc,
        constraints_scale=constraints_scale,
        noise_model=noise_model,
        size_factors=size_factors,
        size_factors_logged=size_factors_logged,
        offsets=offsets,
        weights=weights,
        layer=layer,
        missing=missing,
    )
    estimator = Estimator(
        inputs, init_a=init_a, init_b=init_b, quick_scale=quick_scale, dtype=dtype, batch_size=batch_size, device=device
    )
    estimator.initialize()
    estimator.train_sequence(training_strategy, **train_args)
    return estimator.finalize()


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
) -> InputData:
    """Check every argument of :func:`model` and turn it into what the estimator fits."""
    check_switches(size_factors_logged=size_factors_logged)
    likelihood = likelihood_of(noise_model)
    if not likelihood.free:
        given = {"formula_scale": formula_scale, "dmat_scale": dmat_scale, "constraints_scale": constraints_scale}
        _check_no_scale(likelihood, {name: value for name, value in given.items() if not is_default(value, "~1")})
        formula_scale, dmat_scale, constraints_scale = "~1", None, None
    counts = CountMatrix(data, gene_names=gene_names, layer=layer, counts=likelihood.of_counts)
    cells = Cells.of(data, sample_description, counts.shape[0])
    read = {"loc": (formula_loc, dmat_loc), "scale": (formula_scale, dmat_scale)}
    formulas = {part: None if dmat is not None else formula for part, (formula, dmat) in read.items()}
    cells = _in_use(cells, missing, formulas, as_numeric)
    counts = counts if cells.used is None else counts.take(np.flatnonzero(cells.used))
    parts: list[tuple[DesignMatrix, Constraints]] = []
    for formula, dmat, constraints, part in (
        (formula_loc, dmat_loc, constraints_loc, "loc"),
        (formula_scale, dmat_scale, constraints_scale, "scale"),
    ):
        design = _design(formula, dmat, constraints, part, cells, as_numeric)
        resolved = resolve_constraints(constraints, design, cells.table, argument=f"constraints_{part}")
        check_full_rank(design.matrix @ resolved.matrix, resolved.free_names, _source(dmat, part))
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
    return InputData(counts, location, scale, free_location, free_scale, *effort, cells, likelihood)


def _check_no_scale(likelihood: Likelihood, asked: Mapping[str, Any]) -> None:
    """Warn of options of a scale that the likelihood does not have; refuse those of one that it holds."""
    if asked and likelihood.hyperparameters:
        name = next(iter(asked))
        raise InvalidArgumentError(
            f"{name}: {likelihood!r} holds its scale, found {asked[name]!r}; leave one of the two out."
        )
    known_options("fit.model", asked, (), dict.fromkeys(asked, f"{likelihood.name} noise has no scale"))


def _in_use(cells: Cells, missing: Any, formulas: Mapping[str, str | None], as_numeric: Sequence[str] | str) -> Cells:
    """The cells to fit: all, those of a mask, or those that have every label and number which the formulas use."""
    if isinstance(missing, str):
        check_option("missing", missing, ("raise", "drop"))
        if missing == "raise" or cells.table is None:
            return cells
        used = np.ones(cells.n, dtype=bool)
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


def residuals(data: Any, formula_loc: str | None = None, formula_scale: str | None = "~1", **kwargs: Any) -> Array:
    """Subtract fitted means from the counts, cells × genes; arguments as :func:`model`."""
    estimator = model(data, formula_loc, formula_scale, **kwargs)
    counts = estimator.input_data.counts
    fitted = estimator.model.location
    for cells, block in counts.cell_blocks():
        fitted[cells] = (block.toarray() if hasattr(block, "toarray") else block) - fitted[cells]
    return fitted


class Partition:
    """Cells divided by a factor, for fits and tests within each part.

    Parameters
    ----------
    data
        As for :func:`model`.
    parts
        Label of each cell, or the column that holds it.
    missing
        ``"drop"`` leaves out cells without a label, which are an error otherwise (``"raise"``).
    """

    def __init__(
        self,
        data: Any,
        parts: Any,
        gene_names: Sequence[str] | None = None,
        sample_description: pd.DataFrame | None = None,
        *,
        missing: str = "raise",
    ) -> None:
        if isinstance(data, ad.AnnData) and data.isbacked and data.is_view:
            data = data.to_memory()  # which cannot be indexed again on disk
        self.data = data
        self.matrix = None if isinstance(data, ad.AnnData) else CountMatrix(data, gene_names=gene_names, counts=False)
        self.gene_names = gene_names if self.matrix is None else list(self.matrix.gene_names)
        n_cells = data.n_obs if self.matrix is None else self.matrix.shape[0]
        self.cells = Cells.of(data, sample_description, n_cells)
        self.partitions, self.index = group_codes("parts", parts, self.cells, missing)

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Each part with the arguments ``data``, ``gene_names``, ``sample_description`` of its cells."""
        return self.with_options({})

    def with_options(self, options: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Each part with its arguments and options; those with an entry a cell are cut to its cells.

        Raises
        ------
        InvalidArgumentError
            Options that are the partition's own.
        """
        for name in ("data", "gene_names", "sample_description"):
            if name in options:
                raise InvalidArgumentError(f"{name}: it is given to partition, for all parts.")
        table, counts = self.cells.table, self.data if self.matrix is None else self.matrix.matrix
        for i, part in enumerate(self.partitions):
            cells = np.flatnonzero(self.index == i)
            rows = {"data": counts[cells], "sample_description": None if table is None else table.iloc[cells]}
            yield part, {**options_of(options, cells, self.cells), **rows, "gene_names": self.gene_names}

    def model(self, **options: Any) -> dict[Any, Estimator]:
        """Fit :func:`model` within each part."""
        return {part: model(**arguments) for part, arguments in self.with_options(options)}


def partition(
    data: Any,
    parts: Any,
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    *,
    missing: str = "raise",
) -> Partition:
    """Divide the cells for :meth:`Partition.model`; arguments as :class:`Partition`."""
    return Partition(data, parts, gene_names, sample_description, missing=missing)


def cell_labels(name: str, labels: Any, sample_description: pd.DataFrame | None, n_cells: int) -> NDArray[np.object_]:
    """Read one label a cell, from an array or a column."""
    return Cells.of(None, sample_description, n_cells).labels(labels, name)
