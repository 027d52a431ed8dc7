"""Random effects that a person asked for, and what they are of the cells that are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._expression.positions import SPATIAL_KEY, Spots
from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._tables.cells import Cells
from pyrosplice._tables.columns import complete_cells
from pyrosplice._tables.coordinates import SpatialKey, spatial_key_of
from pyrosplice.effects._effect import Effect, bind
from pyrosplice.effects._field import RHO, Field, Independent
from pyrosplice.effects._field_family import FieldFamily
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._group_terms import Groups, random_effects
from pyrosplice.errors import InvalidArgumentError, call_hint
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.spatial._covariance import SpatialCovariance

Array = NDArray[np.float64]
OF_EFFECTS = ("effects", "space", "spatial_key", "section_key")  # arguments that make an :class:`EffectsRequest`


@dataclass(frozen=True)
class CellEffects:
    """Random effects of the cells that are fitted.

    Attributes
    ----------
    given
        As they were asked for, those of the formula first.
    groups
        Effects of groups.
    field
        The field's covariance; None for no field.
    space, space_by
        The same as the engine takes it, and what multiplies the field.
    noise
        Whether every cell has an effect of its own.
    family
        Fields whose parameter is estimated, each gene's own; ``field`` and ``space`` are then of the default.
    sections
        Column of the sections that the field is in, and the section of each cell ``(N,)``; None for one.
    graph_key
        Key of ``obsp`` with the field's neighbours; None where they are the nearest ones.
    """

    given: tuple[Effect | Field | Independent, ...]
    groups: tuple[GroupBlock, ...]
    field: SpatialCovariance | None = None
    space: SpatialSolver | None = None
    space_by: Array | None = None
    noise: bool = False
    family: FieldFamily | None = None
    sections: tuple[str, NDArray[np.intp]] | None = None
    graph_key: str | None = None

    def problem(self, counts: Array, design: Array, offset: Array, likelihood: Likelihood) -> EffectsProblem:
        """What the engine fits: counts ``(g, N)``, offset ``(N,)`` or ``(g, N)``."""
        return EffectsProblem(
            counts=torch.from_numpy(np.ascontiguousarray(counts, dtype=np.float64)).unsqueeze(-1),
            design=design,
            likelihood=likelihood,
            offset=offset if offset.ndim == 1 else offset[..., None],
            groups=self.groups,
            space=self.space,
            space_by=self.space_by,
            noise=self.noise,
        )

    def __str__(self) -> str:
        return ", ".join(f"({one.name})" if isinstance(one, Effect) else repr(one) for one in self.given)


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

    effects: tuple[Effect | Field | Independent, ...] = ()
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
        if isinstance(effects, (Effect, Field, Independent)):
            effects = (effects,)
        given = [*effects] if isinstance(effects, Sequence) and not isinstance(effects, str) else [effects]
        if space is not None and not isinstance(space, Field):
            raise InvalidArgumentError(
                f"space: expected a field, such as pyrosplice.effects.Field(k_neighbors=6), found {space!r}"
                f"{call_hint(space, Field)}."
            )
        for one in given:
            if not isinstance(one, (Effect, Field, Independent)):
                raise InvalidArgumentError(
                    f"effects: expected Groups, Independent, Field or an Effect of your own, found {one!r}"
                    f"{call_hint(one, Effect)}."
                )
        given += [] if space is None else [space]
        fields = [one for one in given if isinstance(one, Field)]
        if len(fields) > 1 or sum(isinstance(one, Independent) for one in given) > 1:
            raise InvalidArgumentError(
                f"effects: expected one field and one effect of every cell at most, found {given}. A field that "
                "multiplies a covariate stands in the place of the common one; groups may vary beside it."
            )
        if not isinstance(section_key, str | None):
            raise InvalidArgumentError(f"section_key: expected the name of it, a text, found {section_key!r}.")
        spatial_key = spatial_key_of(spatial_key)
        for name, value, default in (("spatial_key", spatial_key, SPATIAL_KEY), ("section_key", section_key, None)):
            if not fields and value != default:
                raise InvalidArgumentError(
                    f"{name}: it says where a field is, and there is none, found {value!r}; give "
                    "space=pyrosplice.effects.Field(), or leave it out."
                )
        return cls(tuple(given), spatial_key, section_key)

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

    def bind(self, cells: Cells, spots: Spots | None) -> CellEffects | None:
        """The effects of the cells in use; None where none were asked for."""
        if not self.effects:
            return None
        table = pd.DataFrame(index=range(cells.n_used)) if cells.table is None else cells.table
        groups = bind([one for one in self.effects if isinstance(one, Effect)], table)
        noise = any(isinstance(one, Independent) for one in self.effects)
        field = next((one for one in self.effects if isinstance(one, Field)), None)
        if field is None:
            return CellEffects(self.effects, groups, noise=noise)
        labels = None if self.section_key is None else cells.levels(self.section_key, "section_key")
        sections = None if labels is None else labels.names
        positions, adjacency, graph_key = None, None, None
        if field.covariance is None:
            if spots is None:
                raise InvalidArgumentError("space: a field needs an AnnData with the positions of its cells in obsm.")
            graph_key = spots.squidpys(self.spatial_key, field.k_neighbors, field.graph)
            if graph_key is None:
                positions = spots.points(cells, self.spatial_key)
            else:
                adjacency = spots.given_graph(cells, graph_key, sections, stacklevel=6)
        family = field.family_at(positions, sections, adjacency=adjacency, stacklevel=6)
        if family is None:
            covariance = field.covariance_at(positions, sections, adjacency=adjacency, stacklevel=6)
        else:
            covariance = cast(SpatialCovariance, family.covariance(RHO))
        space = solver_for(covariance)
        if space.n_spots != cells.n_used:
            raise InvalidArgumentError(
                f"space: expected a covariance of {cells.n_used} cells, those that are fitted, found one of "
                f"{space.n_spots}."
            )
        within = None if labels is None or len(labels.levels) < 2 else (str(self.section_key), labels.codes)
        by = field.multiplier(table)
        return CellEffects(self.effects, groups, covariance, space, by, noise, family, within, graph_key)
