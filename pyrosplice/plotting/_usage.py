"""Isoform usage in space: what was counted, what was fitted, and how sure that is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from pyrosplice._tables.coordinates import read_coordinates, spatial_key_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting._style import GRAY, SEQUENTIAL, UNCERTAINTY, pyplot, require_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

PANEL = 2.3  # inches, width and height of one map


def usage_table(
    adata: AnnData,
    isoforms: Sequence[str],
    *,
    counts_layer: str = "counts",
    fitted_layer: str = "fitted_ratios",
    spatial_key: str | Sequence[str] = "spatial",
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

    Returns
    -------
    DataFrame
        Columns ``x``, ``y``, ``isoform``, ``raw`` (missing where the gene was not seen in the spot), ``fitted``.

    Raises
    ------
    InvalidArgumentError
        A layer, an isoform or the coordinates are not in ``adata``.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> from pyrosplice.plotting import usage_table
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=2, seed=0))
    >>> model.fit(print_progress=False)
    >>> adata = model.get_fitted_ratios_anndata()
    >>> isoforms = adata.var_names[adata.var["gene_symbol"] == "gene_1"]
    >>> table = usage_table(adata, isoforms)
    >>> table.shape, table.columns.tolist()  # a row an isoform and spot
    ((192, 5), ['x', 'y', 'isoform', 'raw', 'fitted'])
    """
    for argument, key, found in (
        ("counts_layer", counts_layer, adata.layers),
        ("fitted_layer", fitted_layer, adata.layers),
    ):
        if key not in found:
            raise InvalidArgumentError(f"{argument}: expected one of {list(found)}, found {key!r}.")
    unknown = [name for name in isoforms if name not in adata.var_names]
    if unknown:
        raise InvalidArgumentError(f"isoforms: not in adata.var_names: {unknown}.")
    gene = adata[:, list(isoforms)]
    coordinates = read_coordinates(spatial_key_of(spatial_key), adata.obsm, adata.obs)
    return _long(coordinates, isoforms, _dense(gene.layers[counts_layer]), _dense(gene.layers[fitted_layer]))


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


def usage_map(  # noqa: PLR0913 (a documented interface)
    table: pd.DataFrame,
    *,
    x: str = "x",
    y: str = "y",
    isoform: str = "isoform",
    raw: str = "raw",
    fitted: str = "fitted",
    sd: str = "sd",
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Draw maps of one gene: a column an isoform; raw usage ratios, fitted ones in the same colours, and how sure.

    Parameters
    ----------
    table
        One row an isoform and spot (:func:`usage_table` or :func:`posterior_usage_table` makes it).
    x, y, isoform, raw, fitted
        Columns of the table. Spots without a raw ratio (gene not seen) are small and grey in the upper row.
    sd
        Column of posterior standard deviations of the usage, drawn in a third row if the table has it; from zero, on
        one scale for all isoforms.
    limits
        Colour scale of raw and fitted maps. By default each isoform has its own, the range of its fitted ratios; raw
        ratios beyond it (0 and 1 are common at low counts) get the end colours, which the arrows of the colour bar
        say.
    title
        Title of the figure, for example the gene.

    Returns
    -------
    ndarray of Axes
        Shape (2, isoforms), or (3, isoforms) with ``sd``: raw in the first row, fitted in the second.

    Raises
    ------
    InvalidArgumentError
        A column is missing or ``limits`` is not an increasing pair.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> from pyrosplice.plotting import usage_map, usage_table
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=2, seed=0))
    >>> model.fit(print_progress=False)
    >>> adata = model.get_fitted_ratios_anndata()
    >>> isoforms = adata.var_names[adata.var["gene_symbol"] == "gene_1"]
    >>> axes = usage_map(usage_table(adata, isoforms), title="gene_1")
    >>> axes.shape  # raw and fitted; isoforms
    (2, 3)
    """
    require_columns(table, x, y, isoform, raw, fitted)
    if limits is not None and not limits[0] < limits[1]:
        raise InvalidArgumentError(f"limits: expected (low, high) with low < high, found {limits!r}.")
    names, n_rows = list(dict.fromkeys(table[isoform])), 3 if sd in table else 2
    figure, axes = pyplot().subplots(
        n_rows,
        len(names),
        figsize=(PANEL * len(names) + 0.4, (PANEL + 0.35) * n_rows),
        squeeze=False,
        layout="constrained",
    )
    for column, name in enumerate(names):
        spots = table[table[isoform] == name]
        low, high = limits or _range(spots[fitted].to_numpy(dtype=np.float64))
        place = spots[[x, y]].to_numpy(dtype=np.float64)
        size = _marker_size(place)
        for ax, values in zip(axes[:2, column], (spots[raw], spots[fitted]), strict=True):
            image = _draw_spots(ax, place, values, (low, high), size)
        axes[0, column].set_title(str(name), fontsize="medium")
        extend = _beyond(spots[raw], low, high)
        figure.colorbar(image, ax=axes[:2, column], location="bottom", shrink=0.85, extend=extend, label="usage")
        if n_rows == 3:
            widest = (0.0, float(table[sd].max()) or 1.0)
            image = _draw_spots(axes[2, column], place, spots[sd], widest, size, colors=UNCERTAINTY)
    if n_rows == 3:
        figure.colorbar(
            image, ax=axes[2, :], location="bottom", shrink=0.85 / len(names), label="posterior sd of usage"
        )
    seen_everywhere = bool(table[raw].notna().all())
    rows = ("raw" if seen_everywhere else "raw (small: no molecules)", "fitted", "posterior sd")
    for ax, name in zip(axes[:, 0], rows, strict=False):
        ax.set_ylabel(name)
    if title is not None:
        figure.suptitle(title)
    return axes


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    middle, half = (low + high) / 2, max((high - low) / 2, 0.025)  # a flat map is shown flat
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _beyond(values: pd.Series, low: float, high: float) -> str:
    below, above = bool((values < low).any()), bool((values > high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]


def _marker_size(coordinates: np.ndarray) -> float:
    """Area in points² at which a marker is as wide as the usual distance between neighbouring spots."""
    if len(coordinates) < 2:
        return 36.0
    nearest = np.median(cKDTree(coordinates).query(coordinates, k=2)[0][:, 1])
    extent = np.ptp(coordinates, axis=0).max() + nearest
    return float(np.clip(PANEL * 0.92 * 72 * nearest / extent, 1.0, 14.0) ** 2)


def _draw_spots(
    ax: Axes, place: np.ndarray, values: pd.Series, limits: tuple[float, float], size: float, colors: str = SEQUENTIAL
) -> PathCollection:
    (x, y), seen = place.T, values.notna().to_numpy()
    ax.scatter(x[~seen], y[~seen], s=size / 9, color=GRAY, alpha=0.5, linewidth=0)
    image = ax.scatter(
        x[seen], y[seen], c=values[seen], s=size, cmap=colors, vmin=limits[0], vmax=limits[1], linewidth=0
    )
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return image
