"""Sections of tissue whose isoform usage differs between sections."""

import anndata as ad
import numpy as np

from pyrosplice import SplisosmGLMM

NEWTON = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
QUIET = {"print_progress": False}


def sections(seed=0, *, n_sections=8, side=4, n_genes=3, n_isoforms=3, depth=6.0, sd=0.4):
    """Every second section is of another condition, which has no effect; ``sd`` of a section on every isoform."""
    rng = np.random.default_rng(seed)
    at = np.repeat(np.arange(n_sections), side**2)
    shape = (n_genes, len(at), n_isoforms)
    eta = sd * rng.standard_normal((n_genes, n_sections, n_isoforms))[:, at] + 0.2 * rng.standard_normal(shape)
    usage = np.exp(eta) / np.exp(eta).sum(-1, keepdims=True)
    counts = rng.multinomial(rng.poisson(depth, shape[:2]), usage).transpose(1, 0, 2).reshape(len(at), -1)
    adata = ad.AnnData(counts.astype(float))
    adata.layers["counts"] = adata.X.copy()
    adata.var["gene_symbol"] = np.repeat([f"g{g}" for g in range(n_genes)], n_isoforms)
    adata.var_names = [f"g{g}_{k}" for g in range(n_genes) for k in range(n_isoforms)]
    adata.obs_names = [f"spot{i}" for i in range(len(at))]
    adata.obs["section"] = [f"s{k}" for k in at]
    adata.obs["donor"] = [f"d{k // 2}" for k in at]
    adata.obs["condition"] = np.where(at % 2 == 0, "drug", "control")
    adata.obs["age"] = rng.standard_normal(len(at))
    square = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)
    adata.obsm["spatial"] = np.tile(square, (n_sections, 1))
    return adata


def fitted(adata, formula="~ condition + (1 | section)", *, kind="glm", with_design=True, setup=None, **options):
    """A fitted analysis with random effects of groups."""
    model = SplisosmGLMM(kind, **{**NEWTON, **options})
    section = {"section_key": "section"} if kind == "glmm-full" else {}
    model.setup_data(adata, design_mtx=formula, min_counts=0, **section, **(setup or {}))
    model.fit(batch_size=32, with_design_mtx=with_design, **QUIET)
    return model
