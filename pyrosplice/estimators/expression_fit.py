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

from pyrosplice.data.constraints import Constraints, resolve_constraints
from pyrosplice.data.count_matrix import CountMatrix
from pyrosplice.data.expression_design import DesignMatrix, check_full_rank, from_formula, from_matrix
from pyrosplice.data.names import by_name, names_of
from pyrosplice.data.size_factors import resolve_size_factors
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.estimators.expression_cells import cells_of, group_labels, sorted_groups
from pyrosplice.estimators.expression_estimator import Estimator, InputData
from pyrosplice.estimators.expression_options import defaults_of, known_options
from pyrosplice.models.noise import NOISE

Array = NDArray[np.float64]


def model(
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
    noise_model: str = "nb",
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
    device: str = "cpu",
    **kwargs: Any,
) -> Estimator:
    r"""Fit model via maximum likelihood for each gene.

    .. math:: y \sim NB(\mu, r), \quad \log\mu = X_a a + \log s, \quad \log r = X_b b, \quad
              \operatorname{var} y = \mu + \mu^2 / r

    Parameters
    ----------
    data
        Cells × genes: AnnData (also backed), its ``.raw``, ndarray, sparse, Dask array or DataFrame.
    formula_loc, formula_scale
        Formulas of the location and scale models.
    as_numeric
        Columns of ``sample_description`` to take as numbers; all others are categorical.
    init_a, init_b
        Where to start: ``"AUTO"``, ``"standard"`` (intercept at the mean; scale at zero), ``"closed_form"`` (group
        means; moments), ``"all_zero"``, or free coefficients × genes. The optimum does not depend on it.
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
        ``"nb"``, ``"poisson"`` or ``"norm"`` (identity link; scale is the log standard deviation).
    size_factors
        Positive, one a cell, or the column that holds them; their logarithm is added to the location predictor.
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
        Gene-wise offsets of the location predictor ``(N, G)``, added to the size factors'.
    weights
        Observation weights, ``(N,)`` or ``(N, G)``, not negative.
    layer
        Layer of the AnnData to fit.
    device
        Torch device of the arithmetic.
    kwargs
        ``train_args``, arguments for every step of the training strategy; and the options of the original that have no
        effect here (:data:`pyrosplice.estimators.expression_options.WITHOUT_EFFECT`), with a warning. Others are
        refused.

    Returns
    -------
    Estimator
        With the estimates; the model itself in ``.model``.

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
    extra = known_options("fit.model", kwargs, (*defaults_of(model), "train_args"))
    inputs = prepare(
        data, formula_loc=formula_loc, formula_scale=formula_scale, as_numeric=as_numeric, gene_names=gene_names,
        sample_description=sample_description, dmat_loc=dmat_loc, dmat_scale=dmat_scale,
        constraints_loc=constraints_loc, constraints_scale=constraints_scale, noise_model=noise_model,
        size_factors=size_factors, size_factors_logged=size_factors_logged, offsets=offsets, weights=weights,
        layer=layer,
    )  # fmt: skip
    estimator = Estimator(
        inputs, init_a=init_a, init_b=init_b, quick_scale=quick_scale, dtype=dtype, batch_size=batch_size, device=device
    )
    estimator.initialize()
    estimator.train_sequence(training_strategy, **(extra.get("train_args") or {}))
    return estimator.finalize()


def prepare(
    data: Any, *, formula_loc: str | None, formula_scale: str | None = "~1", as_numeric: Sequence[str] | str = (),
    gene_names: Sequence[str] | None = None, sample_description: pd.DataFrame | None = None, dmat_loc: Any = None,
    dmat_scale: Any = None, constraints_loc: Any = None, constraints_scale: Any = None, noise_model: str = "nb",
    size_factors: Any = None, size_factors_logged: bool = True, offsets: Array | None = None,
    weights: Array | None = None, layer: str | None = None,
) -> InputData:  # fmt: skip
    """Check every argument of :func:`model` and turn it into what the estimator fits."""
    check_option("noise_model", noise_model, NOISE)
    noise = NOISE[noise_model]()
    counts = CountMatrix(data, gene_names=gene_names, layer=layer, counts=noise.log_link)
    n, g = counts.shape
    if sample_description is None and isinstance(data, ad.AnnData):
        sample_description = data.obs
    parts: list[tuple[DesignMatrix, Constraints]] = []
    for formula, dmat, constraints, part in (
        (formula_loc, dmat_loc, constraints_loc, "loc"),
        (formula_scale, dmat_scale, constraints_scale, "scale"),
    ):
        design = _design(formula, dmat, constraints, part, sample_description, as_numeric, n)
        resolved = resolve_constraints(constraints, design, sample_description, argument=f"constraints_{part}")
        check_full_rank(design.matrix @ resolved.matrix, resolved.free_names, _source(dmat, part))
        parts.append((design, resolved))
    factors = resolve_size_factors(size_factors, sample_description, n)
    offset = np.zeros(n) if factors is None else np.log(factors) if size_factors_logged else factors
    if offsets is not None:
        offset = offset[:, None] + _matrix("offsets", offsets, (n, g))
    return InputData(
        counts, parts[0][0], parts[1][0], parts[0][1], parts[1][1], factors, offset, _weights(weights, n, g),
        sample_description, noise,
    )  # fmt: skip


def _source(dmat: Any, part: str) -> str:
    return f"formula_{part}" if dmat is None else f"dmat_{part}"


def _design(
    formula: str | None, dmat: Any, constraints: Any, part: str, table: pd.DataFrame | None,
    as_numeric: Sequence[str] | str, n_cells: int,
) -> DesignMatrix:  # fmt: skip
    if dmat is not None:
        return from_matrix(dmat, n_cells=n_cells, argument=f"dmat_{part}")
    if formula is None:
        raise InvalidArgumentError(f"formula_{part}: expected a formula, or a design in dmat_{part}.")
    every_level = list(constraints) if isinstance(constraints, Mapping) else []
    return from_formula(
        formula, table, as_numeric=as_numeric, n_cells=n_cells, argument=f"formula_{part}",
        full_rank_except=every_level,
    )  # fmt: skip


def _matrix(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise InvalidArgumentError(f"{name}: expected finite values of shape {shape}, found shape {array.shape}.")
    return array


def _weights(weights: Any, n: int, g: int) -> Array | None:
    if weights is None:
        return None
    array = _matrix("weights", weights, (n, g) if np.ndim(weights) == 2 else (n,))
    if (array < 0).any() or not (array.sum(0) > 0).all():
        raise InvalidArgumentError("weights: expected no negative weight, and a positive one for every gene.")
    return array


def residuals(data: Any, formula_loc: str | None = None, formula_scale: str | None = "~1", **kwargs: Any) -> Array:
    """Counts minus fitted means, cells × genes; arguments as :func:`model`."""
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
        self, data: Any, parts: Any, gene_names: Sequence[str] | None = None,
        sample_description: pd.DataFrame | None = None, *, missing: str = "raise",
    ) -> None:  # fmt: skip
        self.matrix = CountMatrix(data, gene_names=gene_names, counts=False)
        if sample_description is None and isinstance(data, ad.AnnData):
            sample_description = data.obs
        own = names_of(data)
        self.cell_names = names_of(sample_description) if own is None else own
        self.data, self.sample_description = data, by_name(sample_description, self.cell_names, "sample_description")
        labels = group_labels("parts", parts, self.sample_description, self.matrix.shape[0], self.cell_names, missing)
        self.partitions, self.index = sorted_groups(labels)

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
        for i, part in enumerate(self.partitions):
            cells = np.flatnonzero(self.index == i)
            table = self.sample_description
            data = self.data if isinstance(self.data, ad.AnnData) else self.matrix.matrix
            yield (
                part,
                {
                    **cells_of(options, cells, len(self.index), self.cell_names),
                    "data": data[cells],
                    "gene_names": list(self.matrix.gene_names),
                    "sample_description": None if table is None else table.iloc[cells],
                },
            )

    def model(self, **options: Any) -> dict[Any, Estimator]:
        """:func:`model` within each part."""
        return {part: model(**arguments) for part, arguments in self.with_options(options)}


def partition(
    data: Any, parts: Any, gene_names: Sequence[str] | None = None, sample_description: pd.DataFrame | None = None,
    *, missing: str = "raise",
) -> Partition:  # fmt: skip
    """Divide the cells for :meth:`Partition.model`; arguments as :class:`Partition`."""
    return Partition(data, parts, gene_names, sample_description, missing=missing)


def cell_labels(name: str, labels: Any, sample_description: pd.DataFrame | None, n_cells: int) -> NDArray[np.object_]:
    """One label a cell, from an array or a column."""
    if isinstance(labels, str):
        if sample_description is None or labels not in sample_description:
            raise InvalidArgumentError(f"{name}: sample_description has no column {labels!r}.")
        labels = sample_description[labels]
    values = np.asarray(labels, dtype=object)
    if values.shape != (n_cells,):
        raise InvalidArgumentError(f"{name}: expected {n_cells} labels, one a cell, found shape {values.shape}.")
    if pd.isna(values).any():
        raise InvalidArgumentError(f"{name}: {int(pd.isna(values).sum())} label(s) are missing.")
    return values
