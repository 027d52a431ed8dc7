"""Size and power of tests of covariates in space, where the truth is the model and where it is not.

    python -m tests.studies.du_covariates [--genes 2000] [--only "domains"] [--law plugin] [--method wald]

A cell is a layout (16 × 16 grid, 60 or 256 scattered spots, 250 in 12 clusters, two sections of 12 × 12), a truth, a
depth, a number of isoforms. The graph is the default one, which on scattered spots falls into many pieces.
Truths of the logits, none of which a covariate has an effect on: ``model`` (σ = .8, θ = .8), ``domains`` (constant in
each of six domains, sd 1, new for every gene; they grow on the graph of a grid, and are the Voronoi cells of six spots
where these are scattered), ``halves`` (a field of sd .2 in one half of the tissue and 1.6 in the other), ``heavy`` (the
model's field times a root of an inverse χ² of four degrees of freedom at each of six domains).
Genes come in sets of 40; iid noise, a draw of the CAR, a domain and a gradient of random direction are new
for every set; the half, the second eigenvector of V and the section are what they are. Each is tested alone.
Shares of the genes with a p-value, and of those called reliable, below .05 and .01, and how many have none, go to
tests/studies/results/du_covariates.csv with seed and commit (8123a87 and 14412c5 had another stream of counts).
Powers are those of β = .3 on one covariate.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from pyrosplice import SplisosmGLMM
from pyrosplice._usage.analysis.differential_usage import law_of, modes_of, usage_score_tests
from pyrosplice._usage.gene_tests.reliability import refused, reliable
from pyrosplice._usage.gene_tests.terms import Term
from pyrosplice.data import simulate_totals
from pyrosplice.likelihoods import Multinomial
from pyrosplice.spatial._domains import graph_domains
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial._sections import section_graph
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import commit, save_row

COVARIATES = ("iid", "smooth", "domain", "gradient", "half", "eig2", "section")
ALL = {"layer": None, "min_counts": 0, "min_bin_pct": 0.0, "missing": "raise"}
SET = 40  # genes with the same covariates
EFFECT = 0.3
IRREGULAR = ("n60", "scattered", "clustered")


@dataclass(frozen=True)
class Cell:
    """What is simulated; ``effect`` names the covariate that has one."""

    layout: str
    truth: str
    depth: float
    n_isoforms: int = 2
    effect: str = ""


CELLS = [
    *(Cell("grid", "domains", depth, k) for depth in (5, 10) for k in (2, 3)),
    *(Cell("grid", "domains", depth) for depth in (1, 2)),
    *(Cell("grid", "model", depth, k) for depth in (2, 5) for k in (2, 3)),
    *(Cell("grid", truth, 5) for truth in ("halves", "heavy")),
    *(Cell("n60", truth, depth) for truth in ("model", "domains") for depth in (5, 10)),
    *(Cell("sections", truth, depth) for truth in ("model", "domains") for depth in (2, 5)),
    *(Cell("grid", "model", depth, 2, "smooth") for depth in (1, 5, 20)),
    *(Cell("grid", "model", 5, 2, name) for name in ("iid", "half")),
    *(Cell(layout, truth, 5) for layout in ("scattered", "clustered") for truth in ("model", "domains")),
    *(Cell("scattered", "domains", 10, k) for k in (2, 3)),
]


class Tissue:
    """Spots of a layout and what varies over them."""

    def __init__(self, layout: str):
        if layout == "grid":
            xy, self.sections = _square(16), np.zeros(256, int)
        elif layout in IRREGULAR:
            xy = _irregular(layout, np.random.default_rng(4))
            self.sections = np.zeros(len(xy), int)
        else:
            xy, self.sections = np.tile(_square(12), (2, 1)), np.repeat([0, 1], 144)
        self.xy = xy
        names = np.array(["a", "b"])[self.sections]
        several = self.sections.any()
        graph = (
            section_graph(xy, names, k_neighbors=4, graph="mutual")
            if several
            else knn_graph(xy, k_neighbors=4, graph="mutual")
        )
        self.car, self.regular = CarCovariance(graph), layout not in IRREGULAR
        self.half = (xy[:, 0] > np.median(xy[:, 0])).astype(float)

    def fields(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of the CAR, ``(n, N)``."""
        return self.car.sample(n, torch.Generator().manual_seed(int(rng.integers(2**31)))).numpy()

    def domains(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """A domain of each spot, ``(N,)``."""
        if self.regular:
            return graph_domains(self.car.adjacency, number, rng)
        centers = self.xy[rng.choice(len(self.xy), number, replace=False)]
        return np.linalg.norm(self.xy[:, None] - centers, axis=2).argmin(1)

    def covariates(self, rng: np.random.Generator) -> pd.DataFrame:
        """One set of them, of mean square one."""
        angle = rng.uniform(0, 2 * np.pi)
        columns = {"iid": rng.standard_normal(len(self.xy)), "smooth": self.fields(1, rng)[0]}
        columns |= {"domain": self._domain(rng), "gradient": self.xy @ [np.cos(angle), np.sin(angle)]}
        columns["half"] = self.half
        columns |= {"section": self.sections} if self.sections.any() else {"eig2": self.car.eigen(2)[1][:, 1].numpy()}
        table = pd.DataFrame(columns).astype(float)
        return (table - table.mean()) / table.std(ddof=0)

    def _domain(self, rng: np.random.Generator) -> np.ndarray:
        """One of five, which is neither tiny nor a section."""
        while True:
            domain = (self.domains(5, rng) == 0).astype(float)
            varies = any(np.ptp(domain[self.sections == section]) for section in np.unique(self.sections))
            if 4 < domain.sum() < len(self.xy) - 4 and varies:
                return domain

    def logits(self, truth: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """``(G, N, Q)`` of genes on which nothing has an effect."""
        genes, n_logits = shape
        out = np.empty((genes, len(self.xy), n_logits))
        for g in range(genes):
            domains = self.domains(6, rng)
            field, noise = self.fields(n_logits, rng).T, rng.standard_normal((len(self.xy), n_logits))
            if truth == "model":
                out[g] = 0.8 * (np.sqrt(0.8) * field + np.sqrt(0.2) * noise)
            elif truth == "domains":
                out[g] = rng.standard_normal((domains.max() + 1, n_logits))[domains]
            elif truth == "halves":
                sd = np.where(self.half > 0, 1.6, 0.2)[:, None]
                out[g] = sd * (np.sqrt(0.7) * field + np.sqrt(0.3) * noise)
            else:
                scale = np.sqrt(4 / rng.chisquare(4, domains.max() + 1))[domains][:, None]
                out[g] = 0.8 * (np.sqrt(0.8) * field * scale + np.sqrt(0.2) * noise)
        return out


def _irregular(layout: str, rng: np.random.Generator) -> np.ndarray:
    if layout != "clustered":
        n_spots = 60 if layout == "n60" else 256
        return rng.uniform(size=(n_spots, 2)) * 7.7
    return np.repeat(rng.uniform(size=(12, 2)), 21, 0)[:250] * 7.7 + 0.5 * rng.standard_normal((250, 2))


def _square(side: int) -> np.ndarray:
    return np.array([(i, j) for i in range(side) for j in range(side)], float)


def simulate(tissue: Tissue, cell: Cell, rng: np.random.Generator) -> AnnData:
    """A set of genes with their covariates."""
    covariates = tissue.covariates(rng)
    eta = tissue.logits(cell.truth, (SET, cell.n_isoforms - 1), rng)
    if cell.effect:
        eta[..., 0] += EFFECT * covariates[cell.effect].to_numpy()
    seed = int(rng.integers(2**31))
    totals = simulate_totals(tissue.car, n_genes=SET, seed=seed, depth=cell.depth)
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = Multinomial().sample(totals, torch.from_numpy(eta), generator=generator).numpy()
    counts = drawn.transpose(1, 0, 2).reshape(len(tissue.xy), -1)
    covariates.index = covariates.index.astype(str)
    var = pd.DataFrame({"gene_symbol": np.repeat([f"g{i}" for i in range(SET)], cell.n_isoforms)})
    adata = AnnData(counts.astype(float), obs=covariates, var=var.set_index(var.index.astype(str)))
    adata.obsm["spatial"], adata.obs["section_name"] = tissue.xy, np.array(["a", "b"])[tissue.sections]
    return adata


def one_set(tissue: Tissue, cell: Cell, options: dict[str, str], rng: np.random.Generator) -> pd.DataFrame:
    """Tests of one set, each covariate by itself, at fits that all of them share where the test needs none with it."""
    adata = simulate(tissue, cell, rng)
    model, kept = (
        SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False),
        [name for name in COVARIATES if name in adata.obs and cell.effect in ("", name)],
    )
    model.setup_data(adata, design_mtx=kept, section_key="section_name", **ALL)
    model.fit(print_progress=False, batch_size=SET)
    method, covariance = options.get("method", "score"), options.get("law", "averaged")
    if method == "score" and covariance != "surrogates":
        analysis = model.analysis
        law = law_of(analysis, covariance, options["variance"])
        terms = [Term(name, (i,), ()) for i, name in enumerate(kept)]
        columns = [term.columns for term in terms]
        modes = np.array([modes_of(analysis, some) for some in columns])
        tests = refused(usage_score_tests(analysis, terms, law, show=False), analysis.prepared, columns, modes)
        values = tests.pvalue, tests.posterior_df, reliable(tests, modes)
    else:
        each = [_by_itself(adata, name, options) for name in kept]
        values = tuple(np.concatenate([one[key] for one in each], 1) for key in ("pvalue", "posterior_df", "reliable"))
    tables = zip(("pvalue", "posterior_df", "reliable"), values, strict=True)
    index = pd.MultiIndex.from_product([range(len(values[0])), kept], names=["gene", "covariate"])
    return pd.DataFrame({name: value.ravel() for name, value in tables}, index=index).reset_index()


def _by_itself(adata: AnnData, name: str, options: dict[str, str]) -> dict[str, np.ndarray]:
    """One covariate, at fits of its own."""
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx=[name], section_key="section_name", **ALL)
    model.fit(with_design_mtx=options["method"] == "wald", print_progress=False, batch_size=SET)
    return model.test_differential_usage(return_results=True, print_progress=False, **options)


