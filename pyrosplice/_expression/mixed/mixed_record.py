"""What is known of a fit with random effects without its counts: for tables, tests, and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyrosplice._hypothesis.coefficients.unit_law import UnitLaw
from pyrosplice._io.codec import NEW, check_sizes
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw


@dataclass(frozen=True)
class MixedRecord:
    """A fit with random effects.

    Attributes
    ----------
    groups
        Effects of groups, of the cells that were fitted.
    mixed
        Estimates of all genes.
    law
        How their covariance moves with the variances.
    coefficients
        The design of the free coefficients.
    section_key, sections
        Column of the sections that a field is in, and the section of each cell; None for one, or for no field.
    """

    groups: tuple[GroupBlock, ...]
    mixed: EffectsFit
    law: CovarianceLaw
    coefficients: Coefficients
    section_key: str = field(default="", metadata={NEW: True})
    sections: NDArray[np.intp] | None = field(default=None, metadata={NEW: True})

    @property
    def unit_law(self) -> UnitLaw:
        """Laws of contrasts of the free coefficients."""
        within = None if self.sections is None else (self.section_key, self.sections)
        return UnitLaw(self.law, DesignUnits(self.coefficients, self.groups, "cells", within))

    def check(self, genes: Sequence[str]) -> None:
        """Raise :class:`~pyrosplice.errors.ModelFileError` where parts of a file are of different sizes."""
        fit, law = self.mixed, self.law
        check_sizes(
            genes=(genes, "G"),
            coefficients=(fit.coefficients, "GPQ"),
            covariance=(fit.covariance, "GDD"),
            parameters=(fit.parameters, "GJ"),
            parameter_names=(fit.parameter_names, "J"),
            sds=(fit.sds, "GI"),
            inner=(fit.inner, "I"),
            space_values=(fit.space_values, "GR"),
            space_names=(fit.space_names, "R"),
            reason=(fit.reason, "G"),
            law=(law.covariance, "GDD"),
            slopes=(law.slopes, "GKDD"),
            parameter_covariance=(law.parameter_covariance, "GKK"),
            names=(self.coefficients.names, "P"),
            design=(self.coefficients.matrix, "NP"),
        )
        for block, mode, sd in zip(self.groups, fit.group_modes, fit.group_sds, strict=True):
            check_sizes(
                design=(self.coefficients.matrix, "NP"),
                levels=(block.levels, "N"),
                columns=(block.columns, "Nq"),
                basis=(block.basis, "Jqq"),
                level_names=(block.level_names, "D"),
                column_names=(block.column_names, "q"),
                modes=(mode, "GDqQ"),
                sds=(sd, "GDqQ"),
            )
