"""What the sparse engine refuses, in words, and what ``path="auto"`` then does."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrosplice.errors import RefusedModelError
from pyrosplice.glmm._distributions import SpotCounts
from pyrosplice.glmm._multinomial import MultinomialGLMM
from pyrosplice.guides import AutoMarginalLaplace
from pyrosplice.likelihoods import Multinomial
from tests.guides.simulated import tissue


class Powered(Multinomial):
    def __init__(self, power):
        self.power = power

    def log_prob(self, counts, eta):
        return self.power * Multinomial().log_prob(counts, eta)


class LatentPower(MultinomialGLMM):
    """A site inside the likelihood that is none of its hyper-parameters."""

    def __call__(self):
        genes, spots, isoforms = self.counts.shape
        with pyro.plate("genes", genes, dim=-1):
            values = self.sample_latents()
            power = pyro.sample("power", dist.LogNormal(torch.zeros(genes).double(), 0.1))
        with pyro.plate("rows", genes, dim=-2), pyro.plate("spots", spots, dim=-1):
            likelihood = Powered(power[:, None])
            eta = self.linear_predictor(values)
            pyro.sample("counts", SpotCounts(likelihood, self.totals, eta, isoforms), obs=self.counts)


class HalfEffect(MultinomialGLMM):
    def linear_predictor(self, values):
        return super().linear_predictor(values) - 0.5 * values["nu"]


class UsedElsewhere(MultinomialGLMM):
    def sample_latents(self):
        values = super().sample_latents()
        pyro.sample("echo", dist.Normal(values["nu"].mean((-1, -2)), 1.0), obs=torch.zeros(len(self.counts)).double())
        return values


class Scaled(MultinomialGLMM):
    def __call__(self):
        with pyro.poutine.scale(scale=0.5):
            return super().__call__()


class Coupled(MultinomialGLMM):
    def linear_predictor(self, values):
        return super().linear_predictor(values) + 0.1 * values["bias_eta"].sum(0)


class CoupledScales(MultinomialGLMM):
    def effect(self, values):
        return super().effect({**values, "sigma": values["sigma"].cumsum(0)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LatentPower, "power: acts on counts or nu otherwise|counts: its density is not that of the likelihood"),
        (HalfEffect, "counts: eta does not move one for one with nu"),
        (UsedElsewhere, "echo: Normal, depends on nu"),
        (Scaled, "nu: its density is scaled"),
    ],
)
def test_parts_are_named_and_auto_is_generic(kind, words):
    counts, design, car = tissue(3, 2, isoforms=2, seed=1)
    model = kind(counts, design[:, :0], car, priors="weak")
    with pytest.raises(RefusedModelError, match=f"path='engine': ({words})"):
        AutoMarginalLaplace(model, ["nu"]).fit(path="engine")
    guide = AutoMarginalLaplace(model, ["nu"]).fit()
    assert guide.path.startswith("generic (not by the sparse engine: ")


@pytest.mark.parametrize("kind", [Coupled, CoupledScales])
@pytest.mark.parametrize("path", ["auto", "engine"])
def test_coupled_genes(kind, path):
    counts, design, car = tissue(3, 2, isoforms=2, seed=2)
    with pytest.raises(RefusedModelError, match="couples its units"):
        AutoMarginalLaplace(kind(counts, design, car, priors="weak"), ["nu"]).fit(path=path)


def test_two_random_effects():
    counts, design, car = tissue(3, 2, isoforms=2, seed=3)
    model = MultinomialGLMM(counts, design, car, priors="weak")
    with pytest.raises(RefusedModelError, match="path='engine': marginalize: 2 sites"):
        AutoMarginalLaplace(model, ["nu", "beta"]).fit(path="engine")
