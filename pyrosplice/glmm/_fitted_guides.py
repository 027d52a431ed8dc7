"""Guides: what a fit says about the latent sites, as Pyro programs without parameters of their own."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyrosplice.glmm._effect_posterior import RandomEffectPosterior


class PointGuide:
    """Guide with all mass of every site at its fitted value (``AutoDelta`` after training, without a store).

    Parameters
    ----------
    values
        Fitted values by site, genes first; copied, and copies are handed out.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: value.clone() for name, value in values.items()}

    def __call__(self) -> dict[str, Tensor]:
        """Sample every site; returns values by site."""
        n_genes = len(next(iter(self.values.values())))
        with pyro.plate("genes", n_genes, dim=-1):
            return self.sample_sites()

    def sample_sites(self) -> dict[str, Tensor]:
        """Sample every site (called inside the plate of genes); values by site."""
        return {
            name: pyro.sample(name, dist.Delta(value.clone(), event_dim=value.ndim - 1))
            for name, value in self.values.items()
        }


class LaplaceGuide(PointGuide):
    """Laplace guide: ν from its Gaussian posterior, gene by gene, the other sites at their fitted values.

    Parameters
    ----------
    values
        Fitted values of ``beta``, ``bias_eta``, ``sigma`` and ``theta_logit``, genes first.
    posterior
        Posterior of ν at these values.
    """

    def __init__(self, values: Mapping[str, Tensor], posterior: RandomEffectPosterior) -> None:
        super().__init__(values)
        self.posterior = posterior

    def sample_sites(self) -> dict[str, Tensor]:
        """Sample every site (called inside the plate of genes); values by site."""
        return {**super().sample_sites(), "nu": pyro.sample("nu", self.posterior)}
