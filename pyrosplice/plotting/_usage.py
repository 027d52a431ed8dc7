"""Tables of isoform usage in space: what was counted, what was fitted, and how sure that is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData
from numpy.typing import ArrayLike

from pyrosplice._tables.coordinates import read_coordinates, spatial_key_of
from pyrosplice.errors import InvalidArgumentError, check_known


def usage_table(
    adata: AnnData,
    isoforms: Sequence[str],
    *,
    counts_layer: str = "counts",
    fitted_layer: str = "fitted_ratios",
    spatial_key: str | Sequence[str] = "spatial",
    library_key: str | None = None,
) -> pd.DataFrame:
    r"""Tabulate raw and fitted usage of a gene's isoforms, one row an isoform and spot, for :func:`usage_map`.

    Parameters
    ----------
    adata
        What ``SplisosmGLMM.get_fitted_ratios_anndata()`` returns: spots × isoforms with both layers.
    isoforms
        The isoforms of one gene, all of them (the raw ratio is a spot's count over the sum over ``isoforms``).
    counts_layer, fitted_layer
        Layers with counts and with fitted ratios.
    spatial_key
        Coordinates in ``adata.obsm``, or columns of ``adata.obs`` such as ``("x", "y")``; the first two are used.
    library_key
        Column of ``adata.obs`` with the library (section, slide) of each spot, where there are several: their maps are
        drawn one below the other.

    Returns
    -------
    DataFrame
        Columns ``x``, ``y``, ``isoform``, ``raw`` (missing where the gene was not seen in the spot), ``fitted``, and
        ``library`` with ``library_key``.

    Raises
    ------
    InvalidArgumentError
        A layer, an isoform, the coordinates or the libraries are not in ``adata``; no isoform, or one twice.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> from pyrosplice.plotting import usage_table
    >>> layers = {"counts": np.array([[1, 3], [0, 0]]), "fitted_ratios": np.full((2, 2), 0.5)}
    >>> adata = anndata.AnnData(np.zeros((2, 2)), layers=layers, obsm={"spatial": np.eye(2)})
    >>> usage_table(adata, ["0", "1"])["raw"].tolist()
    [0.25, nan, 0.75, nan]
    """
    for argument, key, found in (
        ("counts_layer", counts_layer, adata.layers),
        ("fitted_layer", fitted_layer, adata.layers),
    ):
        if key not in found:
            raise InvalidArgumentError(f"{argument}: expected one of {list(found)}, found {key!r}.")
    isoforms = [isoforms] if isinstance(isoforms, str) else list(isoforms)
    if len(set(isoforms)) != len(isoforms) or not isoforms:
        raise InvalidArgumentError(f"isoforms: expected every isoform of a gene once, found {isoforms}.")
    unknown = [name for name in isoforms if name not in adata.var_names]
    if unknown:
        raise InvalidArgumentError(f"isoforms: not in adata.var_names: {unknown}.")
    gene = adata[:, isoforms]
    coordinates = read_coordinates(spatial_key_of(spatial_key), adata.obsm, adata.obs)
    table = _long(coordinates, isoforms, _dense(gene.layers[counts_layer]), _dense(gene.layers[fitted_layer]))
    if library_key is None:
        return table
    check_known("library_key", library_key, list(adata.obs), "one of adata.obs")
    if adata.obs[library_key].isna().any():
        raise InvalidArgumentError(f"library_key: {library_key!r} has no value for some spots.")
    return table.assign(library=np.tile(adata.obs[library_key].to_numpy(), len(isoforms)))


def posterior_usage_table(tree: xr.DataTree, coordinates: ArrayLike, *, gene: Hashable) -> pd.DataFrame:
    """Tabulate raw usage of a gene with posterior means and standard deviations, for :func:`usage_map`.

    Parameters
    ----------
    tree
        Tree of ``model.posterior(usage=True)``.
    coordinates
        ``(N, 2)`` of the spots.
    gene
        Name of the gene in the tree.

    Returns
    -------
    DataFrame
        Columns ``x``, ``y``, ``isoform``, ``raw`` (missing where the gene was not seen), ``fitted`` (posterior mean)
        and ``sd``.

    Raises
    ------
    InvalidArgumentError
        The tree has no usage or no such gene, or the coordinates are not those of its spots.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> from pyrosplice.plotting import posterior_usage_table
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=2, seed=0))
    >>> model.fit(print_progress=False)
    >>> tree = model.posterior("gene_1", num_samples=50, usage=True)
    >>> table = posterior_usage_table(tree, model.filtered_adata.obsm["spatial"], gene="gene_1")
    >>> table.columns.tolist()
    ['x', 'y', 'isoform', 'raw', 'fitted', 'sd']
    """
    posterior = tree["posterior"].to_dataset()
    if "usage" not in posterior:
        raise InvalidArgumentError("tree: expected usage in the posterior; ask posterior(usage=True) for it.")
    if gene not in posterior["gene"].values:
        raise InvalidArgumentError(f"gene: expected one of {list(posterior['gene'].values)}, found {gene!r}.")
    place = np.asarray(coordinates, dtype=np.float64)
    usage = posterior["usage"].sel(gene=gene).transpose("chain", "draw", "spot", "isoform")
    if place.ndim != 2 or place.shape[0] != usage.sizes["spot"] or place.shape[1] < 2:
        raise InvalidArgumentError(f"coordinates: expected ({usage.sizes['spot']}, 2), found {place.shape}.")
    observed = tree["observed_data"].to_dataset()
    counts = np.asarray(observed["counts"].sel(gene=gene), dtype=np.float64)
    names = observed["isoform"].values
    return _long(place, names, counts, usage.mean(("chain", "draw")).values, usage.std(("chain", "draw")).values)


def _long(
    place: np.ndarray,
    names: Sequence[str] | np.ndarray,
    counts: np.ndarray,
    fitted: np.ndarray,
    sd: np.ndarray | None = None,
) -> pd.DataFrame:
    """Tabulate isoforms and spots, a row each, from coordinates (N, 2), counts and fitted ratios (N, K)."""
    total = counts.sum(1, keepdims=True)
    raw = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    values = {"raw": raw, "fitted": fitted} | ({} if sd is None else {"sd": sd})
    columns = {name: value.ravel(order="F") for name, value in values.items()}
    x, y = np.tile(place[:, :2], (len(names), 1)).T
    return pd.DataFrame({"x": x, "y": y, "isoform": np.repeat(np.asarray(names, object), len(place)), **columns})


def _dense(layer: object) -> np.ndarray:
    return np.asarray(layer.toarray() if hasattr(layer, "toarray") else layer, dtype=np.float64)
