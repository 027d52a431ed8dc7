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

from pyrosplice._expression.call_options import defaults_of, known_options
from pyrosplice._expression.cell_entries import group_codes, options_of
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.mixed.cell_effects import EffectsRequest
from pyrosplice._expression.mixed.mixed_estimator import mixed_estimator, refuse_of_the_glm
from pyrosplice._expression.positions import SPATIAL_KEY
from pyrosplice._expression.prepared_inputs import prepare
from pyrosplice._tables.cells import Cells
from pyrosplice.effects._field import Field
from pyrosplice.errors import InvalidArgumentError
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
    effects: Any = (),
    space: Field | None = None,
    spatial_key: str | Sequence[str] = SPATIAL_KEY,
    section_key: str | None = None,
    **kwargs: Any,
) -> Estimator:
    r"""Fit a model of every gene's counts by maximum likelihood; with random effects, by restricted likelihood.

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
        Location may have random terms as lme4 writes them, ``"~ condition + (1 | donor)"``, ``(1 + age | donor)``,
        ``(1 | donor/sample)``: normal, independent between the levels, integrated out by Laplace's method with the
        coefficients (:class:`pyrosplice.effects.Groups`). There is one dispersion a gene then.
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
    effects
        Random effects beside those of the formula: a list of :class:`pyrosplice.effects.Groups`,
        :class:`~pyrosplice.effects.Independent` and your own :class:`~pyrosplice.effects.Effect`.
    space
        A random field over the cells of an AnnData, :class:`pyrosplice.effects.Field`.
    spatial_key, section_key
        Where in ``obsm``, or in which columns of ``obs`` (``("x", "y")``), the field's positions are; column of ``obs``
        with the section of each cell, which has no neighbours in others.
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
    >>> import pyrosplice.api as de
    >>> counts = np.random.default_rng(0).poisson(3.0, (20, 4))
    >>> estim = de.fit.model(counts, "~1+group", sample_description=pd.DataFrame({"group": ["a", "b"] * 10}))
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
        effects=EffectsRequest.of(effects, space, spatial_key, section_key),
    )
    how: dict[str, Any] = {
        "init_a": init_a,
        "init_b": init_b,
        "quick_scale": quick_scale,
        "batch_size": batch_size,
        "device": device,
    }
    if inputs.effects is not None:
        refuse_of_the_glm({**how, "training_strategy": training_strategy, "train_args": train_args or None})
        return mixed_estimator(inputs, dtype=dtype)
    estimator = Estimator(inputs, dtype=dtype, **how)
    estimator.initialize()
    estimator.train_sequence(training_strategy, **train_args)
    return estimator.finalize()


def residuals(data: Any, formula_loc: str | None = None, formula_scale: str | None = "~1", **kwargs: Any) -> Array:
    """Subtract fitted means from the counts, cells × genes; arguments as :func:`model`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
    >>> residuals = de.fit.residuals(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), formula_loc="~ group")
    >>> residuals.shape, bool((np.abs(residuals.mean(0)) < 1e-3).all())
    ((100, 2), True)
    """
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

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
    >>> parts = de.fit.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), parts="tissue")
    >>> {tissue: fit.a_var.shape for tissue, fit in parts.model(formula_loc="~ group").items()}
    {'liver': (2, 2), 'lung': (2, 2)}
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

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.fit.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), parts="tissue")
        >>> [(tissue, len(own["size_factors"])) for tissue, own in parts.with_options({"size_factors": np.ones(100)})]
        [('liver', 50), ('lung', 50)]
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
        """Fit :func:`model` within each part.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.fit.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), parts="tissue")
        >>> parts.model(formula_loc="~ group")["lung"].a_var.shape  # coefficients × genes
        (2, 2)
        """
        return {part: model(**arguments) for part, arguments in self.with_options(options)}


def partition(
    data: Any,
    parts: Any,
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    *,
    missing: str = "raise",
) -> Partition:
    """Divide the cells for :meth:`Partition.model`; arguments as :class:`Partition`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
    >>> parts = de.fit.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), parts="tissue")
    >>> list(parts.model(formula_loc="~ group"))
    ['liver', 'lung']
    """
    return Partition(data, parts, gene_names, sample_description, missing=missing)


def cell_labels(name: str, labels: Any, sample_description: pd.DataFrame | None, n_cells: int) -> NDArray[np.object_]:
    """Read one label a cell, from an array or a column."""
    return Cells.of(None, sample_description, n_cells).labels(labels, name)
