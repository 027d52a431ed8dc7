"""What is no prior of a mixture, or contradicts another option, is refused by name before any work."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import GaussianMixture
from pyrosplice._mixture.mixture_prior import MixturePrior
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.priors import InverseWishart, ScaledNormal
from tests.mixture.helpers import clouds

LAPLACE = {"means": dist.Laplace(0.0, 1.0)}
SHARES = "shares that add up to one"
WRONG = [
    ({"scale": dist.LogNormal(0.0, 1.0)}, "expected one of 'covariances', 'means', 'weights', found 'scale'"),
    ({"means": dist.HalfNormal(1.0)}, r"priors\['means'\]: expected a distribution on the real numbers"),
    ({"weights": dist.Normal(0.0, 1.0)}, rf"priors\['weights'\]: expected a distribution on {SHARES}"),
    ({"weights": dist.Dirichlet(torch.ones(3))}, rf"'weights'\]: .*{SHARES} that broadcasts to shape \(2,\)"),
    ({"covariances": dist.Normal(0.0, 1.0)}, r"priors\['covariances'\]: expected a distribution on the positive numb"),
    ({"covariances": InverseWishart(4.0, torch.eye(2))}, r"on the positive numbers, the support .*InverseWishart on"),
    ({"means": dist.Normal(torch.zeros(3), 1.0)}, r"shape \(2, 2\) \(components first\), found Normal of batch shape"),
    ({"means": dist.Normal(torch.zeros(3), 1.0).to_event(1)}, r"shape \(2, 2\) .*event shape \(3,\)"),
    ({"means": ScaledNormal(torch.zeros(3), 1.0)}, r"shape \(2, 2\) .*event shape \(3,\)"),
    ({"means": dist.Normal(0.0, 1.0).mask(False)}, r"priors\['means'\]: .*which is flat; leave the site out"),
    (
        {"means": dist.ImproperUniform(dist.constraints.real_vector, (), (2,))},
        r"priors\['means'\]: expected a distribution with a density, found ImproperUniform",
    ),
    (
        {"means": dist.Normal(torch.zeros(2, device="meta"), 1.0, validate_args=False)},
        r"priors\['means'\]: expected Normal with numbers on 'cpu', .* found them on 'meta'",
    ),
    ({"means": 3.0}, r"priors\['means'\]: expected a Pyro distribution on the real numbers, found float"),
    ({"means": torch.distributions.Normal(0.0, 1.0)}, "use pyro.distributions.Normal"),
    ({"weights": dist.Poisson(1.0)}, r"priors\['weights'\]"),
    ("strong", r"priors: expected a dictionary .*'weak'.*found 'strong'"),
    (MixturePrior(), "priors: expected a dictionary"),
]


@pytest.mark.parametrize(("priors", "words"), WRONG)
def test_what_is_no_prior_is_refused_by_name(priors, words):
    with pytest.raises(InvalidArgumentError, match=words):
        GaussianMixture(2, priors=priors).fit(clouds(30, 2, 2)[0])


def test_what_contradicts_is_refused():
    x = clouds(30, 2, 2)[0]
    spread = {"covariances": dist.InverseGamma(2.0, 1.0)}
    for options, words in (
        ({"priors": spread, "prior": MixturePrior()}, "prior, priors: expected one of them, found both"),
        ({"priors": spread, "covariance_regularization": 0.1}, "covariance_regularization: found 0.1 beside priors"),
        ({"priors": "weak", "covariance_regularization": 0.1}, "covariance_regularization: found 0.1 beside priors"),
        ({"priors": LAPLACE, "missing": "marginalize"}, r"missing: .*means ~ Laplace.*leave it out"),
        ({"priors": LAPLACE, "batch_size": 9}, "batch_size: a mixture with priors that EM has no closed"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            GaussianMixture(2, **options).fit(x)
    with pytest.raises(InvalidArgumentError, match="sample_weight: a mixture with priors"):
        GaussianMixture(2, priors=LAPLACE).fit(x, sample_weight=np.ones(30))
    with pytest.raises(InvalidArgumentError, match="proper prior"):
        GaussianMixture(2, priors=spread).fit(x).posterior(x)
    start = GaussianMixture(2, covariance_type="full", random_state=0).fit(x).model_.means
    corner = {"means": dist.Laplace(start, 0.01).to_event(1)}  # its mode is where it has no derivative
    with pytest.raises(InvalidArgumentError, match="A prior with a corner at its mode"):
        GaussianMixture(2, covariance_type="full", priors=corner, random_state=0).fit(x)
    floored = GaussianMixture(2, priors={"means": dist.Normal(0.0, 1.0)}, covariance_regularization=50.0).fit(x)
    assert float(floored.model_.covariances.min()) >= 50
