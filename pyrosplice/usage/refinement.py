"""The part of :class:`~pyrosplice.MultinomGLMM` that looks at its posterior, and beyond Laplace's method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm.batches import MixedEngine, detached
from pyrosplice.glmm.distributions import EigenCovariance
from pyrosplice.glmm.effect_posterior import RandomEffectPosterior, bounded_away_from_zero
from pyrosplice.glmm.glm_objective import Standardisation
from pyrosplice.glmm.importance import importance
from pyrosplice.glmm.mode import Mode
from pyrosplice.glmm.objective import LogPrior
from pyrosplice.glmm.random_effect import logit_of
from pyrosplice.glmm.refine import StartingPoint, refine
from pyrosplice.modes import works_in_any_mode
from pyrosplice.reasons import Reason
from pyrosplice.usage.glm import MultinomGLM
from pyrosplice.usage.own_usage import FollowedModel

FEWEST_DRAWS = 50  # below which a Pareto tail cannot be fitted


@dataclass(frozen=True)
class MarginalLikelihood:
    """Importance-sampling estimates for G genes.

    Attributes
    ----------
    value
        Log marginal likelihood, nats, without log prior, ``(G,)``.
    standard_error
        Its Monte Carlo standard error, ``(G,)``.
    pareto_k
        Shape of the tail of the weights, ``(G,)``: up to 0.7 the estimate and its standard error can be relied on.
    """

    value: Tensor
    standard_error: Tensor
    pareto_k: Tensor


@works_in_any_mode
class ImportanceSampling(MultinomGLM):
    """Mode of a mixed model's random effect, and marginal likelihood and estimates without Laplace's bias.

    See :class:`~pyrosplice.MultinomGLMM`.

    Attributes
    ----------
    pareto_k
        k̂ at the refined estimates, ``(G,)``; None unless :meth:`refine` was called after the last fit.
    """

    nu: Tensor
    sigma: Tensor
    theta_logit: Tensor
    var_fix_sigma: bool
    pareto_k: Tensor | None
    _engine: MixedEngine
    _eigen: EigenCovariance | None

    @property
    def is_marginal(self) -> bool:
        """Whether the objective is a marginal likelihood."""
        raise NotImplementedError

    def posterior_mode(self, genes: Tensor | None = None) -> Mode:
        """Mode of ν at the present (β, b, σ, θ) with its factorised Newton system, which tests are built from.

        All of it in the engine's coordinates (``step.model.basis``).

        Parameters
        ----------
        genes
            Indices; all of them if None. Memory grows with their number.
        """
        self._require_data()
        self._shipped_only("posterior_mode")
        genes = torch.arange(self.n_genes, device=self.device) if genes is None else genes
        parameters = self._engine.parameters(self.beta, self.bias_eta, self.sigma, self.theta_logit)
        return self._engine_here().mode(parameters, genes)

    def random_effect_posterior(self) -> RandomEffectPosterior:
        """Laplace posterior of ν at the present parameters: a Pyro distribution, ``(G,)`` of ``(N, Q)``."""
        self._require_data()
        self._shipped_only("random_effect_posterior", "guide.get_posterior()")
        parameters = self._engine.parameters(self.beta, self.bias_eta, self.sigma, self.theta_logit)
        proper = bounded_away_from_zero(detached(parameters))
        genes = torch.arange(self.n_genes, device=self.device)
        return RandomEffectPosterior(self._engine_here().mode(proper, genes))

    def vcov(self) -> Tensor:
        r"""Covariance of ``[beta; bias_eta]`` at the present parameters, ``(G, D, D)``.

        Marginal methods: from the observed information of all that was estimated, (σ, θ) and priors included. Joint
        methods: given (σ, θ), the inverse of :math:`X'(W^{-1} + \Sigma)^{-1}X`. Order as in :meth:`MultinomGLM.vcov`;
        what the data do not identify has infinite variance.
        """
        return super().vcov()

    def observed_information(self) -> tuple[Tensor, Standardisation]:
        """Inverse of :meth:`vcov` in coefficients of standardised covariates ``(G, D, D)``, and what those are."""
        self._require_data()
        if self._followed() is not None:
            return super().observed_information()
        if self.is_marginal:
            values = dict(self.named_parameters())
            return (
                self._engine.information(values, fix_sigma=self.var_fix_sigma, log_prior=self._log_prior()),
                self._engine.scaling,
            )
        engine = self._engine_here()
        found = [engine.conditional_information(self.posterior_mode(genes)) for genes in engine.batches()]
        return engine.logit_information(torch.cat(found)), engine.scaling

    def importance(self, n_draws: int = 400, seed: int = 0) -> MarginalLikelihood:
        """Log marginal likelihood of each gene at the present parameters by importance sampling.

        Draws of ν from Laplace's posterior, in pairs ± around its mode. The same seed gives the same standard normal
        numbers, so that differences between parameters have a smaller error than the values.

        Parameters
        ----------
        n_draws
            Even, at least 50.
        seed
            Of the draws.

        Raises
        ------
        InvalidArgumentError
            Another number of draws.
        NotReadyError
            Before ``setup_data``.
        """
        self._require_data()
        self._shipped_only("importance")
        _check_draws(n_draws)
        engine = self._engine_here()
        parameters = engine.parameters(self.beta, self.bias_eta, self.sigma, self.theta_logit)
        found = []
        for genes in engine.batches():
            estimate = importance(engine.mode(parameters, genes), n_draws=n_draws, seed=seed)
            found.append((estimate.value, estimate.standard_error, estimate.pareto_k))
        return MarginalLikelihood(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def refine(self, n_draws: int = 400, seed: int = 0) -> MarginalLikelihood:
        """Move the estimates from Laplace's optimum to that of the importance-sampling marginal likelihood.

        Laplace's method shrinks σ² where counts are low (by 20 to 35 % at two molecules a spot). Estimates move only
        as far as the corrected likelihood rises; the likelihood's own hyper-parameters stay where they are. Genes
        whose search does not end keep their Laplace estimates, with ``converged`` False and the reason
        ``"not_refined"`` in ``logger``. Look at ``pareto_k`` of the others: above 0.7 the correction itself is not to
        be trusted.

        Parameters
        ----------
        n_draws, seed
            As for :meth:`importance`; the same draws at every evaluation.

        Returns
        -------
        MarginalLikelihood
            At the new estimates.

        Raises
        ------
        InvalidArgumentError
            A joint method or σ held fixed, whose estimates are not those of a marginal likelihood; number of draws.
        NotReadyError
            Before ``setup_data``.
        """
        self._require_data()
        self._shipped_only("refine")
        _check_draws(n_draws)
        if not self.is_marginal or self.var_fix_sigma:
            raise InvalidArgumentError(
                "refine: expected a marginal fitting_method with var_fix_sigma=False, found "
                f"{self.fitting_method!r} with var_fix_sigma={self.var_fix_sigma}."
            )
        engine = self._engine_here()
        for genes in engine.batches():
            self._refine_batch(engine, genes, n_draws, seed)
        parameters = engine.parameters(self.beta, self.bias_eta, self.sigma, self.theta_logit)
        for genes in engine.batches():
            mode = engine.mode(parameters, genes)
            self.nu.data[genes] = mode.step.model.effect(detached(parameters).select(genes), mode.latents)
        found = self.importance(n_draws, seed)
        self.pareto_k = found.pareto_k
        return found

    def _refine_batch(self, engine: MixedEngine, genes: Tensor, n_draws: int, seed: int) -> None:
        coefficients = engine.coefficients(self.beta[genes], self.bias_eta[genes], genes).detach()
        theta = torch.sigmoid(self.theta_logit.detach()[genes])
        start = StartingPoint(coefficients, self.sigma.detach()[genes], theta)
        prior = self._engine_prior(genes)
        found = refine(engine.model(genes), start, n_draws=n_draws, seed=seed, log_prior=prior)
        theta = found.theta if engine.solver is not None else torch.zeros_like(found.theta)
        values = {**engine.weights(found.coefficients, genes), "sigma": found.sigma}
        done = torch.nonzero(found.converged).squeeze(-1)
        for name, value in {**values, "theta_logit": logit_of(theta)}.items():
            getattr(self, name).data[genes[done]] = value[done]
        for gene in genes[~found.converged].tolist():
            if self.logger.reason[gene] == Reason.CONVERGED:
                self.logger.reason[gene] = Reason.NOT_REFINED

    def _held(self) -> tuple[str, ...]:
        sigma = ("sigma",) if self.var_fix_sigma else ()
        return sigma if self._engine.solver is not None else (*sigma, "theta_logit")

    def _replaced(self) -> Iterator[tuple[str, FollowedModel]]:
        yield from super()._replaced()
        asked, space = self._asked(), self._eigen
        if "covariance" in asked and space is not None:
            other = EigenCovariance(2 * space.eigenvalues, space.eigenvectors.flip(0))
            yield asked["covariance"], self._changed(_eigen=other)
        if "share_variance" in asked:
            yield asked["share_variance"], self._changed(share_variance=True)

    def _free_priors(self) -> dict[str, TorchDistribution]:
        return {name: prior for name, prior in super()._free_priors().items() if name not in self._held()}

    @property
    def variance_priors(self) -> dict[str, TorchDistribution]:
        """Priors of σ and logit θ that are not flat, by site."""
        return {name: prior for name, prior in self._free_priors().items() if name in ("sigma", "theta_logit")}

    def _mixed_engine(self) -> MixedEngine:
        return self._engine

    def _no_mode(self) -> str | None:
        if self.is_marginal:
            return None
        return (
            f"fitting_method: expected a marginal fit to draw from, found {self.fitting_method!r}: the joint optimum "
            "of (σ, θ) is not an estimate."
        )

    def _engine_here(self) -> MixedEngine:
        """The engine with the likelihood's hyper-parameters at their present values."""
        return replace(self._engine, likelihood=self.bound_likelihood)

    def _engine_prior(self, genes: Tensor) -> LogPrior | None:
        raise NotImplementedError

    def _set_data(self, counts: Tensor, design: Tensor) -> None:
        super()._set_data(counts, design)
        self.pareto_k = None

    def _finish(self, *args: Any, **kwargs: Any) -> None:
        self.pareto_k = None
        super()._finish(*args, **kwargs)


def _check_draws(n_draws: int) -> None:
    if isinstance(n_draws, bool) or not isinstance(n_draws, int) or n_draws < FEWEST_DRAWS or n_draws % 2:
        raise InvalidArgumentError(f"n_draws: expected an even number of at least {FEWEST_DRAWS}, found {n_draws!r}.")
