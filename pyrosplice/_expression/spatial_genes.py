"""Spatially variable genes of an AnnData: one call from counts to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression.count_matrix import CountMatrix, raw_blocks
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.formula_design import from_formula
from pyrosplice._expression.mixed.cell_effects import EffectsRequest
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.spatial_null import glm_with_levels
from pyrosplice._expression.positions import SPATIAL_KEY, SpotOptions, Spots
from pyrosplice._expression.prepared_inputs import prepare
from pyrosplice._expression.spatial_variability import section_columns, spatial_table
from pyrosplice._results.annotations import Annotations
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.coordinates import spatial_key_of
from pyrosplice._tables.names import places_of
from pyrosplice._tables.random_terms import split_random_terms
from pyrosplice.effects._group_terms import Groups
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Likelihood

Array = NDArray[np.float64]
TOTAL = "total"


def spatially_variable_genes(  # noqa: PLR0913 (an interface of many options)
    adata: ad.AnnData,
    *,
    layer: str | None = None,
    formula: str = "~ 1",
    as_numeric: Sequence[str] | str = (),
    size_factors: Any = TOTAL,
    spatial_key: str | Sequence[str] = SPATIAL_KEY,
    adj_key: str | None = None,
    k_neighbors: int | None = None,
    section_key: str | None = None,
    likelihood: str | Likelihood = "nb",
    genes: Any = None,
    key_added: str | None = None,
) -> pd.DataFrame:
    """Find the genes whose expression varies in space, from raw counts.

    A negative-binomial regression of each gene on the covariates, with the spots' sizes, is tested for an effect of the
    spots that is alike in neighbours, by the score: see :meth:`pyrosplice.ExpressionGLM.test_spatial_variability`.

    Parameters
    ----------
    adata
        Spots × genes with coordinates in ``obsm``; in memory, backed, lazy, or a view.
    layer
        Layer of the raw counts; ``X`` by default.
    formula
        What else the genes depend on, columns of ``obs``: variability that it explains does not count. Of random terms,
        ``(1 | donor)``, every level has coefficients of its own, so that nothing of them is left in what is tested.
    as_numeric
        Columns of the formula that are numbers; all others are labels.
    size_factors
        ``"total"``: total counts of all genes in each spot, over their mean. Or positive numbers ``(N,)``, paired by
        name if they have names, or the column of ``obs`` that holds them (one called "total": give it as a Series); or
        None: what varies in space may then be no more than depth.
    spatial_key, adj_key, k_neighbors, section_key
        Coordinates in ``obsm``, or columns of ``obs`` such as ``("x", "y")``; or a graph in ``obsp``; how many nearest
        spots are neighbours; column of ``obs`` with the section of each spot. Sections have levels of their own, and no
        neighbours in others. By default neighbours are those of ``obsp["spatial_connectivities"]`` where squidpy has
        left it (weights as given, averaged with its transpose), else the six nearest; ``k_neighbors`` or another
        ``spatial_key`` asks for the nearest ones. ``attrs["graph"]`` of the table says which were taken.
    likelihood
        ``"nb"``, ``"poisson"``, or a likelihood of one count with a log mean.
    genes
        Names, positions or a mask of those to test; all by default. Totals are of all genes in any case.
    key_added
        Write the table to ``adata.var`` too, in columns ``<key_added>_pvalue`` and so on, and how it was made to
        ``adata.uns[key_added]``; what an earlier call wrote there is replaced.

    Returns
    -------
    DataFrame
        By gene: ``statistic``, ``pvalue``, ``pvalue_adj`` (Benjamini–Hochberg), ``reason`` ("" or why there is no
        p-value, see :class:`pyrosplice.reasons.Reason`), ``mean``, ``coverage`` (share of spots with a count).

    Raises
    ------
    InvalidArgumentError
        Counts that are negative or fractional; spots without counts or coordinates; names of genes that stand twice;
        sections of no more than ``k_neighbors`` spots; columns or a key that something else has already.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> from pyrosplice import spatially_variable_genes
    >>> rng, place = np.random.default_rng(0), np.stack(np.divmod(np.arange(144), 12), 1)
    >>> mean = np.where(place[:, :1] < 4, [[6.0, 2.0, 2.0]], 2.0)
    >>> adata = anndata.AnnData(rng.poisson(mean).astype(float), obsm={"spatial": place})
    >>> table = spatially_variable_genes(adata, size_factors=None)
    >>> (table["pvalue"] < 0.001).tolist()
    [True, False, False]
    """
    if not isinstance(adata, ad.AnnData):
        raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}.")
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise InvalidArgumentError(f"adata.var_names: {twice!r} stands more than once; call var_names_make_unique().")
    which = places_of(genes, adata.var_names, "genes")
    if key_added is not None:
        _annotations({name: np.empty(0) for name in RESULTS}, {}).check(adata, key_added)
    totals = _totals(adata, layer)
    if isinstance(size_factors, str) and size_factors == TOTAL:
        size_factors = _sizes(totals)
    space = SpotOptions(spatial_key_of(spatial_key), adj_key, k_neighbors, section_key)
    read = {"as_numeric": as_numeric, "layer": layer, "size_factors": size_factors, "noise_model": likelihood}
    fitted = _glm_beside_groups if split_random_terms(formula, "formula")[1] else _glm
    data = adata if genes is None else adata[:, which]
    estimator = fitted(data, formula, section_key, read)
    spots = Spots.of(data)
    if spots is None:
        raise AssertionError("an AnnData has places")
    table = spatial_table(estimator, spots.covariance(estimator.input_data.cells, space))
    table.attrs["graph"] = spots.graph_name(space)
    if key_added is not None:
        settings = {"formula": formula, "layer": layer, "section_key": section_key, "likelihood": str(likelihood)}
        found = {name: table[name].to_numpy() for name in RESULTS}
        replace(_annotations(found, settings), genes=table.index).write(adata, key_added)
    return table


RESULTS = ("statistic", "pvalue", "pvalue_adj", "reason", "mean", "coverage")


def _annotations(columns: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Annotations:
    return Annotations(kind="spatially_variable_genes", var=columns, settings=settings)


def _glm(adata: ad.AnnData, formula: str, section_key: str | None, read: dict[str, Any]) -> Estimator:
    """The regression on the covariates, sections with levels of their own."""
    cells = Cells.of(adata, None, adata.n_obs)
    design = from_formula(formula, cells.table, as_numeric=read.pop("as_numeric"), n_cells=cells.n, argument="formula")
    dmat = pd.DataFrame(design.matrix, columns=design.names, index=adata.obs_names)
    if section_key is not None:
        labels = cells.levels(section_key, "section_key")
        for k, column in enumerate(section_columns(design.matrix, labels.codes).T):
            dmat[f"{section_key}: {k + 1}"] = column
    return expression_fit.model(adata, dmat_loc=dmat, **read)


def _glm_beside_groups(adata: ad.AnnData, formula: str, section_key: str | None, read: dict[str, Any]) -> Estimator:
    """The regression in which every level of the random terms has coefficients, sections among them."""
    cells = Cells.of(adata, None, adata.n_obs)
    if section_key is not None:
        cells.levels(section_key, "section_key")
        if (section_key,) not in [term.by for term in split_random_terms(formula, "formula")[1]]:
            read = read | {"effects": EffectsRequest((Groups(section_key),))}
    inputs = prepare(adata, formula_loc=formula, **read)
    return glm_with_levels(MixedEstimator(inputs))


def _totals(adata: ad.AnnData, layer: str | None) -> Array:
    """Total count of each spot ``(N,)``, every entry checked.

    Raises
    ------
    InvalidArgumentError
        For entries that are no counts.
    """
    counts = CountMatrix(adata, layer=layer, counts=False)
    total = np.zeros(counts.shape[0])
    for spots, block in raw_blocks(counts, layer):
        total[spots] = np.asarray(block.sum(1, dtype=np.float64)).ravel()
    return total


def _sizes(totals: Array) -> Array:
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        raise InvalidArgumentError(
            f"size_factors: {len(empty)} of {len(totals)} spots have no counts at all (first: row {empty[0]}); remove "
            "them (scanpy.pp.filter_cells(adata, min_counts=1)), or give size factors."
        )
    return totals / totals.mean()
