"""Size of the tests of covariates on real tissue, by covariates that cannot have an effect on it.

    python -m tests.studies.real_covariates [--replicates 100] [--only "bulb raw" ...] [--parts FOLDER]

Counts are as they are: families of two to four members in the olfactory bulb (25 of 30: the largest cost as much as a
hundred of them) and in four sections of a breast cancer (33). Covariates are surrogates of real ones (``depth``, log
total counts; ``pc1``, first principal component of the expression of the other genes), new for every replicate and
centred in each section, by :mod:`tests.studies.surrogates`. Each is tested alone, at a null fit that all share. Shares
below .05 and .01 of the p-values, of those called reliable, and of these without the surrogates that happen to be like
the covariate itself (a correlation above .35: the layers of the bulb are the same left and right), with exact 99 %
intervals; ``se`` is that of the replicates' means, as genes share the covariate of a replicate. Rows go to
tests/studies/results/real_covariates.csv with seed and commit. Without the shared data nothing is done.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from torch import Tensor

from pyrosplice import SplisosmGLMM
from pyrosplice._hypothesis.coefficients.residual_variance import joint_dof, trace_sf
from pyrosplice._hypothesis.coefficients.score import joined
from pyrosplice._hypothesis.uniform_bands import exact_interval
from pyrosplice._tables.containers import as_dense
from pyrosplice._usage.analysis.differential_usage import UsageTask, law_of, modes_of
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests import covariate_tests
from pyrosplice._usage.gene_tests.covariate_law import Law
from pyrosplice._usage.gene_tests.reliability import refused, reliable, unequal_field
from pyrosplice._usage.gene_tests.terms import Term
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.records import ModelSpec
from tests.paths import SHARED
from tests.studies import bulb
from tests.studies.simulation import commit, save_row
from tests.studies.surrogates import SURROGATES, Array, Section

TABLE, KEY = "real_covariates", ["tissue", "depth", "surrogate", "covariate", "method"]
LARGEST = 4  # members of a family
ALIKE = 0.35  # correlation with the real covariate above which a surrogate may have its effect
TOGETHER = 20  # covariates that the posterior of the variances is worked out for at once
KINDS = [(how, name) for how in ("shifted", "waves") for name in ("depth", "pc1")]
KINDS = [("permuted", "pc1"), ("drawn", "none"), *KINDS]


@dataclass(frozen=True)
class Tissue:
    """Families × spots, ``counts``; ``obs`` has the section and the real covariates."""

    name: str
    depth: str
    adata: ad.AnnData

    def surrogates(self, kind: str, covariate: str, n: int, rng: np.random.Generator) -> Array:
        """``(N, n)`` of one kind, centred in each section and of mean square one."""
        out = np.empty((self.adata.n_obs, n))
        for name in self.adata.obs["section"].unique():
            spots = np.flatnonzero(self.adata.obs["section"] == name)
            section = Section(self.adata.obsm["spatial"][spots])
            values = self.adata.obs["depth" if covariate == "none" else covariate].to_numpy()[spots]
            for replicate in range(n):
                found = SURROGATES[kind](values, section, rng)
                out[spots, replicate] = found - found.mean()
        return out / np.sqrt((out**2).mean(0))


def with_covariates(adata: ad.AnnData, expression: Array) -> ad.AnnData:
    """``adata`` with the covariates that the counts ``(N, D)`` of all other genes give."""
    total = expression.sum(1, keepdims=True)
    logs = pd.DataFrame(np.log1p(1e4 * expression / total), index=adata.obs_names)
    centered = (logs - logs.groupby(adata.obs["section"], observed=True).transform("mean")).to_numpy()
    adata.obs["depth"], adata.obs["pc1"] = np.log(total[:, 0]), np.linalg.svd(centered, full_matrices=False)[0][:, 0]
    return adata


FILES = "mob_rep11_families.h5ad", "mob_rep11_genes.h5ad", "paste_breast_4sections.h5ad"


def olfactory_bulb(depth: str) -> Tissue:
    adata, genes = bulb.olfactory_bulb(depth), ad.read_h5ad(SHARED / "data" / FILES[1])
    adata.obs["section"] = "bulb"
    others = ~genes.var_names.isin(adata.var_names)
    adata = with_covariates(adata, as_dense(genes.layers["counts"], "counts")[:, others])
    members = adata.var["gene_symbol"].map(adata.var["gene_symbol"].value_counts())
    return Tissue("bulb", depth, adata[:, members <= LARGEST].copy())


def breast(depth: str) -> Tissue:
    genes = ad.read_h5ad(SHARED / "data" / FILES[2])
    counts, family = as_dense(genes.X, "X"), genes.var["family"].astype(str)
    own = (family != "").to_numpy()
    obs, var = genes.obs[["slice"]].rename(columns={"slice": "section"}), pd.DataFrame({"gene_symbol": family[own]})
    adata = ad.AnnData(obs=obs, var=var, obsm={"spatial": genes.obsm["spatial"]}, layers={"counts": counts[:, own]})
    return Tissue("breast", depth, with_covariates(adata, counts[:, ~own]))


CASES = [(olfactory_bulb, "raw"), (olfactory_bulb, "thinned"), (breast, "raw")]


def null_fit(tissue: Tissue, values: Array) -> SplisosmGLMM:
    """Fits without covariates, and a design of as many as there are, which are not to be in one model."""
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    key = "section" if tissue.adata.obs["section"].nunique() > 1 else None
    model.setup_data(tissue.adata, section_key=key, group_gene_by_n_iso=True, design_mtx=values[:, :1])
    model.fit(batch_size=32, print_progress=False)
    names = tuple(map(str, range(values.shape[1])))
    model.hold(replace(model.analysis.prepared, design=Design(values, names, names)), model.analysis.fit)
    return model


def alone(
    counts: Tensor, spec: ModelSpec, genes: list[FittedGene], design: Design, terms: list[Term], law: Law
) -> list[Tensor]:
    """What ``score_of_terms`` finds of each term by itself; the posterior of the variances is the same for all."""
    null = covariate_tests._averaged_null(spec.rebuild(counts, genes), design, terms, law)
    test = joined([covariate_tests._test_at(null.fit, design, [term], law.robust) for term in terms])
    n_logits, dof = genes[0].n_logits, joint_dof(test.residual_dof, null.law_df)
    pvalue = trace_sf(test.statistic, test.dof / n_logits, n_logits, dof)
    return [test.statistic, pvalue, test.dof / n_logits, null.posterior_df, null.slope_ratio]


def tested(model: SplisosmGLMM, columns: range) -> pd.DataFrame:
    """Score tests of some covariates: a row a gene and covariate."""
    analysis, parts = model.analysis, []
    law = law_of(analysis, "averaged", "robust")
    task = UsageTask(alone, "", analysis, law, show=False)
    spec, fits = analysis.spec_with(()), analysis.fit_with((), show=False)
    for start in range(columns.start, columns.stop, TOGETHER):
        terms = [Term(str(i), (i,), ()) for i in columns[start - columns.start :][:TOGETHER]]
        each = [term.columns for term in terms]
        modes = np.array([modes_of(analysis, some) for some in each])
        tests = refused(task.run(spec, fits, terms), analysis.prepared, each, modes)
        index = pd.MultiIndex.from_product([model.gene_names, np.ravel(each)], names=["gene", "replicate"])
        found = {"pvalue": tests.pvalue, "posterior_df": tests.posterior_df, "reliable": reliable(tests, modes)}
        found |= {"unequal": unequal_field(tests), "modes": np.broadcast_to(modes, tests.pvalue.shape)}
        parts.append(pd.DataFrame({name: value.ravel() for name, value in found.items()}, index=index).reset_index())
    return pd.concat(parts, ignore_index=True)


def sizes(found: pd.DataFrame, suffix: str = "") -> dict[str, float]:
    """Shares of p-values below .05 and .01, exact intervals, and standard errors over replicates."""
    row: dict[str, float] = {f"tested{suffix}": len(found)}
    for level in (0.05, 0.01):
        below = found["pvalue"] < level
        low, high = exact_interval(int(below.sum()), len(found))
        excess = (below - below.mean()).groupby(found["replicate"]).sum()
        spread = np.sqrt((excess**2).sum() * len(excess) / max(len(excess) - 1, 1)) / len(found)
        row |= {f"below_{level}{suffix}": below.mean(), f"low_{level}{suffix}": low, f"high_{level}{suffix}": high}
        row |= {f"se_{level}{suffix}": spread}
    return row


def run(tissue: Tissue, only: list[str], n_replicates: int, seed: int, parts: Path | None) -> None:
    """Kinds of covariates of one tissue; p-values that ``parts`` has already are read."""
    rng = np.random.default_rng([seed, *map(ord, tissue.name + tissue.depth)])
    values = np.concatenate([tissue.surrogates(*kind, n_replicates, rng) for kind in KINDS], 1)
    model, at = None, commit()
    for number, (surrogate, covariate) in enumerate(KINDS):
        own = range(number * n_replicates, (number + 1) * n_replicates)
        if not any(part in f"{tissue.name} {tissue.depth} {surrogate} {covariate}" for part in only):
            continue
        row = {"tissue": tissue.name, "depth": tissue.depth, "surrogate": surrogate, "covariate": covariate}
        row |= {"method": "score", "replicates": n_replicates}
        path = None if parts is None else parts / f"{'_'.join(str(row[key]) for key in KEY)}.csv"
        if path is not None and path.exists():
            found = pd.read_csv(path)
        else:
            model = model or null_fit(tissue, values)
            found = tested(model, own)
        if path is not None:
            found.to_csv(path, index=False)
        real = tissue.adata.obs["pc1" if covariate == "none" else covariate].to_numpy()
        alike = np.abs(np.corrcoef(values[:, own].T, real)[-1, :-1]) > ALIKE
        unlike = ~alike[found["replicate"] - own.start] & found["reliable"]
        row |= {"genes": found["gene"].nunique(), "alike": alike.mean(), "modes": found["modes"].median()}
        row |= {"df": found["posterior_df"].median(), "without": int(found["pvalue"].isna().sum())}
        row |= {"unequal": found["unequal"].mean(), **sizes(found[found["pvalue"].notna()])}
        row |= sizes(found[found["reliable"]], "_reliable") | sizes(found[unlike], "_unlike")
        row |= {"seed": seed, "commit": at}
        save_row(TABLE, row, KEY)
        print({k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of rows' names, such as 'bulb raw waves'")
    parser.add_argument("--parts", type=Path, help="folder of p-values that are there, and for those that are not")
    given = parser.parse_args()
    if not all((SHARED / "data" / name).exists() for name in FILES):
        parser.exit(message="The shared data are not there; nothing was done.\n")
    warnings.simplefilter("ignore")  # of covariates with few modes
    for read, depth in CASES:
        run(read(depth), given.only, given.replicates, given.seed, given.parts)
