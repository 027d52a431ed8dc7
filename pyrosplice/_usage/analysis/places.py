"""Spots that predictions are asked for: which of them were fitted, their covariates, and the field at the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._tables.columns import one_column
from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.coordinates import coordinates_name, read_coordinates
from pyrosplice._tables.labels import read_labels
from pyrosplice._usage.analysis.fits import UsageAnalysis
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.reading.design import covariates_again
from pyrosplice._usage.reading.isoforms import table_of
from pyrosplice.effects._effect_list import field_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._connectivities import documented_edges
from pyrosplice.spatial._graph import Graph, check_coords
from pyrosplice.spatial._new_spots import NewSpots, Positions, new_spots, same_spots
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance

GIVEN = "adata_new"


@dataclass(frozen=True)
class AskedSpots:
    """Spots that predictions are asked for.

    Attributes
    ----------
    names
        Names of the n spots.
    covariates
        Those of the fit that can be estimated together, ``(n, P')``.
    fitted
        Which fitted spot each is, −1 for a new one, ``(n,)``.
    field
        The field at the new ones; None where nothing is spatial or none is new.
    """

    names: pd.Index
    covariates: Tensor
    fitted: Tensor
    field: NewSpots | None

    @property
    def unjoined(self) -> NDArray[np.bool_]:
        """Which have the field of the prior, ``(n,)``."""
        out = np.zeros(len(self.names), dtype=bool)
        if self.field is not None:
            out[(self.fitted < 0).numpy()] = ~self.field.joined
        return out


def asked_spots(analysis: UsageAnalysis, given: object, design_mtx: object) -> AskedSpots:
    """Read the spots of an AnnData or of coordinates; the fitted ones for None."""
    prepared = analysis.prepared
    if given is None:
        if design_mtx is not None:
            raise InvalidArgumentError(f"design_mtx: expected None without {GIVEN}, at the fitted spots.")
        values = None if prepared.design is None else prepared.design.values
        names = prepared.data.adata.obs_names
        return AskedSpots(names, _estimable(analysis, values, len(names)), torch.arange(len(names)), None)
    obs = table_of(given, "obs") if isinstance(given, AnnData) else None
    coords = _coordinates(analysis, given)
    n_spots = len(obs) if obs is not None else 0 if coords is None else len(coords)
    names = pd.RangeIndex(n_spots) if obs is None else obs.index
    if not n_spots:
        raise InvalidArgumentError(f"{GIVEN}: expected a spot or more, found none.")
    covariates = _estimable(analysis, _covariates(analysis, obs, design_mtx, n_spots), n_spots)
    if coords is None:
        return AskedSpots(names, covariates, torch.full((n_spots,), -1), None)
    old, new = _positions(analysis, obs, coords)
    both = prepared.data.adata.obs_names.to_numpy(dtype=object), names.to_numpy(dtype=object)
    fitted = same_spots(old, new, both, GIVEN)
    field, covariance = None, prepared.covariance
    if (fitted < 0).any() and isinstance(covariance, CarCovariance):
        k, graph = _neighbors(analysis)
        field = new_spots(covariance, old, new.take(fitted < 0), k_neighbors=k, graph=graph)
    return AskedSpots(names, covariates, torch.from_numpy(fitted), field)


def _neighbors(analysis: UsageAnalysis) -> tuple[int, Graph]:
    """How many neighbors a spot has in the fitted graph, and which edges."""
    listed, options = analysis.prepared.listed, analysis.options
    field = None if listed is None else field_of(listed.given)
    if field is not None:
        return field.n_nearest, field.edges
    return int(options.k_neighbors), documented_edges(options.graph)


def _coordinates(analysis: UsageAnalysis, given: object) -> NDArray[np.float64] | None:
    """Coordinates of the spots; None for models that need none."""
    prepared, key = analysis.prepared, analysis.prepared.spatial_key
    if prepared.covariance is None or isinstance(prepared.covariance, IdentityCovariance):
        if not isinstance(given, AnnData):
            raise InvalidArgumentError(
                f"{GIVEN}: expected an AnnData, found {type(given).__name__}; model_type={analysis.model_type!r} "
                "has no space."
            )
        return None
    if key is None:
        raise InvalidArgumentError(
            f"{GIVEN}: expected None. The graph or the covariance was given itself (adj_key, covariance, or squidpy's "
            "obsp['spatial_connectivities']), which says nothing of other spots; fit with spatial_key and k_neighbors "
            "alone to predict at those."
        )
    if analysis.options.rank(prepared.n_spots) is not None:
        raise InvalidArgumentError(f"{GIVEN}: expected a fit with the exact covariance; set approx_rank=None.")
    name = GIVEN
    if isinstance(given, AnnData):
        name = coordinates_name(key, GIVEN)
        given = read_coordinates(key, given.obsm, table_of(given, "obs"), of=GIVEN)
    coords, own = check_coords(given, name=name), _own_coordinates(prepared)
    if coords.shape[1] != own.shape[1]:
        raise InvalidArgumentError(f"{name}: expected {own.shape[1]} coordinates a spot, found {coords.shape[1]}.")
    return coords


def _own_coordinates(prepared: Prepared) -> NDArray[np.float64]:
    coordinates = prepared.coordinates
    if coordinates is None:
        raise AssertionError("checked before")
    return coordinates


def _covariates(
    analysis: UsageAnalysis, obs: pd.DataFrame | None, design_mtx: object, n_spots: int
) -> NDArray[np.float64] | None:
    prepared, design = analysis.prepared, analysis.prepared.design
    if design is None or not analysis.fit.with_design:
        if design_mtx is not None:
            raise InvalidArgumentError("design_mtx: expected None, the models were fitted without covariates.")
        return None
    if design_mtx is None and obs is None:
        raise InvalidArgumentError(
            f"{GIVEN}: expected an AnnData whose obs has what the covariates {list(design.names)} are made of, or "
            "those as design_mtx; found coordinates alone."
        )
    if design_mtx is None:
        return covariates_again(design, prepared.formula, prepared.data.adata.obs, _required(obs), f"{GIVEN}.obs")
    return _given_covariates(design.names, design_mtx, n_spots)


def _required(obs: pd.DataFrame | None) -> pd.DataFrame:
    if obs is None:
        raise AssertionError("checked before")
    return obs


def _given_covariates(names: tuple[str, ...], design_mtx: object, n_spots: int) -> NDArray[np.float64]:
    """A matrix with a column for every covariate; a table's columns by name."""
    if isinstance(design_mtx, pd.DataFrame):
        design_mtx = np.column_stack([one_column(design_mtx, name, "design_mtx").to_numpy() for name in names])
    values = as_dense(design_mtx, "design_mtx")
    if values.shape != (n_spots, len(names)):
        raise InvalidArgumentError(
            f"design_mtx: expected shape {(n_spots, len(names))}, a column for each of {list(names)}; found "
            f"{values.shape}."
        )
    if not np.isfinite(values).all():
        raise InvalidArgumentError("design_mtx: expected finite numbers.")
    return values


def _estimable(analysis: UsageAnalysis, values: NDArray[np.float64] | None, n_spots: int) -> Tensor:
    design = analysis.prepared.design
    if values is None or design is None or not analysis.fit.with_design:
        return torch.zeros(n_spots, 0, dtype=torch.float64)
    return torch.from_numpy(np.ascontiguousarray(values[:, design.estimable]))


def _positions(
    analysis: UsageAnalysis, obs: pd.DataFrame | None, coords: NDArray[np.float64]
) -> tuple[Positions, Positions]:
    """Where the fitted spots are, and those asked for; a section that was not fitted has a code of its own."""
    prepared, key = analysis.prepared, analysis.prepared.section_key
    own = _own_coordinates(prepared)
    if key is None:
        return Positions(own, np.zeros(len(own), np.intp)), Positions(coords, np.zeros(len(coords), np.intp))
    if obs is None:
        raise InvalidArgumentError(
            f"{GIVEN}: expected an AnnData whose obs names the section of every spot, {key!r}; found coordinates alone."
        )
    old = read_labels(one_column(prepared.data.adata.obs, key, "section_key"), "section_key")
    new = read_labels(one_column(obs, key, f"{GIVEN}.obs"), f"{GIVEN}.obs[{key!r}]")
    levels = {name: code for code, name in enumerate(dict.fromkeys((*old.levels, *new.levels)))}
    old_codes, new_codes = (np.array([levels[name] for name in labels.names], np.intp) for labels in (old, new))
    return Positions(own, old_codes), Positions(coords, new_codes)
