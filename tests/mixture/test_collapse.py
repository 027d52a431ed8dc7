"""A covariance that collapses without a prior is told of as that, whatever the prior of the means is."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice import GaussianMixture
from pyrosplice.errors import InvalidArgumentError


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_covariances_that_collapse_are_told_to_be_given_a_prior(covariance_type):
    rng = np.random.default_rng(0)
    cells = np.concatenate([rng.normal(size=(40, 2)), np.repeat([[5.0, 5.0]], 6, axis=0)])
    given = {"means": dist.StudentT(3.0, 0.0, 5.0)}
    with pytest.raises(InvalidArgumentError, match=r"collapse onto few or equal cells.*give priors=\{'covariances'"):
        GaussianMixture(2, covariance_type=covariance_type, priors=given).fit(torch.tensor(cells))
    if covariance_type == "diag":
        held = given | {"covariances": dist.InverseGamma(3.0, 1.0)}
        mixture = GaussianMixture(2, covariance_type="diag", priors=held).fit(torch.tensor(cells))
        assert mixture.converged_
