"""Covariates far from zero or nearly collinear: the same fits, tests and effects as in a well-placed basis."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import MultinomGLM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.glmm._glm_objective import StandardCoordinates
from pyrosplice.priors import weak_priors

QUIET = {"print_progress": False}
ASK = {"return_results": True, **QUIET}
N = 100


def tissue():
    return simulate_isoforms(
        n_spots=N, n_genes=3, n_isoforms=3, depth=6.0, covariates=("smooth", "iid"), beta=0.4, seed=3
    )


def days(adata):
    return np.round(20 * adata.obs["smooth"].to_numpy())


def pairs(adata):
    """A well-placed design and one that spans the same, badly; the column to compare has the same meaning in both."""
    day, x, z = days(adata), adata.obs["smooth"].to_numpy(), adata.obs["iid"].to_numpy()
    return {
        "date as ordinal": (np.c_[day, z], np.c_[738000 + day, z], 0),
        "decimal year": (np.c_[day, z], np.c_[2023 + day / 36500, z], 0),
        "genomic position": (np.c_[day, z], np.c_[2.4e8 + day, z], 0),
        "nanoseconds": (np.c_[day, z], np.c_[1.7e18 + 8.64e13 * day, z], 0),
        "nearly collinear": (np.c_[x, z], np.c_[x, x + 1e-6 * z], 1),
        "square of a date": (np.c_[day, day**2], np.c_[7380 + day, (7380 + day) ** 2], 1),
    }


def everything(adata, model_type, design, column):
    """Losses, p-values and ratios of effects to their errors of one column."""
    found = {}
    for with_design in (False, True):
        model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False)
        model.setup_data(adata, design_mtx=design)
        model.fit(batch_size=8, with_design_mtx=with_design, **QUIET)
        summary = model.get_training_summary()
        assert summary["converged"].all()
        found[f"loss {with_design}"] = summary["best_loss"].to_numpy()
        for method in ("wald",) if with_design else ("score", "lrt"):
            found[method] = model.test_differential_usage(method, **ASK)["pvalue"][:, column]
    found["joint"] = model.test_differential_usage("wald", contrasts={"both": np.eye(2)}, **ASK)["pvalue"][:, 0]
    effects = model.get_effects()
    for name in ("log_odds", "usage_points"):
        found[name] = (effects[name] / effects[name + "_se"]).to_numpy().reshape(3, 2, 3)[:, column]
    if model_type == "glmm-full":
        found["space"] = model.test_spatial_variability("score", **ASK)["pvalue"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(pairs(tissue())))
@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_where_a_design_lies_makes_no_difference(kind, model_type):
    adata = tissue()
    good, bad, column = pairs(adata)[kind]
    one, other = (everything(adata, model_type, design, column) for design in (good, bad))
    for name, value in one.items():
        skipped = kind == "square of a date" and name == "usage_points"  # the other column is not held fixed
        if not skipped:
            np.testing.assert_allclose(other[name], value, rtol=2e-4, err_msg=name)


def test_the_basis_spans_what_the_covariates_do():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    columns[:, 1] = 1e8 + 3 * columns[:, 0] + 1e-3 * columns[:, 1]
    columns[:, 3] = columns[:, 0] - 2 * columns[:, 2] + 5  # dependent
    basis = StandardCoordinates.of(columns)
    gram = basis.design.T @ basis.design / 50
    expected = torch.diag(torch.tensor([1.0, 1, 1, 0, 1]).double())
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-9)
    whole = torch.cat([columns, torch.ones(50, 1).double()], 1)
    torch.testing.assert_close(whole @ basis.matrix, basis.design, rtol=0, atol=1e-3)  # rounding of 1e8 beside 1e-3
    least = torch.linalg.pinv(basis.design) @ torch.randn(50, 1, generator=generator, dtype=torch.float64)
    given = (basis.matrix @ least)[:4] * columns.std(0, correction=0)[:, None]
    dependence = basis.matrix[:4, 3] * columns.std(0, correction=0)
    assert abs(float(given[:, 0] @ dependence)) < 1e-6 * float(given.norm() * dependence.norm())


@pytest.mark.parametrize("model_type", ["glm", "glmm-null"])
def test_priors_are_of_the_coefficients_as_given(model_type):
    """A unit of a covariate is the user's: a prior of a tenth of the width for ten times the covariate is the same."""
    adata = tissue()
    day = days(adata)
    found = []
    for scale in (1.0, 10.0):
        priors = weak_priors()
        priors["beta"] = dist.Normal(torch.tensor(0.0).double(), torch.tensor(0.05 / scale).double())
        priors = {name: priors[name] for name in (("beta", "bias_eta") if model_type == "glm" else priors)}
        model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False, priors=priors)
        model.setup_data(adata, design_mtx=scale * day[:, None])
        model.fit(batch_size=8, with_design_mtx=True, **QUIET)
        estimate = torch.stack([fitted.beta[0, 0] for fitted in model.get_fitted_models()])
        pvalue = torch.from_numpy(model.test_differential_usage("wald", **ASK)["pvalue"])
        found.append(torch.cat([scale * estimate, pvalue], 1))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_collinear_covariates_have_the_smallest_coefficients():
    adata = tissue()
    x = adata.obs["smooth"].to_numpy()
    counts = adata.to_df("counts").to_numpy().reshape(N, 3, 3).transpose(1, 0, 2)
    model = MultinomGLM()
    with pytest.warns(UserWarning, match="collinear|determined"):
        model.setup_data(counts, np.c_[x, x, x])
    model.fit()
    alone = MultinomGLM()
    alone.setup_data(counts, x[:, None])
    alone.fit()
    torch.testing.assert_close(3 * model.beta.data, alone.beta.data.expand(-1, 3, -1), rtol=1e-6, atol=1e-8)
    assert torch.isinf(model.standard_errors()["beta"]).all()
