"""Isoforms in sections of two conditions, of which one or all vary between sections, and tests of the condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._hypothesis.coefficients.unit_law import freedom_of
from pyrosplice._hypothesis.coefficients.unit_statistics import wald_of_units, wald_tail
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice._usage.analysis.grouped_usage import sphericity_of
from pyrosplice.data import simulate_counts
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.satterthwaite import covariance_law
from pyrosplice.likelihoods import Multinomial
from pyrosplice.spatial._sections import section_graph
from pyrosplice.spatial.car import CarCovariance
from tests.glmm.arrow.reference.blocks import group_block
from tests.studies.simulation import places

Array = NDArray[np.float64]
CONDITION = np.array([[0.0, 1.0]])


@dataclass(frozen=True)
class Isoforms:
    """Usage in sections of one condition each: which isoforms vary between sections, and by how much.

    Where all do the model is right, of a symmetric effect; where the last does it is that of the default.
    """

    varying: Literal["all", "last"]
    section_sd: float
    n_isoforms: int = 3
    effect: float = 0.0
    n_sections: int = 8
    side: int = 10
    field_sd: float = 0.5
    depth: float = 3.0

    fits = ("field", "(1 | section) + field")
    laws = ("normal", "one variance", "clip")
    bulk = "Hotelling"

    @property
    def isoform_effect(self) -> IsoformEffect:
        return "symmetric" if self.varying == "all" else "independent"

    def covariance(self) -> CarCovariance:
        section = np.repeat(np.arange(self.n_sections), self.side**2)
        return CarCovariance(section_graph(np.tile(places(self.side), (self.n_sections, 1)), section), rho=0.99)

    def data(self, n_genes: int, seed: int) -> tuple[pd.DataFrame, Array]:
        """Spots, and counts ``(G, N, K)``; the condition moves the first isoform."""
        rng = np.random.default_rng(seed)
        section = np.repeat(np.arange(self.n_sections), self.side**2)
        condition = (section >= self.n_sections // 2).astype(int)
        between = rng.normal(0, self.section_sd, (n_genes, self.n_sections, self.n_isoforms))
        if self.varying == "last":
            between[..., :-1] = 0.0
        eta = rng.normal(0, 0.5, (n_genes, 1, self.n_isoforms)) + between[:, section]
        eta[..., 0] += self.effect * condition
        eta = eta[..., :-1] - eta[..., -1:]
        options = {"n_genes": n_genes, "depth": self.depth, "sigma": self.field_sd, "theta": 1.0, "seed": seed}
        options |= {"n_isos": self.n_isoforms, "isoform_effect": self.isoform_effect}
        counts = simulate_counts(self.covariance(), effect=eta, **options)
        return pd.DataFrame({"section": section, "condition": condition}), counts.double().numpy()

    def problem(self, fit: str, spots: pd.DataFrame, counts: Array) -> EffectsProblem:
        return EffectsProblem(
            torch.as_tensor(counts),
            np.column_stack([np.ones(len(spots)), spots["condition"]]),
            Multinomial(),
            groups=(group_block("section", spots["section"]),) if "section" in fit else (),
            space=SparseSolver(self.covariance().precision),
            isoform_effect=self.isoform_effect,
        )

    def tested(self, fit: str, spots: pd.DataFrame, counts: Array) -> dict[str, Array]:
        """P-values of the condition in all logits by each law, and ε, by Wald's test."""
        problem = self.problem(fit, spots, counts)
        fitted = fit_effects(problem)
        units = DesignUnits(Coefficients(problem.design, ["intercept", "condition"]), problem.groups).of(CONDITION[0])
        rules: dict[str, DfRule] = {"normal": "normal", "one variance": "clip", "clip": "clip"}
        law, q = covariance_law(problem, fitted), fitted.coefficients.shape[2]
        statistic, share = wald_of_units(fitted, CONDITION), sphericity_of(problem, fitted, units, "clip")
        out = {"share": share}
        for name, rule in rules.items():
            freedom = freedom_of(law, CONDITION, units, rule, n_predictors=q)
            own = share if name == "clip" else 1.0
            out[name] = wald_tail(statistic, q, freedom, sphericity=own)
            out["df"] = freedom * own
        return out

    def pseudo_bulk(self, spots: pd.DataFrame, counts: Array) -> Array:
        """P-values of Hotelling's test of sections' log odds, which is exact for normal ones of any covariance."""
        member = (spots["section"].to_numpy()[:, None] == np.arange(self.n_sections)).astype(float)
        logs = np.log(np.einsum("gnk,ns->gsk", counts, member) + 0.5)
        odds = logs[..., :-1] - logs[..., -1:]
        half = self.n_sections // 2
        parts = odds[:, :half], odds[:, half:]
        rest = np.concatenate([part - part.mean(1, keepdims=True) for part in parts], 1)
        difference = parts[1].mean(1) - parts[0].mean(1)
        df, q = self.n_sections - 2, odds.shape[2]
        covariance = np.einsum("gsq,gsr->gqr", rest, rest) / df * 2 / half
        squared = (difference * np.linalg.solve(covariance, difference[..., None])[..., 0]).sum(1)
        return stats.f.sf(squared * (df - q + 1) / (df * q), q, df - q + 1)


ISOFORMS = {
    "3 isoforms, all vary": Isoforms("all", 0.3),
    "3 isoforms, the last varies": Isoforms("last", 0.4),
    "3 isoforms, sections alike": Isoforms("all", 0.0),
    "5 isoforms, all vary": Isoforms("all", 0.3, n_isoforms=5),
    "5 isoforms, the last varies": Isoforms("last", 0.4, n_isoforms=5),
    "3 isoforms, all vary, power": Isoforms("all", 0.3, effect=0.8),
    "3 isoforms, the last varies, power": Isoforms("last", 0.4, effect=0.5),
    "5 isoforms, all vary, power": Isoforms("all", 0.3, n_isoforms=5, effect=0.8),
}
