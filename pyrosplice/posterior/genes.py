"""Trees of many genes: joined, padded where genes have different numbers of isoforms, and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from pyrosplice.errors import InvalidArgumentError

NAMES = "isoform_name"  # (gene, isoform); empty where padded
PADDED = ("isoform", "logit", "component")


def joined(trees: Sequence[xr.DataTree], genes: Sequence[str], isoforms: Mapping[str, Sequence[str]]) -> xr.DataTree:
    """One tree of all genes, in the order of ``genes``.

    Parameters
    ----------
    trees
        The same groups and options, other genes.
    genes, isoforms
        Order of the genes, and the names of each one's isoforms: coordinate ``isoform_name`` ``(gene, isoform)``.

    Returns
    -------
    DataTree
        Where genes have fewer isoforms (logits, variance components) than others, NaN; counts are then floats.
    """
    groups = {}
    for name in trees[0].children:
        parts = [tree[name].to_dataset() for tree in trees]
        whole = xr.concat(parts, "gene", data_vars="minimal", coords="minimal", compat="override", join="outer")
        whole = whole.sel(gene=list(genes))
        if "isoform" in whole.dims:
            width = whole.sizes["isoform"]
            table = [[*isoforms[gene], *[""] * (width - len(isoforms[gene]))] for gene in genes]
            whole = whole.assign_coords({NAMES: (("gene", "isoform"), np.array(table))})
        groups[name] = whole
    tree = xr.DataTree.from_dict(groups)
    tree.attrs |= trees[0].attrs
    return tree


def one_gene(tree: xr.DataTree, gene: object, *, isoform: object = None) -> xr.DataTree:
    """The tree of one gene as ArviZ's functions want it: no padding, isoforms by name, counts whole numbers again.

    With ``isoform``, counts (and usage) of that isoform alone, so that there is one observation a spot: ArviZ's
    ``plot_ppc_pit``, ``plot_ppc_pava``, ``plot_ppc_interval``, ``plot_ppc_rootogram`` and ``plot_loo_pit`` take
    observations with one dimension only. (``log_likelihood`` stays that of all of a spot's counts.) ArviZ's ``psense``
    adds up the densities of all that it is given: of a whole tree, it scales the priors of all genes together.

    Parameters
    ----------
    tree
        Of a model's ``posterior``.
    gene, isoform
        Coordinates, usually names.

    Raises
    ------
    InvalidArgumentError
        A gene or isoform that is not in the tree.
    """
    if gene not in units_of(tree):
        raise InvalidArgumentError(f"gene: {gene!r} is not one of the {len(units_of(tree))} genes of the tree.")
    attrs = tree.attrs
    one = tree.sel(gene=gene).map_over_datasets(_unpadded)
    one = _observed_spots(one)
    if isoform is not None:
        known = one["observed_data"].coords.get("isoform")
        if known is None or isoform not in known.values:
            found = "none" if known is None else ", ".join(map(repr, known.values.tolist()))
            raise InvalidArgumentError(f"isoform: {isoform!r} is not one of those of {gene!r}: {found}.")
        one = one.map_over_datasets(partial(_of_isoform, isoform=isoform))
    one.attrs |= attrs
    return one


def _observed_spots(tree: xr.DataTree) -> xr.DataTree:
    """The tree without the log likelihood of spots without counts, which is 0 in every draw: they are no observations.

    Leave-one-out cross-validation fits a tail to each observation's draws, and there is none in a constant.
    """
    if "log_likelihood" not in tree.children or "total" not in tree["constant_data"].data_vars:
        return tree
    seen = tree["constant_data"]["total"].to_numpy() > 0
    groups = {name: child.to_dataset() for name, child in tree.children.items()}
    groups["log_likelihood"] = groups["log_likelihood"].isel(spot=np.flatnonzero(seen))
    return xr.DataTree.from_dict(groups)


def units_of(tree: xr.DataTree) -> np.ndarray:
    """Names of the genes; one name for the tree of a mixture."""
    coordinates = tree["observed_data"].coords if "observed_data" in tree.children else tree["posterior"].coords
    return np.atleast_1d(coordinates["gene"].values) if "gene" in coordinates else np.array(["all"])


def by_unit(array: Any) -> np.ndarray:
    """Values with a dimension of genes after ``chain`` and ``draw``, of length one if there is none."""
    values, n_draws = np.asarray(array), sum(dim in array.dims for dim in ("chain", "draw"))
    return values if "gene" in array.dims else np.expand_dims(values, n_draws)


def entries_of(values: np.ndarray) -> np.ndarray:
    """Entries of a gene's values (..., E), without those that only genes with more isoforms have."""
    return np.flatnonzero(~np.isnan(values).all(tuple(range(values.ndim - 1))))


def names_by_gene(tree: xr.DataTree) -> bool:
    """Whether each gene has isoforms of its own names."""
    data: Mapping[Any, Any] = tree["observed_data"].coords if "observed_data" in tree.children else {}
    return NAMES in data and data[NAMES].ndim > 1


def is_padded(tree: xr.DataTree) -> bool:
    """Whether the genes of a tree have different numbers of isoforms."""
    return names_by_gene(tree) and bool((tree["observed_data"].coords[NAMES] == "").any())


def _of_isoform(dataset: xr.Dataset, *, isoform: object) -> xr.Dataset:
    return dataset.sel(isoform=isoform) if "isoform" in dataset.dims else dataset


def _unpadded(dataset: xr.Dataset) -> xr.Dataset:
    if NAMES in dataset.coords:
        names = dataset.coords[NAMES].values
        dataset = dataset.drop_vars(NAMES).assign_coords(isoform=names).isel(isoform=np.flatnonzero(names != ""))
    for dim in PADDED[1:]:
        if dim in dataset.dims and dataset.sizes[dim]:
            dataset = dataset.dropna(dim, how="all")
    if "counts" in dataset and "spot" in dataset["counts"].dims and "isoform" in dataset["counts"].dims:
        counts = dataset["counts"]
        if counts.dtype.kind == "f" and bool((counts == counts.round()).all()):
            dataset = dataset.assign(counts=counts.astype(np.int64))
    return dataset