def run(cell: Cell, n_genes: int, seed: int, options: dict[str, str]) -> None:
    """One cell: a row a covariate."""
    started, tissue = time.process_time(), Tissue(cell.layout)
    rng = np.random.default_rng([seed, CELLS.index(cell) if cell in CELLS else 99])
    usual = "model" if options.get("law") == "surrogates" else "robust"
    asked = {"law": "averaged", "method": "score", "variance": usual, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of covariates with few modes
        found = pd.concat([one_set(tissue, cell, asked, rng) for _ in range(n_genes // SET)])
    spent = time.process_time() - started
    for name, some in found.groupby("covariate", sort=False):
        row = {**asdict(cell), "covariate": name, **asked}
        row |= {"genes": len(some), "without": int(some["pvalue"].isna().sum())}
        for suffix, kept in (("", some["pvalue"].notna()), ("_reliable", some["reliable"].astype(bool))):
            p = some.loc[kept, "pvalue"]
            row |= {f"tested{suffix}": len(p)}
            row |= {f"below_{level}{suffix}": round(float((p < level).mean()), 4) for level in (0.05, 0.01)}
        row |= {"df": round(float(some["posterior_df"].median()), 1), "seconds": round(spent), "seed": seed}
        save_row("du_covariates", {**row, "commit": commit()}, (*asdict(cell), "covariate", *asked, "seed"))
        print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a cell's description, such as 'grid domains 5 3'")
    for option in ("law", "method", "variance"):
        parser.add_argument(f"--{option}")
    given = vars(parser.parse_args())
    chosen = {name: given[name] for name in ("law", "method", "variance") if given[name]}
    for each in CELLS:
        if given["only"] in " ".join(map(str, asdict(each).values())):
            run(each, given["genes"], given["seed"], chosen)
