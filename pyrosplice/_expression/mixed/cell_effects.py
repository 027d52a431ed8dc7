"""Random effects that a person asked for beside a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.positions import SPATIAL_KEY, Spots
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.columns import complete_cells
from pyrosplice._tables.coordinates import SpatialKey, spatial_key_of
from pyrosplice.effects._effect_list import GivenEffect, field_of, read_effects
from pyrosplice.effects._field import Field
from pyrosplice.effects._group_terms import Groups, random_effects
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._bound_effects import BoundEffects, FittedSites, bind_effects

OF_EFFECTS = ("effects", "space", "spatial_key", "section_key")  # arguments that make an :class:`EffectsRequest`


@dataclass(frozen=True)
class EffectsRequest:
    """Random effects that were asked for beside a formula.

    Attributes
    ----------
    effects
        Effects of groups, :class:`~pyrosplice.effects.Independent`, and one field at most.
    spatial_key
        Where in ``obsm``, or in which columns of ``obs``, the field's positions are.
    section_key
        Column with the section of each cell: the field has no neighbours in others.
    """

    effects: tuple[GivenEffect, ...] = ()
    spatial_key: SpatialKey = SPATIAL_KEY
    section_key: str | None = None

    @classmethod
    def of(cls, effects: Any, space: Any, spatial_key: Any, section_key: str | None) -> EffectsRequest:
        """Check what ``fit.model`` was given.

        Raises
        ------
        InvalidArgumentError
            Something that is no effect, two fields, or keys that no field uses.
        """
        given = read_effects(effects, space)
        if not isinstance(section_key, str | None):
            raise InvalidArgumentError(f"section_key: expected the name of it, a text, found {section_key!r}.")
        spatial_key = spatial_key_of(spatial_key)
        for name, value, default in (("spatial_key", spatial_key, SPATIAL_KEY), ("section_key", section_key, None)):
            if field_of(given) is None and value != default:
                raise InvalidArgumentError(
                    f"{name}: it says where a field is, and there is none, found {value!r}; give "
                    "space=pyrosplice.effects.Field(), or leave it out."
                )
        return cls(given, spatial_key, section_key)

    def with_formula(
        self, formula: str, cells: Cells, argument: str, as_numeric: Sequence[str] | str
    ) -> tuple[str, EffectsRequest]:
        """The formula without its random terms, and the request with them."""
        table = pd.DataFrame(index=range(cells.n_used)) if cells.table is None else cells.table
        rest, terms = random_effects(formula, table, argument, as_numeric=as_numeric)
        return rest, EffectsRequest((*terms, *self.effects), self.spatial_key, self.section_key)

    def complete_rows(self, cells: Cells) -> NDArray[np.bool_]:
        """Cells that have every label and number which the effects need, ``(N,)``."""
        used = np.ones(cells.n, dtype=bool)
        if cells.table is None:
            return used
        for one in self.effects:
            if isinstance(one, Groups):
                used &= one.complete_rows(cells.table)
            elif isinstance(one, Field) and one.by is not None:
                used &= complete_cells(cells.table, [one.by], "space", as_numeric=None)
        if self.section_key is not None:
            used &= complete_cells(cells.table, [self.section_key], "section_key", as_numeric=())
        return used

    def bind(self, cells: Cells, spots: Spots | None) -> BoundEffects | None:
        """The effects of the cells in use; None where none were asked for."""
        if not self.effects:
            return None
        table = pd.DataFrame(index=range(cells.n_used)) if cells.table is None else cells.table
        return bind_effects(self.effects, table, self._sites(cells, spots), what="cells", stacklevel=6)

    def _sites(self, cells: Cells, spots: Spots | None) -> FittedSites:
        """Where the cells are, as far as a field needs it."""
        field = field_of(self.effects)
        if field is None:
            return FittedSites()
        labels = None if self.section_key is None else cells.levels(self.section_key, "section_key")
        positions, adjacency, graph_key = None, None, None
        if field.covariance is None:
            if spots is None:
                raise InvalidArgumentError("space: a field needs an AnnData with the positions of its cells in obsm.")
            graph_key = spots.squidpys(self.spatial_key, field.k_neighbors, field.graph)
            if graph_key is None:
                positions = spots.points(cells, self.spatial_key)
            else:
                sections = None if labels is None else labels.names
                adjacency = spots.given_graph(cells, graph_key, sections, stacklevel=7)
        return FittedSites(positions, self.section_key, labels, adjacency, graph_key)
