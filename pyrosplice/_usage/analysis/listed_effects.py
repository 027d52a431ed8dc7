"""The list of random effects that an analysis is given, bound to its spots, and the spots that have all it needs."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyrosplice._tables.columns import complete_cells, one_column
from pyrosplice._tables.coordinates import read_coordinates
from pyrosplice._tables.labels import read_labels
from pyrosplice._usage.analysis.data_options import DataOptions
from pyrosplice._usage.analysis.spot_graph import given_adjacency, graph_key, key_of_places
from pyrosplice._usage.reading.design import complete_spots
from pyrosplice.effects._field import Field
from pyrosplice.effects._group_terms import Groups
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._bound_effects import BoundEffects, FittedSites, bind_effects


def listed_effects(
    adata: AnnData, obs: pd.DataFrame, spots: NDArray[np.bool_], options: DataOptions
) -> BoundEffects | None:
    """The effects of some of the spots of the table ``obs``; None where none were asked for."""
    if not options.effects:
        return None
    field, sites = options.field, FittedSites()
    if field is not None:
        key = options.section_key
        labels = None if key is None else read_labels(one_column(obs, key, "section_key")[spots], "section_key")
        sites = FittedSites(None, key, labels)
        if field.covariance is None:
            sites = _sites(adata, obs, spots, options, sites)
    return bind_effects(options.effects, obs[spots], sites, what="spots", stacklevel=4)


def _sites(
    adata: AnnData, obs: pd.DataFrame, spots: NDArray[np.bool_], options: DataOptions, sites: FittedSites
) -> FittedSites:
    """Sites with positions of the spots, or the graph that squidpy left where no other was asked for."""
    key = graph_key(adata, None, options.spatial_key, *options.asked_neighbors)
    if key is not None:
        return replace(sites, adjacency=given_adjacency(adata, key, spots, sites.names), graph_key=key)
    places = key_of_places(options.spatial_key, adata)
    return replace(sites, positions=read_coordinates(places, adata.obsm, obs)[spots])


def complete(obs: pd.DataFrame, options: DataOptions) -> NDArray[np.bool_]:
    """Mask of the spots that have every label and number that is asked for, if the others may be left out."""
    kept = np.ones(len(obs), dtype=bool)
    if options.missing == "raise":
        return kept
    if options.design_mtx is not None:
        kept &= complete_spots(options.design_mtx, obs)
    for one in options.effects:
        if isinstance(one, Groups):
            kept &= one.complete_rows(obs)
        elif isinstance(one, Field) and one.by is not None:
            kept &= complete_cells(obs, [one.by], "effects", as_numeric=None)
    if options.section_key is not None:
        kept &= complete_cells(obs, [options.section_key], "section_key")
    if not kept.any():
        raise InvalidArgumentError(
            f"missing='drop': none of {len(kept)} spots has every label and number of design_mtx, effects and "
            "section_key."
        )
    if not kept.all():
        warnings.warn(
            f"missing='drop': {int((~kept).sum())} of {len(kept)} spots have no label or number in design_mtx, "
            "effects or section_key and are left out.",
            stacklevel=4,
        )
    return kept
