"""Posteriors of genes one of which has no fit: its draws are NaN, and the others have theirs."""

import numpy as np
import pytest
import torch

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice.errors import NoResultsError
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial
from pyrosplice.spatial._graph import knn_graph
from pyrosplice.spatial.car import CarCovariance

COUNTS = torch.poisson(
    8 * torch.rand(3, 25, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1,
    generator=torch.Generator().manual_seed(1),
)
COUNTS[1, 0, 0] = 77


def raising(kind):
    class Raising(kind):
        """Knows nothing of spots with 77 molecules of the first isoform."""

        def log_prob(self, counts, eta):
            if bool((counts[..., 0] == 77).any()):
                raise ArithmeticError("77")
            return super().log_prob(counts, eta)

        def mean(self, eta):
            return super().mean(eta)

        def sample(self, totals, eta, *, generator=None):
            return super().sample(totals, eta, generator=generator)

    return Raising()


def fitted(kind, counts, *, space):
    settings = {"fitting_method": "marginal_newton", "var_fix_sigma": False} if space else {}
    model = (MultinomGLMM if space else MultinomGLM)(likelihood=raising(kind), **settings)
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    model.setup_data(counts, **({"corr_sp": CarCovariance(knn_graph(grid))} if space else {}))
    with pytest.warns(UserWarning) if bool((counts == 77).any()) else pytest.MonkeyPatch.context():
        model.fit(quiet=True)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Multinomial, DirichletMultinomial])
@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("method", ["laplace", "importance"])
def test_a_gene_without_a_fit_has_no_draws_and_the_others_have_theirs(kind, space, method):
    model = fitted(kind, COUNTS, space=space)
    tree = model.posterior(num_samples=4, method=method, usage=True)
    for group, name in (("posterior", "bias_eta"), ("posterior", "usage"), ("posterior_predictive", "counts")):
        lost = np.isnan(tree[group][name].values).mean((0, 1)).reshape(3, -1)
        assert np.array_equal(lost, np.broadcast_to([[0], [1], [0]], lost.shape))
    density = tree["log_likelihood"]["counts"].values
    assert np.isnan(density[:, :, 1]).all() and np.isfinite(density[:, :, [0, 2]]).all()


def test_genes_none_of_which_has_a_fit_have_no_posterior():
    with pytest.raises(NoResultsError, match="finite fit"):
        fitted(Multinomial, COUNTS[[1]], space=False).posterior(num_samples=4)
