"""Random effects that a person asked for, and what they are of the observations that are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice.effects._effect import Effect, bind
from pyrosplice.effects._effect_list import GivenEffect, field_of
from pyrosplice.effects._field import RHO, Independent
from pyrosplice.effects._field_family import FieldFamily
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.predictor_moments import NEW_LEVEL, NewRows
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.spatial._covariance import SpatialCovariance

Array = NDArray[np.float64]
NEW_LEVELS = ("population", "raise")


@dataclass(frozen=True)
class BoundEffects:
    """Random effects of the observations that are fitted.

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
        Whether every observation has an effect of its own.
    family
        Fields whose parameter is estimated, each gene's own; ``field`` and ``space`` are then of the default.
    sections
        Column of the sections that the field is in, and the section of each observation ``(N,)``; None for one.
    graph_key
        Key of ``obsp`` with the field's neighbours; None where they are the nearest ones.
    """

    given: tuple[GivenEffect, ...]
    groups: tuple[GroupBlock, ...]
    field: SpatialCovariance | None = None
    space: SpatialSolver | None = None
    space_by: Array | None = None
    noise: bool = False
    family: FieldFamily | None = None
    sections: tuple[str, NDArray[np.intp]] | None = None
    graph_key: str | None = None

    def problem(
        self,
        counts: Tensor,
        design: Array,
        likelihood: Likelihood,
        *,
        offset: Array | None = None,
        isoform_effect: IsoformEffect = "independent",
    ) -> EffectsProblem:
        """What the engine fits; arguments as of :class:`~pyrosplice.glmm._arrow.effects_problem.EffectsProblem`."""
        return EffectsProblem(
            counts=counts,
            design=design,
            likelihood=likelihood,
            offset=offset,
            groups=self.groups,
            space=self.space,
            space_by=self.space_by,
            noise=self.noise,
            isoform_effect=isoform_effect,
        )

    def rows(self, design: Array, table: pd.DataFrame, fitted: pd.DataFrame | None, new_levels: str) -> NewRows:
        """Other observations as predictions take them.

        Parameters
        ----------
        design
            Their covariates ``(n, P)``.
        table
            Grouping factors, slopes and what multiplies the field, a row an observation.
        fitted
            The table that was fitted.
        new_levels
            ``"population"``: levels that the fit never saw have the law of their effect; ``"raise"`` refuses them.

        Raises
        ------
        InvalidArgumentError
            Levels that the fit never saw, where these are refused or related to others; columns that are missing.
        """
        check_option("new_levels", new_levels, NEW_LEVELS)
        effects = [one for one in self.given if isinstance(one, Effect)]
        parts = [
            (_level_places(effect, block, table, new_levels), effect.columns_again(table, fitted, block.column_names))
            for effect, block in zip(effects, self.groups, strict=True)
        ]
        levels = np.column_stack([np.zeros((len(table), 0), np.int64), *(own for own, _ in parts)])
        field = field_of(self.given)
        by = None if field is None or field.by is None else field.multiplier_of(table)
        return NewRows(design, levels, tuple(columns for _, columns in parts), space_by=by)

    def __str__(self) -> str:
        return ", ".join(f"({one.name})" if isinstance(one, Effect) else repr(one) for one in self.given)


def _level_places(effect: Effect, block: GroupBlock, table: pd.DataFrame, new_levels: str) -> NDArray[np.int64]:
    """Position (n,) of each row's level among the fitted ones."""
    argument = f"effect ({block.name})"
    labels = read_labels(effect.levels(table), argument)
    if len(labels.codes) != len(table):
        raise InvalidArgumentError(f"{argument}: expected {len(table)} labels, found {len(labels.codes)}.")
    known = {name: k for k, name in enumerate(block.level_names)}
    place = np.array([known.get(name, NEW_LEVEL) for name in labels.levels], dtype=np.int64)
    unknown = [name for name, k in zip(labels.levels, place, strict=True) if k == NEW_LEVEL]
    if unknown and (new_levels == "raise" or block.root is not None):
        why = "they are related to those of the fit, in a way that is not known" if block.root is not None else ""
        raise InvalidArgumentError(
            f"new_levels: {argument} has levels that the fit never saw, {unknown[:5]}"
            f"{f'; {why}.' if why else '; new_levels=' + repr('population') + ' predicts for any such.'}"
        )
    return place[labels.codes]


@dataclass(frozen=True)
class FittedSites:
    """Where a field is.

    Attributes
    ----------
    positions
        ``(N, D)``; None of a field with a covariance or neighbours of its own.
    section_key, sections
        Column of the sections, and the section of each observation; None for one.
    adjacency, graph_key
        Neighbours that are not the nearest ones, and their key in ``obsp``.
    """

    positions: object = None
    section_key: str | None = None
    sections: Labels | None = None
    adjacency: sp.csr_matrix | None = None
    graph_key: str | None = None

    @property
    def names(self) -> NDArray[np.object_] | None:
        """Name of the section of each observation ``(N,)``; None for one."""
        return None if self.sections is None else self.sections.names


def bind_effects(
    given: Sequence[GivenEffect], table: pd.DataFrame, places: FittedSites, *, what: str, stacklevel: int
) -> BoundEffects:
    """The effects of the rows of a table, one an observation.

    Parameters
    ----------
    given
        At least one.
    table
        Grouping factors, slopes, and what multiplies a field.
    places
        Where these are; read where there is a field.
    what
        What observations are called, ``"cells"``.
    stacklevel
        Of warnings of fields.

    Raises
    ------
    InvalidArgumentError
        What :func:`~pyrosplice.effects._effect.bind` and fields refuse.
    """
    groups = bind([one for one in given if isinstance(one, Effect)], table)
    noise, field = any(isinstance(one, Independent) for one in given), field_of(given)
    if field is None:
        return BoundEffects(tuple(given), groups, noise=noise)
    where: dict[str, Any] = {"adjacency": places.adjacency, "stacklevel": stacklevel + 1}
    family = field.family_at(places.positions, places.names, **where)
    if family is None:
        covariance = field.covariance_at(places.positions, places.names, **where)
    else:
        covariance = cast(SpatialCovariance, family.covariance(RHO))
    space = solver_for(covariance)
    if space.n_spots != len(table):
        raise InvalidArgumentError(
            f"space: expected a covariance of {len(table)} {what}, those that are fitted, found one of {space.n_spots}."
        )
    within = None
    if places.sections is not None and len(places.sections.levels) > 1:
        within = str(places.section_key), places.sections.codes
    by = field.multiplier(table)
    return BoundEffects(tuple(given), groups, covariance, space, by, noise, family, within, places.graph_key)
