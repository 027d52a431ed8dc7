"""Size and power of the test of a condition whose units are donors, samples or sections, by four laws.

    python -m tests.studies.effects_size donors [--genes 1000] [--setting "6 v 6"]
    python -m tests.studies.effects_size sections [--genes 1000]
    python -m tests.studies.effects_size isoforms [--genes 500]

``donors``: cells of unequal donors, size factors, means .05 to 2; a condition between donors, or within them with an
effect of the sample (donor and condition) or none. ``sections``: four against four sections of 16 × 16 spots with a
field in each, usage and expression, with an effect of the section or none. Beside every fit: the naive one, whose
units are cells, and the t-test of log pseudo-bulk. ``isoforms``: a condition's test in all logits of three or five
isoforms, of which all or the last vary between four against four sections of 10 × 10 spots
(:mod:`tests.studies.isoform_sections`), by laws of one variance and of unequal ones, spots as units beside them, and
Hotelling's test of sections' log odds. Tables with seed and commit:
tests/studies/results/effects_donors.csv, effects_sections.csv, effects_isoforms.csv.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.data import simulate_expression
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._reference_df import DfRule, degrees_of_freedom
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.satterthwaite import covariance_law
from pyrosplice.likelihoods import Binomial, NegativeBinomial
from pyrosplice.spatial._sections import section_graph
from pyrosplice.spatial.car import CarCovariance
from tests.glmm.arrow.reference.blocks import group_block
from tests.studies.isoform_sections import ISOFORMS, Isoforms
from tests.studies.simulation import commit, places, save_row

Array = NDArray[np.float64]
LEVELS = (0.05, 0.01, 0.001)
LEAST_MOLECULES = 10  # of a gene that is tested, some of them in each condition
DISPERSION = 0.5
N_LAYOUTS = 5
LAWS: tuple[DfRule, ...] = ("normal", "satterthwaite", "between-within", "clip")
CONDITION = np.array([0.0, 1.0])


@dataclass(frozen=True)
class Donors:
    """Cells of donors who have one condition each, or both (``paired``)."""

    n_donors: int
    paired: bool
    donor_sd: float
    sample_sd: float = 0.0
    effect: float = 0.0
    mean: tuple[float, float] = (0.05, 2.0)
    n_cells: int = 100

    laws = LAWS
    bulk = "t"

    @property
    def fits(self) -> tuple[str, ...]:
        within = ("(1 | donor/sample)", "(1 + condition | donor)") if self.paired else ()
        return ("none", "(1 | donor)", *within)

    def data(self, n_genes: int, seed: int) -> tuple[pd.DataFrame, Array]:
        """Cells, and counts ``(G, N)`` of those genes that can be tested."""
        rng = np.random.default_rng(seed)
        sizes = np.maximum(4, rng.poisson(self.n_cells * rng.gamma(4, 0.25, self.n_donors)))
        donor = np.repeat(np.arange(self.n_donors), sizes)
        if self.paired:
            condition = np.concatenate([np.arange(size) < size * rng.uniform(0.3, 0.7) for size in sizes]).astype(int)
        else:
            condition = (donor >= self.n_donors // 2).astype(int)
        cells = pd.DataFrame({"donor": donor, "condition": condition, "sample": 2 * donor + condition})
        cells["size"] = rng.lognormal(0, 0.3, len(cells))
        mean = np.exp(rng.uniform(*np.log(self.mean), n_genes) + self.effect * condition[:, None])
        donors = np.exp(rng.normal(0, self.donor_sd, (self.n_donors, n_genes)))[donor]
        adata = simulate_expression(
            cells.assign(sample=cells["sample"].astype(str)),
            n_genes=n_genes,
            mean=mean * donors,
            dispersion=DISPERSION,
            size_factors="size",
            donors="sample",
            donor_sd=self.sample_sd,
            seed=seed,
        )
        counts = adata.X.T.toarray()
        return cells, counts[testable(counts, condition)]

    def problem(self, fit: str, cells: pd.DataFrame, counts: Array) -> EffectsProblem:
        design = np.column_stack([np.ones(len(cells)), cells["condition"]])
        groups: tuple[GroupBlock, ...] = ()
        if fit == "(1 + condition | donor)":
            groups = (group_block("donor", cells["donor"], design),)
        elif fit != "none":
            groups = (group_block("donor", cells["donor"]),)
        if fit == "(1 | donor/sample)":
            groups += (group_block("sample", cells["sample"]),)
        y, offset = torch.as_tensor(counts)[..., None], np.log(cells["size"].to_numpy())
        return EffectsProblem(y, design, NegativeBinomial(), offset=offset, groups=groups)

    def tested(self, fit: str, cells: pd.DataFrame, counts: Array) -> dict[str, Array]:
        """As :func:`pvalues` has it."""
        return pvalues(self, fit, cells, counts)

    def pseudo_bulk(self, cells: pd.DataFrame, counts: Array) -> Array:
        """P-values of t-tests of log pseudo-bulk per size, of samples, paired where donors have both conditions."""
        logs = log_bulk(counts, cells["sample"].to_numpy(), cells["size"].to_numpy())
        odd = np.unique(cells["sample"]) % 2 == 1
        test = stats.ttest_rel if self.paired else stats.ttest_ind
        return test(logs[:, odd], logs[:, ~odd], axis=1).pvalue


@dataclass(frozen=True)
class Sections:
    """Spots of sections that have one of two conditions each, with a field in each section."""

    kind: str  # usage (of one of two isoforms) or expression
    section_sd: float
    effect: float = 0.0
    n_sections: int = 8
    side: int = 16
    field_sd: float = 0.5
    depth: float = 2.0

    fits = ("field", "(1 | section) + spot", "(1 | section) + field")
    laws = LAWS
    bulk = "t"

    def covariance(self) -> CarCovariance:
        section = np.repeat(np.arange(self.n_sections), self.side**2)
        return CarCovariance(section_graph(np.tile(places(self.side), (self.n_sections, 1)), section), rho=0.99)

    def data(self, n_genes: int, seed: int) -> tuple[pd.DataFrame, Array]:
        """Spots, and counts ``(G, N)``, of usage ``(G, N, 2)``."""
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        section = np.repeat(np.arange(self.n_sections), self.side**2)
        condition = (section >= self.n_sections // 2).astype(int)
        spots = pd.DataFrame({"section": section, "condition": condition})
        eta = rng.normal(0, 0.7, (n_genes, 1)) + self.effect * condition
        eta = eta + rng.normal(0, self.section_sd, (n_genes, self.n_sections))[:, section]
        eta = eta + self.field_sd * self.covariance().sample(n_genes, generator).numpy()
        if self.kind == "usage":
            totals = rng.poisson(self.depth * rng.gamma(2, 0.5, eta.shape))
            first = rng.binomial(totals, 1 / (1 + np.exp(-eta)))
            return spots, np.stack([first, totals - first], -1).astype(float)
        size = 1 / DISPERSION
        return spots, rng.poisson(self.depth * np.exp(eta) * rng.gamma(size, 1 / size, eta.shape)).astype(float)

    def problem(self, fit: str, spots: pd.DataFrame, counts: Array) -> EffectsProblem:
        usage = self.kind == "usage"
        y = torch.as_tensor(counts if usage else counts[..., None])
        return EffectsProblem(
            y,
            np.column_stack([np.ones(len(spots)), spots["condition"]]),
            Binomial() if usage else NegativeBinomial(),
            groups=(group_block("section", spots["section"]),) if "section" in fit else (),
            space=SparseSolver(self.covariance().precision) if "field" in fit else None,
            noise="spot" in fit or (usage and fit == "field"),  # the latter is what is shipped for usage
        )

    def tested(self, fit: str, spots: pd.DataFrame, counts: Array) -> dict[str, Array]:
        """As :func:`pvalues` has it."""
        return pvalues(self, fit, spots, counts)

    def pseudo_bulk(self, spots: pd.DataFrame, counts: Array) -> Array:
        """P-values of t-tests of sections: log counts, or the log odds of the first isoform."""
        first = counts[..., 0] if self.kind == "usage" else counts
        section, one = spots["section"].to_numpy(), np.ones(len(spots))
        logs = log_bulk(first, section, one)
        if self.kind == "usage":
            logs = logs - log_bulk(counts[..., 1], section, one)
        treated = np.arange(self.n_sections) >= self.n_sections // 2
        return stats.ttest_ind(logs[:, treated], logs[:, ~treated], axis=1).pvalue


Setting = Donors | Sections | Isoforms
DONORS = {
    "6 v 6": Donors(12, False, 0.3),
    "6 v 6, donors alike": Donors(12, False, 0.0),
    "6 v 6, sparse": Donors(12, False, 0.4, mean=(0.02, 0.2)),
    "4 v 4": Donors(8, False, 0.4),
    "3 v 3": Donors(6, False, 0.4),
    "paired 12": Donors(12, True, 0.3, 0.25),
    "paired 12, samples alike": Donors(12, True, 0.3),
    "paired 6": Donors(6, True, 0.3, 0.3),
    "paired 6, samples alike": Donors(6, True, 0.3),
    "6 v 6, power": Donors(12, False, 0.3, effect=0.5),
    "4 v 4, power": Donors(8, False, 0.4, effect=0.8),
    "3 v 3, power": Donors(6, False, 0.4, effect=1.0),
    "paired 12, power": Donors(12, True, 0.3, 0.25, effect=0.3),
    "paired 6, power": Donors(6, True, 0.3, 0.3, effect=0.6),
}
SECTIONS = {
    "usage": Sections("usage", 0.3),
    "usage, sections alike": Sections("usage", 0.0),
    "expression": Sections("expression", 0.3),
    "expression, sections alike": Sections("expression", 0.0),
    "usage, power": Sections("usage", 0.3, effect=0.8),
    "expression, power": Sections("expression", 0.3, effect=0.8),
}


def testable(counts: Array, condition: Array) -> NDArray[np.bool_]:
    """Genes with enough molecules, in both conditions."""
    some = [counts[:, condition == level].sum(1) > 0 for level in (0, 1)]
    return (counts.sum(1) >= LEAST_MOLECULES) & some[0] & some[1]


def log_bulk(counts: Array, units: Array, size: Array) -> Array:
    """Log of (counts + .5) per size of each unit, ``(G, units)``, in the order of their labels."""
    member = (units[:, None] == np.unique(units)).astype(float)
    return np.log((counts @ member + 0.5) / (size @ member))


def pvalues(setting: Donors | Sections, fit: str, table: pd.DataFrame, counts: Array) -> dict[str, Array]:
    """P-values of the condition by each law, and Satterthwaite's degrees of freedom."""
    problem = setting.problem(fit, table, counts)
    fitted = fit_effects(problem)
    satterthwaite = covariance_law(problem, fitted).df(torch.tensor(CONDITION)[None]).numpy()
    z = (fitted.coefficients[:, 1, 0] / fitted.covariance[:, 1, 1].sqrt()).numpy()
    coefficients = Coefficients(problem.design, ["intercept", "condition"])
    between_within = DesignUnits(coefficients, problem.groups).of(CONDITION).df
    df = {law: degrees_of_freedom(satterthwaite, between_within, law) for law in LAWS}
    tails = {law: 2 * stats.t.sf(np.abs(z), of_law) for law, of_law in df.items()}
    return tails | {"df": satterthwaite}


