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
DENSITIES = ("log_likelihood", "left_out")  # one a spot
OBSERVATIONS = (*DENSITIES, "observed_data", "posterior_predictive", "prior_predictive")


def joined(trees: Sequence[xr.DataTree], genes: Sequence[str], isoforms: Mapping[str, Sequence[str]]) -> xr.DataTree:
    """Join the trees of all genes to one, in the order of ``genes``.

    Parameters
    ----------
    trees
        Trees of the same groups and options, of other genes.
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
        if name in DENSITIES and "spot" in whole.dims:  # a batch leaves out the spots that all its genes lack
            spots = trees[0]["constant_data"]["spot"].to_numpy()
            whole = whole.sel(spot=spots[np.isin(spots, whole["spot"].to_numpy())]).fillna(0.0)
        if "isoform" in whole.dims:
            width = whole.sizes["isoform"]
            table = [[*isoforms[gene], *[""] * (width - len(isoforms[gene]))] for gene in genes]
            whole = whole.assign_coords({NAMES: (("gene", "isoform"), np.array(table))})
        groups[name] = whole
    tree = xr.DataTree.from_dict(groups)
    tree.attrs |= trees[0].attrs
    return tree


def one_gene(tree: xr.DataTree, gene: object, *, isoform: object = None) -> xr.DataTree:
    """Take the tree of one gene as ArviZ's functions want it: no padding, isoforms by name, whole counts.

    With ``isoform``, counts (and usage) of that isoform alone, so that there is one observation a spot: ArviZ's
    ``plot_ppc_pit``, ``plot_ppc_pava``, ``plot_ppc_interval``, ``plot_ppc_rootogram`` and ``plot_loo_pit`` take
    observations with one dimension only. (``log_likelihood`` stays that of all of a spot's counts.) ArviZ's ``psense``
    adds up the densities of all that it is given: of a whole tree, it scales the priors of all genes together. Spots
    without counts, which say nothing of the gene, are left out of observations, predictions and log likelihood: ArviZ's
    ``loo`` has no answer to one whose density is the same in every draw.

    Parameters
    ----------
    tree
        Tree of a model's ``posterior``.
    gene, isoform
        Coordinates, usually names.

    Raises
    ------
    InvalidArgumentError
        A gene or isoform that is not in the tree.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import one_gene
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> tree = one_gene(model.posterior(num_samples=100, seed=0), 0)
    >>> dict(tree["posterior"]["beta"].sizes)
    {'chain': 4, 'draw': 25, 'covariate': 1, 'logit': 2}
    """
    if gene not in units_of(tree):
        raise InvalidArgumentError(f"gene: {gene!r} is not one of the {len(units_of(tree))} genes of the tree.")
    attrs = tree.attrs
    one = tree.sel(gene=gene).map_over_datasets(_unpadded)
    one = without_empty_spots(one, OBSERVATIONS)
    if isoform is not None:
        known = one["observed_data"].coords.get("isoform")
        if known is None or isoform not in known.values:
            found = "none" if known is None else ", ".join(map(repr, known.values.tolist()))
            raise InvalidArgumentError(f"isoform: {isoform!r} is not one of those of {gene!r}: {found}.")
        one = one.map_over_datasets(partial(_of_isoform, isoform=isoform))
    one.attrs |= attrs
    return one


def informative_spots(tree: xr.DataTree) -> np.ndarray | None:
    """Say which spots have, for a gene, a log likelihood that differs between draws, ``(N,)``.

    That of a spot without counts does not, where the total of a spot is given: it is no observation. None for a tree
    without log likelihoods, or of other observations.
    """
    group = next((name for name in DENSITIES if name in tree.children), None)
    if group is None or "spot" not in tree[group].dims:
        return None
    density = tree[group]["counts"]
    draws, others = ("chain", "draw"), [dim for dim in density.dims if dim not in ("chain", "draw", "spot")]
    total = tree["constant_data"]["total"]
    total = total.isel(spot=np.isin(total["spot"].to_numpy(), density["spot"].to_numpy()))
    varies = (density.max(draws) > density.min(draws)) | (total > 0).to_numpy()
    return varies.any(others).to_numpy()


def without_empty_spots(tree: xr.DataTree, groups: Sequence[str] = ("log_likelihood",)) -> xr.DataTree:
    """Restrict some groups of the tree to the :func:`informative_spots`.

    Leave-one-out cross-validation fits a tail to each observation's draws, and there is none in a constant.
    """
    seen = informative_spots(tree)
    if seen is None or not bool(seen.any()):
        return tree
    names = next(tree[name]["spot"].to_numpy() for name in DENSITIES if name in tree.children)[seen]
    kept = {name: child.to_dataset() for name, child in tree.children.items()}
    for name in groups:
        if name in kept and "spot" in kept[name].dims:
            same = kept[name].sizes["spot"] == len(seen)
            kept[name] = kept[name].isel(spot=seen if same else np.isin(kept[name]["spot"].to_numpy(), names))
    whole = xr.DataTree.from_dict(kept)
    whole.attrs |= tree.attrs
    return whole


def units_of(tree: xr.DataTree) -> np.ndarray:
    """Names of the genes; one name for the tree of a mixture."""
    coordinates = tree["observed_data"].coords if "observed_data" in tree.children else tree["posterior"].coords
    return np.atleast_1d(coordinates["gene"].values) if "gene" in coordinates else np.array(["all"])


def by_unit(array: xr.DataArray | xr.DataTree) -> np.ndarray:
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
