"""The part of :class:`~pyrosplice.GaussianMixture` that draws from the posterior of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from sklearn.utils.validation import check_is_fitted

from pyrosplice._mixture.given_cells import check_cells_of_draws
from pyrosplice._mixture.own_mixture import FollowedMixture
from pyrosplice._mixture.posterior_tree import MixtureDrawOptions, mixture_posterior
from pyrosplice._modes import works_in_any_mode


@works_in_any_mode
class MixturePosterior(FollowedMixture):
    """The method ``posterior`` of a fitted mixture."""

    use_rep: str | None

    def posterior(  # noqa: PLR0913 (a documented interface)
        self,
        X: object,
        *,
        num_samples: int = 500,
        method: str = "gibbs",
        num_chains: int = 4,
        warmup_steps: int = 200,
        groups: Sequence[str] | None = None,
        names: Mapping[str, Sequence[Any]] | None = None,
        seed: int = 0,
        progress: bool | None = None,
        max_memory: str | float | None = None,
        over_memory: str = "refuse",
        quiet: bool = False,
    ) -> xr.DataTree:
        """Draw from the posterior given the cells: an ``xarray.DataTree`` with the groups that ArviZ reads.

        Posterior: ``weights``, ``means``, ``covariances`` and ``sd`` of every component and feature, components in the
        order of the fit (each draw's labels are permuted to agree best with it).

        Parameters
        ----------
        X
            Cells ``(N, D)``, those of the fit; whatever :meth:`fit` takes.
        num_samples
            Draws a chain.
        method
            ``"gibbs"`` draws from the posterior itself, at the price of an EM step a sweep, so there is no Laplace's
            method to approximate it. ``"nuts"``: the Pyro model, assignments summed out; small data only.
        num_chains, warmup_steps
            Chains, each from means of its own around the fit, and iterations of each before its draws are kept.
        groups
            Optional groups (:mod:`pyrosplice.posterior._tree`), all by default. The predictive ones have chains ×
            draws × cells × features numbers, the log likelihood one a cell and draw.
        names
            Coordinates by dimension: ``cell``, ``feature``, ``component``.
        seed
            Seed of all that is random.
        progress
            Show a bar of sweeps or iterations from the start on (True) or never (False); after two seconds by default.
        max_memory
            What the draws may take, as ``"4 GB"`` or bytes; half of the memory that is free by default.
        over_memory
            Where they would take more: ``"refuse"``, saying how many would go into it, or ``"thin"``, which warns once
            and keeps one of every few iterations; the tree's attribute ``num_samples_asked`` has the number asked for.
        quiet
            Hide progress.

        Raises
        ------
        InvalidArgumentError
            A prior of the estimator is improper, or not conjugate; weak ones
            (:func:`~pyrosplice._mixture.mixture_prior.weak_prior`) stand in where it has none. An option that does not
            exist, cells with other feature names than the fit's, or missing values.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> tree = mixture.posterior(x, num_samples=20, num_chains=2, warmup_steps=10, seed=0)
        >>> dict(tree["posterior"]["means"].sizes)
        {'chain': 2, 'draw': 20, 'component': 2, 'feature': 2}
        """
        self._shipped_only("posterior")
        check_is_fitted(self, "model_")
        check_cells_of_draws(self, X)  # type: ignore[arg-type]
        asked = MixtureDrawOptions(
            num_samples=num_samples,
            method=method,
            prior=self.prior,
            priors=self.priors,
            num_chains=num_chains,
            warmup_steps=warmup_steps,
            groups=groups,
            names=names,
            seed=seed,
            use_rep=self.use_rep,
            progress=progress,
            quiet=quiet,
            max_memory=max_memory,
            over_memory=over_memory,
        )
        return mixture_posterior(X, self.model_.parameters_of(), asked)
