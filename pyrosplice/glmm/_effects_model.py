r"""Counts with a list of random effects as a Pyro model: what the engine of :mod:`pyrosplice.glmm._arrow` fits.

.. math::
    y_i \mid \eta_i \sim p(\eta_i, \text{hyper}), \qquad
    \eta = X B + o + \sum_e Z_e U_e + a\, x \odot s + c\, e

Latents are standardised: with L the root of the covariance between predictors (of I or, between the logits of
``isoform_effect="symmetric"``, of :math:`I + 11'`), :math:`u_l = L_e(\psi) v_l L'` of each level, and the field and the
noise are :math:`s L'` and :math:`e L'`, so that no prior of a latent depends on a parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._isoform_effect import SoftmaxBasis, check_isoform_effect
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._distributions import LazyCovariance, SpatialEffect
from pyrosplice.glmm._multinomial import MultinomialGLM


class CountGLMM(MultinomialGLM):
    """Pyro model of counts with covariates, groups, a field and effects of single observations.

    Parameters
    ----------
    problem
        Counts, design, likelihood and effects.
    priors
        Pyro distributions by site; flat by default.

    Notes
    -----
    Sites in the plate ``genes`` (dim −1): ``beta`` ``(G, P, Q)``, of all columns of the design; of a group effect
    ``"1 | donor"`` its parameters ``"1 | donor: sd(1)"`` ``(G, 1)``, positive where their matrix of the basis is
    diagonal, and ``"1 | donor"``, its standardised effects ``(G, D, q, Q)``; ``space_sd``, ``noise_sd`` ``(G, 1)`` and
    ``space``, ``noise`` ``(G, N, Q)``, standardised too (``space`` has covariance V); the likelihood's free
    hyper-parameters ``(G, 1)``. ``counts`` as in :class:`MultinomialGLM`. The density of ``space`` decomposes V, once.

    Raises
    ------
    InvalidArgumentError
        Two sites of one name; priors by a name, which are of other sites.

    Examples
    --------
    >>> import numpy as np, pandas as pd, torch
    >>> from pyrosplice.effects import Groups
    >>> from pyrosplice.glmm import CountGLMM, EffectsProblem
    >>> from pyrosplice.likelihoods import Poisson
    >>> donor = Groups("donor").bind(pd.DataFrame({"donor": list("uuvvww")}))
    >>> counts = torch.tensor([[3.0, 2.0, 9.0, 8.0, 1.0, 0.0]], dtype=torch.float64)[..., None]  # genes, cells, 1
    >>> problem = EffectsProblem(counts, np.ones((6, 1)), likelihood=Poisson(), groups=(donor,))
    >>> model = CountGLMM(problem)
    >>> model.latent_shapes()
    {'beta': (1, 1, 1), '1 | donor: sd(1)': (1, 1), '1 | donor': (1, 3, 1, 1)}
    """

    def __init__(self, problem: EffectsProblem, *, priors: Mapping[str, Any] | None = None) -> None:
        check_isoform_effect(
            problem.isoform_effect, share_variance=True, likelihood=problem.likelihood, counts=problem.counts
        )
        self.problem = problem
        self.space = None if problem.space is None else LazyCovariance(problem.space)
        self.by = None if problem.space_by is None else torch.as_tensor(problem.space_by)[:, None]
        offset = torch.zeros(1) if problem.offset is None else torch.as_tensor(problem.offset, dtype=torch.float64)
        self.offset = offset.unsqueeze(-1) if offset.ndim == 1 else offset
        bases = {name: matrix for group in problem.groups for name, matrix in _parameters_of(group).items()}
        self.real_sites = {"beta", *(n for n, matrix in bases.items() if not torch.equal(matrix, _diagonal(matrix)))}
        self._check_names([*bases, *(group.name for group in problem.groups)])
        design = torch.as_tensor(problem.design, dtype=torch.float64)
        super().__init__(problem.counts, design, likelihood=problem.likelihood, priors=priors)
        n_predictors = self.likelihood.n_predictors(problem.counts.shape[-1])
        self.between = torch.eye(n_predictors, dtype=torch.float64)
        if problem.isoform_effect == "symmetric":
            self.between = SoftmaxBasis.plain(n_predictors, self.between).root

    def site_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each site that takes a prior, genes first."""
        shapes, one = super().site_shapes(), (len(self.counts), 1)
        del shapes["bias_eta"]
        own = [name for group in self.problem.groups for name in _parameters_of(group)]
        return {**shapes, **dict.fromkeys([*own, *self._standard_deviations()], one)}

    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each latent site that :meth:`sample_latents` samples, genes first."""
        shapes, (n_genes, n_spots) = self.site_shapes(), self.counts.shape[:2]
        q = shapes["beta"][-1]
        for group in self.problem.groups:
            shapes[group.name] = (n_genes, len(group.level_names), group.columns.shape[1], q)
        inner = {"space": self.space is not None, "noise": self.problem.noise}
        return {**shapes, **{name: (n_genes, n_spots, q) for name, there in inner.items() if there}}

    def sample_latents(self) -> dict[str, Tensor]:
        """Sample parameters, then the standardised effects."""
        values, shapes = super().sample_latents(), self.latent_shapes()
        zero, one = self.design.new_zeros(()), self.design.new_ones(())
        for name in shapes.keys() - values.keys() - {"space"}:
            shape = shapes[name]
            values[name] = pyro.sample(name, dist.Normal(zero, one).expand(shape).to_event(len(shape) - 1))
        if self.space is not None:
            whole = one.expand(len(self.counts), 1)  # all of its variance is spatial
            law = SpatialEffect(self.space, whole, whole * torch.inf, shapes["space"][-1])
            values["space"] = pyro.sample("space", law)
        return values

    def linear_predictor(self, values: Mapping[str, Tensor]) -> Tensor:
        """Linear predictor η ``(..., G, N, Q)`` from the values of the sites."""
        eta = self.design @ values["beta"] + self.offset
        for group in self.problem.groups:
            eta = eta + self._group_part(group, values)
        if self.space is not None:
            field = values["space"] @ self.between.T * values["space_sd"].unsqueeze(-1)
            eta = eta + (field if self.by is None else self.by * field)
        if self.problem.noise:
            eta = eta + values["noise"] @ self.between.T * values["noise_sd"].unsqueeze(-1)
        return eta

    def effect_root(self, group: GroupBlock, values: Mapping[str, Tensor]) -> Tensor:
        """L ``(..., G, q, q)`` of a group effect: its levels have covariance ``L L'`` on each predictor.

        Examples
        --------
        >>> import numpy as np, pandas as pd, torch
        >>> from pyrosplice.effects import Groups
        >>> from pyrosplice.glmm import CountGLMM, EffectsProblem
        >>> from pyrosplice.likelihoods import Poisson
        >>> donor = Groups("donor").bind(pd.DataFrame({"donor": list("uuvvww")}))
        >>> counts = torch.tensor([[3.0, 2.0, 9.0, 8.0, 1.0, 0.0]], dtype=torch.float64)[..., None]  # genes, cells, 1
        >>> problem = EffectsProblem(counts, np.ones((6, 1)), likelihood=Poisson(), groups=(donor,))
        >>> model = CountGLMM(problem)
        >>> values = {name: torch.ones(shape).double() for name, shape in model.latent_shapes().items()}
        >>> model.effect_root(donor, values).shape  # genes, columns, columns
        torch.Size([1, 1, 1])
        """
        scale = (values[name].unsqueeze(-1) * matrix for name, matrix in _parameters_of(group).items())
        return sum(scale, self.design.new_zeros(()))

    def level_effects(self, group: GroupBlock, values: Mapping[str, Tensor]) -> Tensor:
        """Effects u ``(..., G, D, q, Q)`` of every level on the predictors.

        Examples
        --------
        >>> import numpy as np, pandas as pd, torch
        >>> from pyrosplice.effects import Groups
        >>> from pyrosplice.glmm import CountGLMM, EffectsProblem
        >>> from pyrosplice.likelihoods import Poisson
        >>> donor = Groups("donor").bind(pd.DataFrame({"donor": list("uuvvww")}))
        >>> counts = torch.tensor([[3.0, 2.0, 9.0, 8.0, 1.0, 0.0]], dtype=torch.float64)[..., None]  # genes, cells, 1
        >>> problem = EffectsProblem(counts, np.ones((6, 1)), likelihood=Poisson(), groups=(donor,))
        >>> model = CountGLMM(problem)
        >>> values = {name: torch.ones(shape).double() for name, shape in model.latent_shapes().items()}
        >>> model.level_effects(donor, values).shape  # genes, donors, columns, predictors
        torch.Size([1, 3, 1, 1])
        """
        latent = values[group.name]
        if group.root is not None:
            latent = torch.einsum("de,...ekq->...dkq", torch.as_tensor(group.root), latent)
        return torch.einsum("...kl,...dlq->...dkq", self.effect_root(group, values), latent) @ self.between.T

    def _group_part(self, group: GroupBlock, values: Mapping[str, Tensor]) -> Tensor:
        effects = self.level_effects(group, values)
        levels = torch.as_tensor(group.levels, dtype=torch.int64)
        columns = torch.as_tensor(group.columns) * (levels >= 0)[:, None]  # −1: none of them
        return torch.einsum("nk,...nkq->...nq", columns, effects[..., levels.clamp_min(0), :, :])

    def _standard_deviations(self) -> list[str]:
        return ["space_sd"] * (self.space is not None) + ["noise_sd"] * self.problem.noise

    def _named(self, name: str, sites: Collection[str]) -> dict[str, Any]:
        raise InvalidArgumentError(f"priors: expected a dictionary of Pyro distributions by site, found {name!r}.")

    def _check_names(self, own: list[str]) -> None:
        inner = ["space", "noise", "counts", "genes", "rows", "spots", "space_sd", "noise_sd", "beta"]
        twice = sorted(n for n, k in Counter([*own, *inner, *self.problem.likelihood.free]).items() if k > 1)
        if twice:
            raise InvalidArgumentError(
                f"groups: expected a name of its own for every effect, found {twice[0]!r} twice."
            )


def _parameters_of(group: GroupBlock) -> dict[str, Tensor]:
    """Matrix of the basis ``(q, q)`` by site."""
    matrices = torch.as_tensor(group.basis, dtype=torch.float64)
    return {f"{group.name}: {name}": matrix for name, matrix in zip(group.parameters, matrices, strict=True)}


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.diag(torch.diagonal(matrix))
