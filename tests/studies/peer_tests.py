"""Every test of the peer package on one file. Runs in the peer's own interpreter, called by real_data.py.

    python peer_tests.py input.h5ad output.csv [fast]

Input: counts in ``layers["counts"]``, ``obsp["graph"]``, ``obsm["spatial"]``, the covariates are all columns of
``obs``. Output: one row a gene and method with ``covariate`` (empty for tests of spatial variability), ``pvalue`` and
``statistic``; for the GLMM also ``sigma`` and ``theta`` of its fit; rows ``GP residual`` hold the standardised
covariates that HSIC-GP tests, spot by spot; ``peer`` is its version. ``fast`` leaves out what fits a model a gene.
Runs with splisosm 1.1.1 and 1.2.0.
"""

import sys
import warnings
from importlib.metadata import version

import anndata as ad
import pandas as pd
import torch
from splisosm import SplisosmGLMM, SplisosmNP

try:
    from splisosm.gpr import _DEFAULT_GPR_CONFIGS, make_kernel_gpr
except ImportError:  # before 1.2.0
    from splisosm.kernel_gpr import _DEFAULT_GPR_CONFIGS, make_kernel_gpr

QUIET = {"print_progress": False}


def non_parametric(data, covariates, fast):
    model = SplisosmNP()
    model.setup_data(data, adj_key="graph", design_mtx=covariates)
    model.test_spatial_variability(method="hsic-ir", n_jobs=1, **QUIET)
    yield model.get_formatted_test_results("sv").assign(method="HSIC-IR", covariate="")
    for method in ("hsic",) if fast else ("hsic", "hsic-gp"):
        model.test_differential_usage(method=method, n_jobs=1, **QUIET)
        yield model.get_formatted_test_results("du").assign(method=method.upper())


def gp_residuals(data, covariates):
    """As test_differential_usage(method="hsic-gp") makes them: standardised coordinates and covariates."""
    place = torch.tensor(data.obsm["spatial"], dtype=torch.float64)
    place = (place - place.mean(0)) / place.std(0)
    regression = make_kernel_gpr("sklearn", **_DEFAULT_GPR_CONFIGS["covariate"])
    for name in covariates:
        value = torch.tensor(data.obs[name].to_numpy(), dtype=torch.float32)
        left = regression.fit_residuals(place, ((value - value.mean()) / value.std())[:, None])
        for spot, residual in enumerate(left.flatten().tolist()):
            yield {"method": "GP residual", "covariate": name, "gene": f"spot {spot}", "statistic": residual}


def parametric(data, covariates):
    """As its page has it: joint fits with σ at its start; the score test of each covariate after them."""
    torch.manual_seed(0)
    model = SplisosmGLMM()
    model.setup_data(data, adj_key="graph", design_mtx=covariates, group_gene_by_n_iso=True)
    model.fit(batch_size=20, from_null=True, random_seed=0, **QUIET)
    fits = {name: model.get_gene_model(name) for name in model.gene_names}
    sigma = {name: float(fit.var_total().detach().sqrt().mean()) for name, fit in fits.items()}
    theta = {name: float(fit.var_sp_prop().detach().mean()) for name, fit in fits.items()}
    model.test_spatial_variability(method="llr", **QUIET)
    model.test_differential_usage(method="score", **QUIET)
    for table, method in (("sv", "peer llr"), ("du", "peer score")):
        found = model.get_formatted_test_results(table).assign(method=method)
        if table == "sv":
            found["covariate"] = ""
        yield found.assign(sigma=found["gene"].map(sigma), theta=found["gene"].map(theta))


def main(source, target, fast=False):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = ad.read_h5ad(source)
    covariates = list(data.obs.columns)
    tables = list(non_parametric(data, covariates, fast))
    if not fast:
        tables += [*parametric(data, covariates), pd.DataFrame(gp_residuals(data, covariates))]
    columns = ["gene", "method", "covariate", "pvalue", "statistic", "sigma", "theta"]
    found = pd.concat(tables).reindex(columns=columns).assign(peer=version("splisosm"))
    found.to_csv(target, index=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], len(sys.argv) > 3)