def study(setting: Setting, n_genes: int, seed: int) -> dict[tuple[str, str], dict[str, Array]]:
    """P-values by fit and law, of genes over several layouts: sizes of donors are drawn anew in each."""
    found: dict[tuple[str, str], list[dict[str, Array]]] = {}
    for layout in range(N_LAYOUTS):
        table, counts = setting.data(n_genes // N_LAYOUTS, seed + layout)
        found.setdefault(("pseudo-bulk", setting.bulk), []).append({"pvalue": setting.pseudo_bulk(table, counts)})
        for fit in setting.fits:
            start = time.process_time()
            tested = setting.tested(fit, table, counts)
            ms = 1e3 * (time.process_time() - start) / len(counts)
            more = {"df": tested["df"], "ms": np.full(len(counts), ms)}
            for law in setting.laws:
                found.setdefault((fit, law), []).append({"pvalue": tested[law], **more})
    return {
        key: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for key, parts in found.items()
    }


def rows(name: str, setting: Setting, n_genes: int, seed: int) -> Iterator[dict[str, object]]:
    """A row of every fit and law: shares of genes below each level."""
    for (fit, law), found in study(setting, n_genes, seed).items():
        row = {"setting": name, "effect": setting.effect, "fit": fit, "law": law} | rates(found["pvalue"])
        if "df" in found:
            row |= {"median df": float(np.nanmedian(found["df"])), "ms": float(found["ms"].mean())}
        yield row


def rates(pvalue: Array) -> dict[str, object]:
    tested = pvalue[np.isfinite(pvalue)]
    return {"genes": len(pvalue), "tested": len(tested)} | {f"at {x:g}": float((tested < x).mean()) for x in LEVELS}


def main(part: str, n_genes: int, only: str | None) -> None:
    at = commit()
    settings: dict[str, Setting] = {"donors": DONORS, "sections": SECTIONS, "isoforms": ISOFORMS}[part]
    for name, setting in settings.items():
        if only in (None, name):
            seed = zlib.crc32(name.encode())
            for row in rows(name, setting, n_genes, seed):
                save_row(f"effects_{part}", row | {"seed": seed, "commit": at}, ["setting", "fit", "law"])
                print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["donors", "sections", "isoforms"])
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--setting", help="one of them by name")
    given = parser.parse_args()
    main(given.part, given.genes, given.setting)
