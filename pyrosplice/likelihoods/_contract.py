r"""Likelihoods: the density of one spot's counts given its linear predictor.

Shapes throughout: counts ``(..., N, K)``, linear predictor ``eta`` ``(..., N, Q)``; leading dimensions are
genes (or draws) and never interact. Expression has one count a cell, K = 1 and Q = 1; there the hyper-parameter that is
estimated has a design of its own: its log, with a sign, is a second predictor of each cell, the scale ζ ``(..., N)``.
The methods keep the memory layout of their inputs, so that a caller who stores predictors first
(``eta.movedim(-1, 0)`` contiguous) gets vectorised code without another interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrosplice._linalg.blocks import last_max, last_sum, matvec
from pyrosplice._overrides import Extensible, is_current, is_ours
from pyrosplice.errors import InvalidArgumentError, NotStatedError
from pyrosplice.likelihoods._by_distribution import drawn_from, each_spot, log_prob_of
from pyrosplice.likelihoods._cell_terms import Terms, terms_by_autograd
from pyrosplice.likelihoods._hyperparameters import free_hyperparameters
from pyrosplice.likelihoods._softmax import draw_multinomial, usage_of

UNIT = 1e-4  # how far a sum of usage may be from one
DENSITY = ("distribution", "log_prob", "log_kernel", "mean")  # what derivatives follow from, in the shipped classes too
SCALE = ("hyperparameters", "scale_sign", "at_scale")


class Likelihood(Extensible):
    r"""Log density of the counts of a spot, :math:`\log p(y_i \mid \eta_i)`, and its derivatives in :math:`\eta_i`.

    ======================== ======== ===================================================================
    what to override         required for
    ======================== ======== ===================================================================
    ``log_prob``             one of   everything: fitting, tests and posteriors work from it by autograd
    ``distribution``         the two  the same as a Pyro distribution, and with it ``mean``, ``variance`` and ``sample``
    ``mean``                 no       fitted usage ratios; fitted counts
    ``sample``               no       simulation and posterior predictive draws
    ``variance``             no       of counts whose total is random: what a fit is judged by
    ``predictors``           no       names of the linear predictors, where they are not K − 1 logits:
                                      ``("location",)`` for one count a cell, fitted by expression and usage
    ``start``                no       where searches start
    ``hyperparameters``      no       positive numbers of its own, one a gene (a concentration, a dispersion):
                                      names and start values. Each is an attribute: None to estimate it
                                      (a site of that name, flat unless ``priors`` says otherwise), else its value.
                                      In expression the free one is :math:`e^{\pm\zeta}` of each cell, ζ = z'b
    ``scale_sign``           no       the sign there: −1 where ζ is minus the log of it
    ``of_counts``            no       False if observations are real numbers: negative ones and fractions are then taken
    ``conditional``          no       False if the total of a spot is random, so that empty spots inform
    ``n_categories``         no       least and greatest K (None: any) that it is for
    ``log_kernel``           no       speed: ``log_prob`` without the terms that do not depend on eta
    ``additive``             no       speed: True if, but for a constant in eta, spots of equal eta have the
                                      log density of one spot with their summed counts
    ``log_concave``          no       speed: True if ``information`` is never indefinite
    ``score``                no       speed: first derivative, closed form
    ``information``          no       speed: minus the second derivative, closed form (by ``curvature`` for
                                      likelihoods with hyper-parameters, which is differentiated in them)
    ``information_gradient`` no       speed: third derivative contracted with a matrix, closed form
    ``hyper_gradient``       no       speed: derivatives in the logs of hyper-parameters, closed form
    ``terms``                no       speed: density and derivatives of one count a cell in (η, ζ), closed form
    ``location_information`` no       speed: what is expected of those in η; the observed ones by default
    ``by_totals``            no       speed: True if ``terms`` knows cells of equal (η, ζ) by their total and number
                                      alone, ``−log y!`` left out
    ======================== ======== ===================================================================

    A subclass of a shipped likelihood that overrides ``log_prob`` has that density: closed forms and claims of its
    parent that it does not give again are worked out from ``log_prob``, and ``mean`` and ``sample``, which cannot be,
    are refused where they are asked for until it gives them. One that overrides ``mean`` alone has the parent's density
    around that mean. Methods set on an object are refused; those set on a class after it was made are not seen.

    :func:`pyrosplice.testing.check_likelihood` says in words what a new one gets wrong.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.likelihoods import Likelihood
    >>> class Mislabelled(Likelihood):
    ...     def log_prob(self, counts, eta):  # one in twenty is of any isoform
    ...         usage = torch.cat([eta, torch.zeros_like(eta[..., :1])], -1).softmax(-1)
    ...         usage = 0.95 * usage + 0.05 / counts.shape[-1]
    ...         ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
    ...         return ways + (counts * usage.log()).sum(-1)
    >>> from pyrosplice import MultinomGLM
    >>> model = MultinomGLM(likelihood=Mislabelled())
    >>> model.setup_data(torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0)))
    >>> model.fit(quiet=True)
    >>> model.logger.converged.all().item()
    True
    """

    closed_forms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "additive": DENSITY,
        "log_concave": DENSITY,
        "score": DENSITY,
        "information": (*DENSITY, "curvature"),
        "curvature": DENSITY,
        "information_gradient": (*DENSITY, "curvature", "information"),
        "hyper_gradient": (*DENSITY, "curvature", "hyperparameters"),
        "log_prob": ("distribution",),
        "mean": ("distribution",),
        "sample": ("distribution",),
        "variance": DENSITY,
        "terms": (*DENSITY, *SCALE),
        "location_information": (*DENSITY, *SCALE, "terms", "variance"),
        "by_totals": (*DENSITY, *SCALE, "terms"),
        "is_negative_binomial": (*DENSITY, *SCALE, "terms"),
    }
    name: str = "likelihood"
    additive: bool = False
    conditional: bool = True
    log_concave: bool = False
    n_categories: tuple[int, int | None] = (2, None)
    hyperparameters: Mapping[str, float] = MappingProxyType({})
    predictors: tuple[str, ...] = ()
    scale_sign: int = 1
    of_counts: bool = True
    by_totals: bool = False
    is_negative_binomial: bool = False  # its dispersion is exp(−ζ), and terms() are those of NegativeBinomial

    def n_predictors(self, n_isos: int) -> int:
        """Length Q of the linear predictor of a gene with ``n_isos`` isoforms.

        Examples
        --------
        >>> from pyrosplice.likelihoods import Multinomial, Poisson
        >>> Multinomial().n_predictors(3), Poisson().n_predictors(1)
        (2, 1)
        """
        return len(self.predictors) or n_isos - 1

    def distribution(self, eta: Tensor) -> TorchDistribution:
        """Pyro distribution of the counts at ``eta``: a spot's, event ``(K,)``, or each, batch ``(..., N, K)``.

        The density of the counts given their total, where that is not random (whatever the ``total_count``).

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Normal, Poisson
        >>> Normal(torch.ones(1, 1)).distribution(torch.zeros(1, 4, 1)).sample().shape  # one gene, four spots
        torch.Size([1, 4, 1])
        >>> Poisson().distribution(torch.zeros(1, 4, 1))
        Traceback (most recent call last):
            ...
        pyrosplice.errors.NotStatedError: Poisson has no Pyro distribution: its density is log_prob.
        """
        lacks = "log density; override Likelihood.log_prob or Likelihood.distribution."
        lacks = lacks if type(self).log_prob is Likelihood.log_prob else "Pyro distribution: its density is log_prob."
        raise NotStatedError(f"{type(self).__name__} has no {lacks}")

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of each spot's counts, constants included: ``(..., N)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> round(Multinomial().log_prob(counts, eta).exp().item() * 3**10)  # ways, of 3^10 for ten molecules
        45
        """
        return log_prob_of(self.distribution, counts, eta)

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density up to terms that do not depend on ``eta``: ``(..., N)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> change = lambda density: density(counts, eta + 1) - density(counts, eta)
        >>> bool(torch.isclose(change(Multinomial().log_kernel), change(Multinomial().log_prob)))
        True
        """
        return self.log_prob(counts, eta)

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage of each isoform, ``(..., N, K)``, summing to one; expected counts if not ``conditional``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Multinomial().mean(eta)  # no logit differs from the last
        tensor([[[0.3333, 0.3333, 0.3333]]], dtype=torch.float64)
        """
        mean = self._stated_by_distribution("mean", eta).mean
        return mean / mean.sum(-1, keepdim=True) if self.conditional else mean

    def variance(self, eta: Tensor) -> Tensor:
        """Variance of each count whose total is random, ``(..., N, K)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import NegativeBinomial
        >>> likelihood = NegativeBinomial(0.5).bind_start(1, torch.zeros(1).double())
        >>> likelihood.variance(torch.log(torch.tensor([[[4.0]]]).double()))  # 4 + 0.5 · 4²
        tensor([[[12.]]], dtype=torch.float64)
        """
        return self._stated_by_distribution("variance", eta).variance

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Counts ``(..., N, K)`` drawn for spots with ``totals`` ``(..., N)`` molecules (unused if not conditional).

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> drawn = Multinomial().sample(counts.sum(-1), eta, generator=torch.Generator().manual_seed(0))
        >>> drawn.shape, drawn.sum(-1)
        (torch.Size([1, 1, 3]), tensor([[10.]], dtype=torch.float64))
        """
        return drawn_from(self._stated_by_distribution("sample", eta), generator)

    def states(self, method: str) -> bool:
        """Whether ``mean``, ``sample`` or ``variance`` is this density's: given, and not by a class it replaced.

        What a ``distribution`` has of its own, which for given totals are no samples, counts as given.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Likelihood
        >>> class Mislabelled(Likelihood):
        ...     def log_prob(self, counts, eta):  # one in twenty is of any isoform
        ...         usage = torch.cat([eta, torch.zeros_like(eta[..., :1])], -1).softmax(-1)
        ...         usage = 0.95 * usage + 0.05 / counts.shape[-1]
        ...         ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        ...         return ways + (counts * usage.log()).sum(-1)
        >>> Mislabelled().states("mean"), Mislabelled().states("sample")  # its density alone is given
        (False, False)
        """
        kind = type(self)
        if self._gives(method):
            return is_current(kind, method, ("log_prob", "log_kernel", "distribution"))
        follows = method == "mean" or not self.conditional
        return follows and self._gives("distribution") and is_current(kind, "distribution", ("log_prob", "log_kernel"))

    def _gives(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(Likelihood, method)

    def _stated_by_distribution(self, method: str, eta: Tensor) -> TorchDistribution:
        self.require(method)
        return each_spot(self.distribution, eta)

    def require(self, method: str) -> None:
        """Raise :class:`~pyrosplice.errors.NotStatedError` unless it :meth:`states` that method.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Likelihood
        >>> class Mislabelled(Likelihood):
        ...     def log_prob(self, counts, eta):  # one in twenty is of any isoform
        ...         usage = torch.cat([eta, torch.zeros_like(eta[..., :1])], -1).softmax(-1)
        ...         usage = 0.95 * usage + 0.05 / counts.shape[-1]
        ...         ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        ...         return ways + (counts * usage.log()).sum(-1)
        >>> Mislabelled().require("sample")
        Traceback (most recent call last):
            ...
        pyrosplice.errors.NotStatedError: likelihood: Mislabelled does not say how to sample; override
        Likelihood.sample.
        """
        if not self.states(method):
            raise NotStatedError(self._unstated(method))

    def _unstated(self, method: str) -> str:
        what = {"mean": "what it expects", "sample": "how to sample", "variance": "how it varies"}[method]
        why = " (that of its parent belongs to the parent's density)" if self._gives(method) else ""
        return f"likelihood: {type(self).__name__} does not say {what}; override Likelihood.{method}{why}."

    def expected(self, eta: Tensor) -> Tensor:
        """Expected usage, for those who report it: :meth:`mean`, refused where it is not stated for this density.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Multinomial().expected(eta).sum(-1)
        tensor([[1.]], dtype=torch.float64)
        """
        self.require("mean")
        mean = self.mean(eta)
        return mean if is_ours(type(self)) else self._checked_mean(mean, eta)

    def draw(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw counts by :meth:`sample`, refused where it is not stated for this density.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Multinomial().draw(counts.sum(-1), eta, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 1, 3])
        """
        self.require("sample")
        counts = self.sample(totals, eta, generator=generator)
        if is_ours(type(self)):
            return counts
        return shaped(f"sample of {type(self).__name__}", counts, (*eta.shape[:-1], self._categories(counts, eta)))

    def _checked_mean(self, mean: Tensor, eta: Tensor) -> Tensor:
        """Expected counts; refused where not of each spot and isoform, or no shares of molecules."""
        what = f"mean of {type(self).__name__}"
        mean = shaped(what, mean, (*eta.shape[:-1], self._categories(mean, eta)))
        total = mean.detach().sum(-1)
        if self.conditional and bool(((total - 1).abs() > UNIT).any()):  # NaN, of a gene without a fit, is none
            worst = float(total.flatten()[(total - 1).abs().nan_to_num().argmax()])
            raise InvalidArgumentError(
                f"likelihood: expected {what} to be usage, which sums to one over isoforms, found a sum of {worst:.4g}."
            )
        return mean

    def _categories(self, found: object, eta: Tensor) -> int:
        """K of a linear predictor: that of what was ``found`` if it is possible."""
        wanted = [k for k in (eta.shape[-1] + 1, eta.shape[-1]) if self.n_predictors(k) == eta.shape[-1]]
        own = found.shape[-1] if isinstance(found, Tensor) and found.ndim else 0
        return own if not wanted or own in wanted else wanted[0]

    def kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density up to terms without ``eta``: :meth:`log_kernel` if it is of this density, else ``log_prob``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Likelihood
        >>> class Mislabelled(Likelihood):
        ...     def log_prob(self, counts, eta):  # one in twenty is of any isoform
        ...         usage = torch.cat([eta, torch.zeros_like(eta[..., :1])], -1).softmax(-1)
        ...         usage = 0.95 * usage + 0.05 / counts.shape[-1]
        ...         ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        ...         return ways + (counts * usage.log()).sum(-1)
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Mislabelled().kernel(counts, eta).shape  # by log_prob: no log_kernel is given
        torch.Size([1, 1])
        """
        current = is_current(type(self), "log_kernel", ("log_prob",))
        return self.log_kernel(counts, eta) if current else self.log_prob(counts, eta)

    def link_of(self, kind: type[Likelihood]) -> Callable[[Tensor], Tensor] | None:
        """The ``mean`` that the density of ``kind``, an ancestor, is taken around: None for that of ``kind`` itself.

        It is the last one that a subclass gives, up to the first subclass with a ``log_prob`` of its own.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Likelihood
        >>> class Mislabelled(Likelihood):
        ...     def log_prob(self, counts, eta):  # one in twenty is of any isoform
        ...         usage = torch.cat([eta, torch.zeros_like(eta[..., :1])], -1).softmax(-1)
        ...         usage = 0.95 * usage + 0.05 / counts.shape[-1]
        ...         ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
        ...         return ways + (counts * usage.log()).sum(-1)
        >>> Mislabelled().link_of(Likelihood) is None
        True
        """
        line, link = type(self).__mro__, None
        for ancestor in reversed(line[: line.index(kind)]):
            if "log_prob" in vars(ancestor):
                break
            link = vars(ancestor).get("mean", link)
        return None if link is None else link.__get__(self)

    def start(self, counts: Tensor) -> Tensor:
        """Intercepts ``(B, Q)`` to start from: log ratios of the totals (half a count added), or zero.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Multinomial().start(counts).exp()  # (8 + ½) / ½ and (2 + ½) / ½
        tensor([[17.0000,  5.0000]], dtype=torch.float64)
        """
        total = counts.sum(-2) + 0.5
        n_predictors = self.n_predictors(counts.shape[-1])
        if n_predictors != counts.shape[-1] - 1:
            return total.new_zeros(len(total), n_predictors)
        return (total[:, :-1] / total[:, -1:]).log()

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative of ``log_prob`` in ``eta``: ``(..., N, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Multinomial().score(counts, eta)  # counts less what is expected, 10 / 3
        tensor([[[ 4.6667, -1.3333]]], dtype=torch.float64)
        """
        with torch.enable_grad():
            eta = eta.detach().requires_grad_(True)
            return torch.autograd.grad(self.log_prob(counts, eta).sum(), eta)[0]

    def information(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative of ``log_prob`` in ``eta``: ``(..., N, Q, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> Multinomial().information(counts, eta).shape
        torch.Size([1, 1, 2, 2])
        """
        with torch.enable_grad():
            return self.curvature(counts, eta.detach().requires_grad_(True)).detach()

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        r"""Derivative of :math:`\operatorname{tr}(C_i W_i)` in :math:`\eta_i`: ``(..., N, Q)``.

        ``weight`` is the symmetric matrix C, ``(..., N, Q, Q)``; W is :meth:`information`.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> identity = torch.eye(2, dtype=torch.float64).expand(1, 1, 2, 2)
        >>> Multinomial().information_gradient(counts, eta, identity).shape
        torch.Size([1, 1, 2])
        """
        with torch.enable_grad():
            eta = eta.detach().requires_grad_(True)
            trace = (self.curvature(counts, eta) * weight).sum()
            return torch.autograd.grad(trace, eta)[0] if trace.requires_grad else torch.zeros_like(eta)

    def curvature(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative, a differentiable function of ``eta`` (which requires a gradient).

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import Multinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> curvature = Multinomial().curvature(counts, eta.requires_grad_())
        >>> bool(torch.allclose(curvature, Multinomial().information(counts, eta)))
        True
        """
        (score,) = torch.autograd.grad(self.log_prob(counts, eta).sum(), eta, create_graph=True)
        if not score.requires_grad:  # log_prob is linear in eta
            return eta.new_zeros(*eta.shape, eta.shape[-1])
        rows = [torch.autograd.grad(s.sum(), eta, create_graph=True)[0] for s in score.unbind(-1)]
        return -torch.stack(rows, -2)

    @property
    def free(self) -> tuple[str, ...]:
        """Hyper-parameters that are to be estimated."""
        return free_hyperparameters(self, self.hyperparameters)

    def bind(self: Self, values: Mapping[str, Tensor]) -> Self:
        """Copy with the hyper-parameters at ``values`` ``(..., G, 1)``; others are ignored.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import DirichletMultinomial
        >>> likelihood = DirichletMultinomial().bind({"concentration": torch.full((1, 1), 5.0, dtype=torch.float64)})
        >>> likelihood.free, likelihood.concentration
        ((), tensor([[5.]], dtype=torch.float64))
        """
        bound = copy(self)
        for name in self.hyperparameters:
            if name in values:
                setattr(bound, name, values[name])
        return bound

    def bind_start(self: Self, n_genes: int, like: Tensor) -> Self:
        """Copy with free hyper-parameters at their start values.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import DirichletMultinomial
        >>> likelihood = DirichletMultinomial()
        >>> likelihood.free, likelihood.bind_start(2, torch.zeros(1).double()).concentration.shape
        (('concentration',), torch.Size([2, 1]))
        """
        return self.bind({name: like.new_full((n_genes, 1), self.hyperparameters[name]) for name in self.free})

    def select(self: Self, genes: Tensor) -> Self:
        """Take the likelihood of some of the genes.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import NegativeBinomial
        >>> likelihood = NegativeBinomial(torch.tensor([[0.1], [0.5], [0.9]]))
        >>> likelihood.select(torch.tensor([2])).dispersion
        tensor([[0.9000]])
        """
        own = {name: getattr(self, name) for name in self.hyperparameters}
        return self.bind({name: v[genes] for name, v in own.items() if isinstance(v, Tensor) and v.ndim >= 2})

    def at_scale(self: Self, zeta: Tensor) -> Self:
        """Copy with the free hyper-parameter at ``exp(± zeta)`` of each cell, ``(..., G, N)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import NegativeBinomial
        >>> counts = torch.tensor([[3.0, 0.0]], dtype=torch.float64)  # one gene, two cells
        >>> weight, eta, zeta = torch.ones(1, 2).double(), torch.ones(1, 2).double(), torch.zeros(1, 2).double()
        >>> NegativeBinomial().at_scale(zeta).dispersion  # of each cell
        tensor([[1., 1.]], dtype=torch.float64)
        """
        return self.bind({name: (self.scale_sign * zeta).exp() for name in self.free})

    def cell_log_prob(self, counts: Tensor, eta: Tensor, zeta: Tensor) -> Tensor:
        """Log density ``(..., G, N)`` of one count a cell at its own scale; refused if not of each.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import NegativeBinomial
        >>> counts = torch.tensor([[3.0, 0.0]], dtype=torch.float64)  # one gene, two cells
        >>> weight, eta, zeta = torch.ones(1, 2).double(), torch.ones(1, 2).double(), torch.zeros(1, 2).double()
        >>> NegativeBinomial().cell_log_prob(counts, eta, zeta).shape
        torch.Size([1, 2])
        """
        found, shape = self.at_scale(zeta).log_prob(counts, eta), torch.broadcast_shapes(counts.shape, eta.shape)[:-1]
        return found if is_ours(type(self)) else shaped(f"log_prob of {type(self).__name__}", found, shape)

    def terms(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Terms:
        """Weighted log density or kernel and derivatives of rows of one count, ``total`` = weight × count: ``(G, N)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import NegativeBinomial
        >>> counts = torch.tensor([[3.0, 0.0]], dtype=torch.float64)  # one gene, two cells
        >>> weight, eta, zeta = torch.ones(1, 2).double(), torch.ones(1, 2).double(), torch.zeros(1, 2).double()
        >>> terms = NegativeBinomial().terms(counts, weight, eta, zeta)
        >>> terms._fields, terms.g_eta.sign()  # more than expected, and fewer
        (('value', 'g_eta', 'g_zeta', 'h_eta', 'h_cross', 'h_zeta'), tensor([[ 1., -1.]], dtype=torch.float64))
        """
        return terms_by_autograd(self.cell_log_prob, total, weight, eta, zeta)

    def location_information(self, total: Tensor, weight: Tensor, eta: Tensor, zeta: Tensor) -> Tensor:
        """Weighted information of each row on its location predictor, expected where that is known: ``(G, N)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import NegativeBinomial
        >>> counts = torch.tensor([[3.0, 0.0]], dtype=torch.float64)  # one gene, two cells
        >>> weight, eta, zeta = torch.ones(1, 2).double(), torch.ones(1, 2).double(), torch.zeros(1, 2).double()
        >>> NegativeBinomial().location_information(counts, weight, eta, zeta).shape
        torch.Size([1, 2])
        """
        return self.terms(total, weight, eta, zeta).h_eta

    def hyper_score(self, counts: Tensor, eta: Tensor, names: Sequence[str]) -> Tensor:
        """First derivative of each spot's ``log_prob`` in the logs of hyper-parameters: ``(B, N, H)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import DirichletMultinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> likelihood = DirichletMultinomial().bind({"concentration": torch.full((1, 1), 5.0, dtype=torch.float64)})
        >>> likelihood.hyper_score(counts, eta, ["concentration"]).shape
        torch.Size([1, 1, 1])
        """
        with torch.enable_grad():
            bound, logs = self._of_each_spot(counts, names)
            return torch.stack(torch.autograd.grad(bound.log_prob(counts, eta).sum(), logs), -1)

    def _of_each_spot(self: Self, counts: Tensor, names: Sequence[str]) -> tuple[Self, list[Tensor]]:
        """Copy with hyper-parameters of each spot's own, and their logs ``(B, N)``, which require a gradient."""
        logs = [getattr(self, name).expand(counts.shape[:-1]).detach().log().requires_grad_(True) for name in names]
        return self.bind({name: log.exp() for name, log in zip(names, logs, strict=True)}), logs

    def hyper_gradient(
        self, counts: Tensor, eta: Tensor, names: Sequence[str], along: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r"""Derivatives in the logs of hyper-parameters at fixed η, ``(B, H)``.

        First of :math:`\sum_i \ell_i + a_i' \ell_i' - \tfrac12 \operatorname{tr}(C_i W_i)` (``along`` a, ``weight`` C;
        None for zero), which is what Laplace's method needs; then the sum of squares of the spots' own derivatives,
        a positive estimate of the information.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.likelihoods import DirichletMultinomial
        >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
        >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
        >>> likelihood = DirichletMultinomial().bind({"concentration": torch.full((1, 1), 5.0, dtype=torch.float64)})
        >>> slope, squares = likelihood.hyper_gradient(counts, eta, ["concentration"], None, None)
        >>> bool(torch.isclose(slope, likelihood.hyper_score(counts, eta, ["concentration"]).sum(1)))
        True
        """
        with torch.enable_grad():
            bound, logs = self._of_each_spot(counts, names)
            eta = eta.detach().requires_grad_(True)
            total = bound.log_prob(counts, eta).sum()
            own = torch.autograd.grad(total, logs, retain_graph=True)
            if along is not None:
                (score,) = torch.autograd.grad(total, eta, create_graph=True)
                total = total + (along * score).sum()
            if weight is not None:
                total = total - 0.5 * (weight * bound.curvature(counts, eta)).sum()
            whole = torch.autograd.grad(total, logs)
        return torch.stack(whole, -1).sum(1), torch.stack(own, -1).square().sum(1)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.hyperparameters if name not in self.free)
        return f"{type(self).__name__}({given})"


class Multinomial(Likelihood):
    r"""Multinomial with softmax link, the last category as reference.

    .. math:: y_i \mid \eta_i \sim \operatorname{Multinomial}(n_i, p_i), \quad p_i = \operatorname{softmax}([\eta_i, 0])

    A spot with :math:`n_i = 0` has log density 0 and zero derivatives.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.likelihoods import Multinomial
    >>> counts = torch.tensor([[[8.0, 2.0, 0.0]]], dtype=torch.float64)  # one gene, one spot, three isoforms
    >>> eta = torch.zeros(1, 1, 2, dtype=torch.float64)
    >>> likelihood = Multinomial()
    >>> likelihood.mean(eta), likelihood.log_prob(counts, eta).shape
    (tensor([[[0.3333, 0.3333, 0.3333]]], dtype=torch.float64), torch.Size([1, 1]))
    """

    name = "multinomial"
    additive = True
    log_concave = True

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of the counts, ``log n! − Σ log y! + y' [η, 0] − n log(1 + Σ e^η)``."""
        total = counts.sum(-1)
        coefficient = torch.lgamma(total + 1) - torch.lgamma(counts + 1).sum(-1)
        return coefficient + self.log_kernel(counts, eta)

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density without the multinomial coefficient, the part that depends on ``eta``."""
        link = self.link_of(Multinomial)
        if link is not None:
            return torch.xlogy(counts, link(eta)).sum(-1)
        top = last_max(eta).clamp_min(0.0)
        normalizer = top + (last_sum(torch.exp(eta - top.unsqueeze(-1))) + torch.exp(-top)).log()
        return last_sum(counts[..., :-1] * eta) - last_sum(counts) * normalizer

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage of each isoform, ``softmax([η, 0])``."""
        return usage_of(eta)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one category a molecule and count."""
        return draw_multinomial(totals, self.mean(eta), generator=generator)

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative in the logits, counts less what is expected: ``y − n p``."""
        return counts[..., :-1] - self._usage(eta) * last_sum(counts).unsqueeze(-1)

    def information(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Information of the counts about the logits, ``n (diag(p) − p p')``."""
        usage = self._usage(eta)
        expected = usage * last_sum(counts).unsqueeze(-1)
        information = -expected.unsqueeze(-1) * usage.unsqueeze(-2)
        torch.diagonal(information, dim1=-2, dim2=-1).add_(expected)
        return information

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        """Derivative of the information, ``n p_m (C_mm − Σ_k C_kk p_k − 2 (C p)_m + 2 p' C p)``."""
        usage = self._usage(eta)
        diagonal = torch.diagonal(weight, dim1=-2, dim2=-1)
        along = 2 * matvec(weight, usage) - diagonal
        common = last_sum(along * usage).unsqueeze(-1)
        return usage * last_sum(counts).unsqueeze(-1) * (common - along)

    def _usage(self, eta: Tensor) -> Tensor:
        top = last_max(eta).clamp_min(0.0).unsqueeze(-1)
        odds = torch.exp(eta - top)
        return odds / (last_sum(odds).unsqueeze(-1) + torch.exp(-top))


def shaped(what: str, found: object, shape: tuple[int, ...]) -> Tensor:
    """What a method of a likelihood returned; refused unless it is a Tensor of that shape."""
    if not isinstance(found, Tensor) or found.shape != shape:
        other = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        what = f"{what} to be a Tensor of shape {tuple(shape)}"
        raise InvalidArgumentError(f"likelihood: expected {what}, found {other}.")
    return found
