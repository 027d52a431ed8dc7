"""A gene never changes another: a batch is its genes one by one, in any order, whatever is recorded."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import BetaBinomial, Binomial, DirichletMultinomial
from pyrosplice.spatial.car import get_cov_sp

N = 36
LIKELIHOODS = {
    "multinomial": (Multinomial, 3),
    "binomial": (Binomial, 2),
    "Dirichlet-multinomial": (DirichletMultinomial, 3),
    "beta-binomial": (BetaBinomial, 2),
    "Poisson": (Poisson, 1),
    "negative binomial": (NegativeBinomial, 1),
}
GENES = (
    "plain",
    "no_counts",
    "one_molecule",
    "one_isoform",
    "zero_one",
    "balanced",
    "separated",
    "huge",
    "pure",
    "few",
)
GROUP = np.random.default_rng(0).integers(0, 2, (N, 1)).astype(float)
CAR = get_cov_sp(torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)), k=4, rho=0.9)


def gene(name, n_isos, seed):
    rng = np.random.default_rng([seed, GENES.index(name)])
    totals = rng.integers(0, 8, N)
    counts = np.stack([rng.multinomial(n, rng.dirichlet(np.full(n_isos, 2.0))) for n in totals]).astype(float)
    group = GROUP[:, 0] == 1
    if name == "no_counts":
        counts[:] = 0
    elif name == "one_molecule":
        counts[:] = 0
        counts[3, 0] = 1
    elif name == "one_isoform":
        counts[:, 1:] = 0
    elif name == "zero_one":
        counts = np.eye(n_isos)[rng.integers(n_isos, size=N)] * rng.integers(0, 2, (N, 1))
    elif name == "balanced":  # at its optimum at the start
        counts = np.zeros((N, n_isos))
        counts[np.arange(12 * n_isos) % N, np.arange(12 * n_isos) % n_isos] = 1
    elif name == "separated":
        counts[group, -1] = 0
    elif name == "huge":
        counts *= 1e3
    elif name == "pure":
        counts = 5 * np.eye(n_isos)[rng.integers(n_isos, size=N)]
    elif name == "few":
        counts[4:] = 0
    return counts


def fit(kind, likelihood, counts, options, history):
    if kind == "glm":
        model = MultinomGLM(likelihood=likelihood, **options)
        model.setup_data(counts, GROUP)
    else:
        model = MultinomGLMM(likelihood=likelihood, **options)
        model.setup_data(counts, CAR, GROUP)
    model.fit(store_param_history=history, quiet=True)
    return model


@pytest.mark.parametrize("name", LIKELIHOODS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(GENES), min_size=1, max_size=5),
    st.integers(0, 50),
    st.sampled_from(["glm", "marginal_newton", "marginal_newton fixed", "joint_newton fixed"]),
    st.booleans(),
)
def test_a_batch_is_its_genes_one_by_one(name, genes, seed, kind, history):
    make, n_isos = LIKELIHOODS[name]
    tables = [gene(some, n_isos, seed) for some in genes]
    options = {}
    if kind != "glm":
        options = {"fitting_method": kind.split()[0], "var_fix_sigma": "fixed" in kind}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = fit(kind, make(), np.stack(tables), options, history)
        alone = [fit(kind, make(), table[None], options, not history) for table in tables]
    assert together.logger.reason == [model.logger.reason[0] for model in alone]
    loss = torch.cat([model.logger.best_loss for model in alone])
    torch.testing.assert_close(together.logger.best_loss, loss, rtol=1e-5, atol=1e-5, equal_nan=True)
