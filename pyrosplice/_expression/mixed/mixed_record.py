"""What is known of a fit with random effects without its counts: for tables, tests, and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.mixed.separated_genes import SeparatedGenes, known_of_contrasts
from pyrosplice._hypothesis.coefficients.unit_law import UnitLaw, freedom_of
from pyrosplice._io.codec import NEW, check_sizes
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.effects._units import Coefficients, ContrastUnits, DesignUnits
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ContrastLaw:
    """The law of contrasts that are tested together: their covariance, and between–within degrees of freedom ``(G,)``.

    ``robust`` says which of them separated genes identify, and ``units`` are those of the other genes.
    """

    robust: RobustCovariance
    between_within: Array
    units: ContrastUnits


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
    separated
        Genes with coefficients that have no finite estimate, and what is known of the others.
    """

    groups: tuple[GroupBlock, ...]
    mixed: EffectsFit
    law: CovarianceLaw
    coefficients: Coefficients
    section_key: str = field(default="", metadata={NEW: True})
    sections: NDArray[np.intp] | None = field(default=None, metadata={NEW: True})
    separated: tuple[SeparatedGenes, ...] = field(default=(), metadata={NEW: True})

    @property
    def unit_law(self) -> UnitLaw:
        """Laws of contrasts of the free coefficients."""
        within = None if self.sections is None else (self.section_key, self.sections)
        return UnitLaw(self.law, DesignUnits(self.coefficients, self.groups, "cells", within))

    def contrast_law(self, rows: Array, df: DfRule | float, units: ContrastUnits) -> ContrastLaw:
        """Law of contrasts ``(k, F)`` whose units are given; those of separated genes are of the cells they leave."""
        law = self.unit_law
        known = known_of_contrasts(self.law.covariance, self.mixed.reason, self.separated, rows)
        n_genes, identified = len(known.df), dict(known.identified or {})
        freedom = freedom_of(self.law, rows, units, df)
        names, numbers = np.full(n_genes, units.unit, dtype=object), np.full(n_genes, units.n_units)
        between_within = np.full(n_genes, units.df)
        for part in self.separated:
            genes, combined = part.limit.genes, part.limit.combinations(rows) @ rows
            if not len(combined):
                continue
            own = part.units(law.units, combined, df)
            if own is None:
                identified |= {gene: np.zeros((0, len(rows))) for gene in genes.tolist()}
                continue
            freedom[genes] = part.freedom(combined, own, df)
            names[genes], numbers[genes], between_within[genes] = own.unit, own.n_units, own.df
        robust = replace(known, df=freedom, units=(names, numbers), identified=identified)
        return ContrastLaw(robust, between_within, units)

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
        for part in self.separated:
            part.check(len(genes), self.coefficients.names, len(self.coefficients.matrix))
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
