"""The posterior of expression with random effects: the tree, its densities, its variances, NUTS, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyrosplice import ExpressionGLM
from pyrosplice.effects import Effect, Field, Groups, Independent
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.glmm import CountGLMM, log_density
from pyrosplice.glmm._arrow.laid_out import LaidOut
from pyrosplice.posterior import NutsOptions, compare_posteriors, leave_one_out, predictive_check
from pyrosplice.posterior._effects_draws import ParameterPriors, integrated, plugged_in
from pyrosplice.posterior._tree import GROUPS
from tests.expression.test_random_effects import donors, tissue

PRIORS = {"1 | donor: sd(1)": dist.HalfNormal(1.0), "dispersion": dist.HalfNormal(1.0)}


@pytest.fixture(scope="module")
def fitted() -> ExpressionGLM:
    adata = donors(genes=3)
    adata.X[:, 2] = 0
    return ExpressionGLM("~ treatment + (1 | donor)").fit(adata, size_factors="size")


def test_groups_dims_and_diagnostics(fitted: ExpressionGLM) -> None:
    tree = fitted.posterior(num_samples=400, genes=["g1", "g0"])
    made = {name for name in GROUPS if "prior" not in name}
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data", *made}
    posterior = tree["posterior"].dataset
    assert posterior.gene.values.tolist() == ["g1", "g0"] and tree.attrs["hyper"] == "plug-in"
    assert posterior["1 | donor"].dims == ("chain", "draw", "gene", "1 | donor: level", "1 | donor: column")
    table = fitted.random_effects().set_index(["gene", "level"])
    coefficients = fitted.summary().set_index(["gene", "coefficient"])
    for gene in ("g0", "g1"):
        levels = posterior["1 | donor"].sel(gene=gene).isel({"1 | donor: column": 0})
        shift = (levels.mean(("chain", "draw")) - table.loc[gene]["effect"].to_numpy()) / table.loc[gene]["se"]
        assert np.abs(shift).max() < 5 / 20
        np.testing.assert_allclose(levels.std(("chain", "draw")), table.loc[gene]["se"], rtol=0.15)
        location = posterior["location"].sel(gene=gene)
        np.testing.assert_allclose(location.std(("chain", "draw")), coefficients.loc[gene]["se"], rtol=0.15)
    assert leave_one_out(tree)["verdict"].eq("fine").all()
    assert predictive_check(tree)["pvalue"].between(0.01, 0.99).all()


def test_densities_are_given_the_effects(fitted: ExpressionGLM) -> None:
    tree = fitted.posterior(num_samples=5, priors=PRIORS)
    draw, adata = tree.isel(chain=0, draw=3), donors(genes=3)
    own = draw["posterior"].dataset.sel(gene="g0")
    level = pd.Index(own["1 | donor: level"].values).get_indexer(adata.obs["donor"])
    eta = own.location.values @ np.stack([np.ones(adata.n_obs), adata.obs["treatment"] == "drug"])
    eta = eta + own["1 | donor"].values[level, 0] + np.log(adata.obs["size"])
    size = 1 / float(own.dispersion)
    expected = stats.nbinom.logpmf(adata.X[:, 0], size, size / (size + np.exp(eta)))
    np.testing.assert_allclose(draw["log_likelihood"].counts.sel(gene="g0"), expected, rtol=1e-9)
    sd = float(own["1 | donor: sd"].values[0])
    lp = stats.halfnorm.logpdf([sd, 1 / size]).sum()
    np.testing.assert_allclose(draw["log_prior"].lp.sel(gene="g0"), lp, rtol=1e-6)


def test_a_gene_without_counts_has_no_draws_and_changes_no_other(fitted: ExpressionGLM) -> None:
    tree = fitted.posterior(num_samples=50)
    for group in ("posterior", "posterior_predictive", "log_likelihood"):
        for name, values in tree[group].dataset.items():
            assert np.isfinite(values.sel(gene=["g0", "g1"])).all(), name
            assert name == "1 | donor: sd" or not np.isfinite(values.sel(gene="g2")).any(), name
    alone = fitted.posterior(num_samples=50, genes=["g2"])
    assert alone["posterior"].location.isnull().all()


def test_predicted_counts_are_of_the_fit(fitted: ExpressionGLM) -> None:
    drawn = fitted.posterior(num_samples=300, genes=["g0"])["posterior_predictive"].counts.mean(("chain", "draw"))
    expected = fitted.predict(genes=["g0"])["mean"].to_numpy()
    assert np.corrcoef(drawn.values[0], expected)[0, 1] > 0.9
    assert abs(float(drawn.mean()) / expected.mean() - 1) < 0.03


def test_fields_noise_slopes_and_constraints_have_variables() -> None:
    glm = ExpressionGLM("~ condition + (1 | section)", space=Field(k_neighbors=4), section_key="section")
    glm.effects = [Independent()]
    posterior = glm.fit(tissue(genes=2)).posterior(num_samples=20, groups=())["posterior"].dataset
    assert posterior["space"].dims[-1] == "cell" and posterior["noise: sd"].dims == ("chain", "draw", "gene")
    slopes = ExpressionGLM("~ state + (1 + state | donor)").fit(donors(genes=2))
    posterior = slopes.posterior(num_samples=20, groups=())["posterior"].dataset
    sd = slopes.variance_components().query("parameter == 'sd(1)'")["estimate"]
    np.testing.assert_allclose(posterior["1 + state | donor: sd"][0, 0, :, 0], sd)
    assert posterior["1 + state | donor: correlation"].shape[-2:] == (2, 2)


def poisson_of_donors() -> ExpressionGLM:
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(6), 8)
    counts = rng.poisson(np.exp(1.0 + rng.normal(0, 0.4, 6)[donor]))[:, None].astype(float)
    table = pd.DataFrame({"donor": [f"d{k}" for k in donor]})
    return ExpressionGLM("~ 1 + (1 | donor)", likelihood="poisson").fit(counts, sample_description=table)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_integrated_variances_have_laplaces_marginal_posterior(rate: float) -> None:
    problem = poisson_of_donors().estimator.problem(np.array([0]))
    priors = ParameterPriors.of(problem, {"1 | donor: sd(1)": dist.Exponential(rate)})
    drawn = integrated(problem, priors, 1000, torch.Generator().manual_seed(0), method="laplace")
    sd = drawn.values["1 | donor: sd(1)"][:, 0, 0].numpy()
    grid = np.linspace(0.0025, 6.0, 600)
    beta = np.full((len(grid), 1), 1.0)
    value = LaidOut(problem).laplace(torch.zeros(len(grid), dtype=torch.int64), grid[:, None], beta).value
    weight = np.exp(value - value.max() - rate * grid)
    weight /= weight.sum()
    mean = weight @ grid
    spread = np.sqrt(weight @ (grid - mean) ** 2)
    assert abs(sd.mean() - mean) < 4 * spread / np.sqrt(500) and 0.8 < sd.std() / spread < 1.25
    for level in (0.1, 0.5, 0.9):
        below = (sd <= grid[np.searchsorted(weight.cumsum(), level)]).mean()
        assert abs(below - level) < 4 * np.sqrt(level * (1 - level) / 500)


def test_log_weights_are_those_of_the_pyro_model() -> None:
    # at parameters that are held, joint density over the Gaussian's: what is left is the draw's own standard normals
    problem = poisson_of_donors().estimator.problem(np.array([0]))
    fit = poisson_of_donors().estimator.mixed
    drawn = plugged_in(problem, fit, 300, torch.Generator().manual_seed(1))
    density = torch.stack(
        [log_density(CountGLMM(problem), {k: v[s] for k, v in drawn.values.items()}) for s in range(300)]
    )
    square = 2 * (drawn.log_weights - density)[:, 0]  # χ² of all unknowns, but for a constant
    square = square - square.min()
    n_unknowns = 7
    assert abs(float(square.var()) / (2 * n_unknowns) - 1) < 0.5
    assert float(drawn.log_weights.std()) < 1.0


@pytest.mark.slow
def test_importance_draws_and_nuts_agree() -> None:
    adata = donors(4, n_donors=6, cells=8, genes=2)[:, :1].copy()
    glm = ExpressionGLM("~ treatment + (1 | donor)").fit(adata)
    options = NutsOptions(warmup_steps=150)
    nuts = glm.posterior(num_samples=125, method="nuts", priors=PRIORS, nuts_options=options, groups=())
    assert nuts.attrs["hyper"] == "integrate"
    sites = ("location", "1 | donor", "dispersion", "1 | donor: sd")
    for method, off in (("importance", 0.1), ("laplace", 0.25)):
        ours = glm.posterior(num_samples=1000, method=method, hyper="integrate", priors=PRIORS, groups=())
        table = compare_posteriors(ours, nuts, sites=sites)
        assert (table["shift"].abs() < off + 3.5 * table["shift_error"]).all(), table
        assert table["sd_ratio"].between(0.65, 1.5).all(), table


@pytest.mark.slow
def test_nuts_with_proper_priors_of_everything_has_the_groups_of_the_prior() -> None:
    glm = ExpressionGLM("~ 1 + (1 | donor)").fit(donors(4, n_donors=4, cells=6, genes=2)[:, :1].copy())
    priors = PRIORS | {"beta": dist.Normal(0.0, 2.0)}
    options = NutsOptions(warmup_steps=30)
    tree = glm.posterior(num_samples=20, method="nuts", priors=priors, nuts_options=options)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data", *GROUPS}
    assert np.isfinite(tree["prior_predictive"].counts).all() and (tree["prior"]["1 | donor: sd"] > 0).all()


class Location(Effect):
    """An effect with the name of something else."""

    name = "location"

    def levels(self, table: pd.DataFrame) -> object:
        return table["donor"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hyper": "integrate"}, r"'1 \| donor: sd\(1\)', 'dispersion'"),
        ({"hyper": "integrate", "priors": {"dispersion": dist.HalfNormal(1.0)}}, r"'1 \| donor: sd\(1\)', found"),
        ({"method": "nuts"}, "proper priors"),
        ({"hyper": "ccd"}, "hyper"),
        ({"priors": "weak"}, "dictionary"),
        ({"priors": {"dispersion": dist.Uniform(0.1, 0.9)}}, "everywhere on the positive numbers, found none at"),
        ({"priors": {"sigma": dist.HalfNormal(1.0)}}, "priors"),
        ({"priors": {"beta": dist.Normal(0.0, 1.0)}}, "flat"),
        ({"priors": {"dispersion": dist.HalfNormal(torch.ones(3, 1))}}, "dispersion"),
        ({"genes": []}, "genes"),
        ({"method": "vi"}, "method"),
        ({"seed": -1}, "seed"),
        ({"groups": ["draws"]}, "groups"),
        ({"nuts_options": NutsOptions()}, "nuts_options"),
        ({"max_memory": 1000}, "max_memory"),
    ],
)
def test_what_has_no_posterior_is_refused(fitted: ExpressionGLM, options: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidArgumentError, match=words):
        fitted.posterior(**options)


def test_other_refusals(fitted: ExpressionGLM, tmp_path) -> None:  # type: ignore[no-untyped-def]
    fitted.save(tmp_path / "a.pyrosplice")
    with pytest.raises(NotReadyError, match="data"):
        ExpressionGLM.load(tmp_path / "a.pyrosplice").posterior()
    adata = donors(genes=2)
    with pytest.raises(InvalidArgumentError, match="'location'"):
        ExpressionGLM("~ treatment", effects=[Location()]).fit(adata).posterior()
    with pytest.raises(InvalidArgumentError, match="without random effects"):
        ExpressionGLM("~ treatment").fit(adata).posterior(hyper="plug-in")
    wide = ExpressionGLM("~ 1", effects=[Groups("donor"), Independent()]).fit(donors(genes=2, n_donors=40))
    priors = PRIORS | {"noise_sd": dist.HalfNormal(1.0)}
    with pytest.raises(InvalidArgumentError, match="at most 1000"):
        wide.posterior(method="nuts", priors=priors, max_memory="inf")
