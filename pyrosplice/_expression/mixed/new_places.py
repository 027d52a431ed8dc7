"""Where new cells are in the tissue of a fit with a field in space."""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.positions import Spots
from pyrosplice._tables.cells import obs_of
from pyrosplice._tables.columns import one_column
from pyrosplice._tables.coordinates import SpatialKey, coordinates_name, has_coordinates, read_coordinates
from pyrosplice._tables.labels import read_labels
from pyrosplice.effects._field import Field
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial._graph import check_coords
from pyrosplice.spatial._new_spots import FieldPlaces, Positions, new_spots, same_spots
from pyrosplice.spatial.car import CarCovariance

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FittedPlaces:
    """Where the cells of a fit are.

    Attributes
    ----------
    spots
        Positions of the data; None for data that have none.
    spatial_key, section_key
        What positions and sections are called.
    """

    spots: Spots | None
    spatial_key: SpatialKey
    section_key: str | None

    def of_new(self, estimator: MixedEstimator, new: ad.AnnData | pd.DataFrame) -> FieldPlaces:
        """Places of new cells beside those of the fit; one at the position of a fitted cell has the field there.

        Raises
        ------
        InvalidArgumentError
            A field that multiplies a column or has a covariance of its own; no positions, or of other dimensions.
        """
        field = next(one for one in estimator.effects.given if isinstance(one, Field))
        if estimator.effects.family is not None:
            raise InvalidArgumentError(
                f"new: {field!r} has a rho of its own for each gene, which predictions at new places do not know; fit "
                "with a number for rho, or leave new out."
            )
        covariance = estimator.effects.field
        if field.by is not None or field.covariance is not None or not isinstance(covariance, CarCovariance):
            raise InvalidArgumentError(
                f"new: {field!r} says nothing of other places, since it multiplies a column or has a covariance of its "
                "own; predict() without new cells is of the fitted ones."
            )
        if estimator.effects.graph_key is not None:
            raise InvalidArgumentError(
                f"new: the neighbours of the fit are those of obsp[{estimator.effects.graph_key!r}], which says "
                "nothing of other places; fit with Field(k_neighbors=6), whose graph new cells can be put into."
            )
        name, cells = coordinates_name(self.spatial_key, "new"), estimator.input_data.cells
        there = isinstance(new, ad.AnnData) and has_coordinates(self.spatial_key, new.obsm, obs_of(new))
        if not isinstance(new, ad.AnnData) or not there or self.spots is None:
            raise InvalidArgumentError(
                f"new: the fit has a field in space; expected an AnnData with the positions of its "
                f"cells in {name.removeprefix('new.')}."
            )
        own = self.spots.points(cells, self.spatial_key)
        coords = check_coords(read_coordinates(self.spatial_key, new.obsm, obs_of(new), of="new"), name=name)
        if coords.shape[1] != own.shape[1]:
            raise InvalidArgumentError(f"{name}: expected {own.shape[1]} coordinates, found {coords.shape[1]}.")
        sections = self._sections(estimator, obs_of(new))
        old, asked = Positions(own, sections[: len(own)]), Positions(coords, sections[len(own) :])
        index = pd.RangeIndex(len(own)) if cells.index is None else cells.index
        names = index.to_numpy(dtype=object), new.obs_names.to_numpy(dtype=object)
        fitted = same_spots(old, asked, names, "new")
        if (fitted >= 0).all():
            return FieldPlaces(fitted, None)
        beside = asked.take(fitted < 0)
        return FieldPlaces(fitted, new_spots(covariance, old, beside, k_neighbors=field.n_nearest, graph=field.edges))

    def _sections(self, estimator: MixedEstimator, table: pd.DataFrame) -> NDArray[np.intp]:
        """Codes of the sections of fitted and of new cells; one that was not fitted has a code of its own."""
        if self.section_key is None:
            return np.zeros(len(estimator.input_data.location.matrix) + len(table), np.intp)
        own = estimator.input_data.cells.levels(self.section_key, "section_key").names
        new = read_labels(one_column(table, self.section_key, "new"), f"new: column {self.section_key!r}").names
        return np.asarray(pd.factorize(np.concatenate([own, new]))[0], np.intp)
