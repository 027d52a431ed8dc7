"""The two distributions Pyro lacks: counts of spots with their own totals, and a spatial Gaussian field per logit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrosplice._linalg.select import solver_for, sparse_precision
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.effects._isoform_effect import IsoformEffect, SoftmaxBasis
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Likelihood


class SpotCounts(TorchDistribution):
    r"""Isoform counts of spots, :math:`y_{gi} \sim p(\,\cdot \mid n_{gi}, \eta_{gi})`, for any :class:`Likelihood`.

    Pyro's own multinomial refuses a vector of totals. Here each spot has its own, and a spot without molecules has
    log density zero.

    Parameters
    ----------
    likelihood
        Density of one spot's counts.
    totals
        Molecules of each spot, ``(..., G, N)``.
    eta
        Linear predictor, ``(..., G, N, Q)``.
    n_isos
        Number of isoforms K. Batch shape ``(..., G, N)``, event shape ``(K,)``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.glmm import SpotCounts
    >>> from pyrosplice.likelihoods import Multinomial
    >>> totals = torch.tensor([[10.0, 0.0, 5.0]])  # one gene at three spots
    >>> counts = SpotCounts(Multinomial(), totals, torch.zeros(1, 3, 2), n_isos=3)
    >>> counts.sample().sum(-1), counts.mean.shape
    (tensor([[10.,  0.,  5.]]), torch.Size([1, 3, 3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, likelihood: Likelihood, totals: Tensor, eta: Tensor, n_isos: int, validate_args: bool | None = None
    ) -> None:
        batch_shape = torch.broadcast_shapes(totals.shape, eta.shape[:-1])
        self.likelihood = likelihood
        self.totals = totals.expand(batch_shape)
        self.eta = eta.expand(*batch_shape, eta.shape[-1])
        super().__init__(batch_shape, torch.Size((n_isos,)), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SpotCounts:
        """Copy the distribution to a larger batch shape."""
        shape = torch.Size(batch_shape)
        eta = self.eta.expand(*shape, self.eta.shape[-1])
        return SpotCounts(self.likelihood, self.totals.expand(shape), eta, self.event_shape[0], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each spot's counts, ``(..., G, N)``."""
        if self._validate_args:
            self._validate_sample(value)
            totals = self.totals.to(value)
            if self.likelihood.conditional and not torch.equal(value.sum(-1).expand(self.batch_shape), totals):
                raise InvalidArgumentError("counts: expected to add up to the totals of their spots; they do not.")
        return self.likelihood.log_prob(value, self.eta)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts ``(*sample_shape, ..., G, N, K)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        eta = self.eta.expand(*shape, self.eta.shape[-1])
        with torch.no_grad():
            return self.likelihood.draw(self.totals.expand(shape), eta)

    @property
    def mean(self) -> Tensor:
        """Expected counts ``(..., G, N, K)``."""
        mean = self.likelihood.expected(self.eta)
        return self.totals.unsqueeze(-1) * mean if self.likelihood.conditional else mean


class CarriedCovariance(Protocol):
    """A spatial covariance V as a distribution carries it."""

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        ...

    @property
    def eigen(self) -> EigenCovariance:
        """Decompose V, as its density and its draws need it."""
        ...

    @property
    def solver(self) -> SpatialSolver:
        """Solver for V in the form that fits need, sparse where it can be."""
        ...

    @property
    def is_identity(self) -> bool:
        """Whether nothing is spatial."""
        ...

    @property
    def is_lazy(self) -> bool:
        """Whether a density would decompose V first."""
        ...


@dataclass(frozen=True)
class EigenCovariance:
    r"""A spatial covariance :math:`V = U \operatorname{diag}(\lambda) U'`: the dense truth that engines are held to.

    Parameters
    ----------
    eigenvalues, eigenvectors
        λ ``(N,)``, non-negative, and the orthogonal U ``(N, N)``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.glmm import EigenCovariance
    >>> V = EigenCovariance.from_dense(0.5 * torch.eye(3).double() + 0.5)
    >>> V.eigenvalues.round(decimals=3).sort().values, V.n_spots
    (tensor([0.5000, 0.5000, 2.0000], dtype=torch.float64), 3)
    """

    eigenvalues: Tensor
    eigenvectors: Tensor

    @classmethod
    def from_dense(cls, covariance: Tensor) -> EigenCovariance:
        """Decompose a symmetric positive semi-definite ``(N, N)`` matrix; rounding below zero is cut off.

        Raises
        ------
        InvalidArgumentError
            If the matrix is not square and symmetric or has an eigenvalue below −1e-8 times the largest.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import EigenCovariance
        >>> EigenCovariance.from_dense(torch.eye(3).double()).is_identity
        True
        """
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise InvalidArgumentError(f"covariance: expected a square matrix, found shape {tuple(covariance.shape)}.")
        if not torch.allclose(covariance, covariance.T, rtol=1e-8, atol=1e-8 * float(covariance.abs().max())):
            raise InvalidArgumentError("covariance: expected a symmetric matrix; it is not. Use (V + V') / 2.")
        values, vectors = torch.linalg.eigh(covariance)
        if float(values[0]) < -1e-8 * float(values[-1]):
            raise InvalidArgumentError(
                f"covariance: expected no negative eigenvalue, found {float(values[0]):.3g} "
                f"(the largest is {float(values[-1]):.3g})."
            )
        return cls(values.clamp_min(0.0), vectors)

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        return len(self.eigenvectors)

    @property
    def eigen(self) -> EigenCovariance:
        """The decomposed covariance, which it is itself."""
        return self

    @cached_property
    def solver(self) -> SpatialSolver:
        """Solver for V in the form that fits need, sparse where its inverse is."""
        dense = (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T
        return solver_for(((dense + dense.T) / 2).detach())

    @property
    def is_identity(self) -> bool:
        """Whether nothing is spatial."""
        return bool((self.eigenvalues == 1).all())

    @property
    def is_lazy(self) -> bool:
        """Whether a density would decompose V first: no, that is done."""
        return False


class LazyCovariance:
    """A spatial covariance that is decomposed, for a density or a draw, only when one is asked for.

    Parameters
    ----------
    source
        An object with ``precision`` or ``dense()`` (:class:`~pyrosplice.spatial.car.CarCovariance`), or a
        :class:`~pyrosplice._linalg.solver.SpatialSolver`.
    """

    def __init__(self, source: object) -> None:
        self._eigen: EigenCovariance | None = None
        self.solver: SpatialSolver = source if isinstance(source, SpatialSolver) else solver_for(source)
        matrix = None if isinstance(source, SpatialSolver) else sparse_precision(source)
        self.is_identity = matrix is not None and matrix.nnz == matrix.shape[0] and bool((matrix.diagonal() == 1).all())

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        return self.solver.n_spots

    @property
    def is_lazy(self) -> bool:
        """Whether V is still to be decomposed."""
        return self._eigen is None

    @property
    def eigen(self) -> EigenCovariance:
        """Decompose V, which takes N³ operations, once."""
        if self._eigen is None:
            self._eigen = EigenCovariance.from_dense(self.solver.dense_covariance())
        return self._eigen


_CARRIED: WeakKeyDictionary[Any, LazyCovariance] = WeakKeyDictionary()  # a model makes its distributions at every run


def carried(covariance: object) -> CarriedCovariance:
    """A covariance as distributions carry it; the same one for the same object, so that work on it is done once.

    Not so for a solver, which is what is carried: keep its :class:`LazyCovariance`.

    Raises
    ------
    InvalidArgumentError
        If it is none.
    """
    if isinstance(covariance, EigenCovariance | LazyCovariance):
        return covariance
    if isinstance(covariance, Tensor) or not (
        isinstance(covariance, SpatialSolver) or hasattr(covariance, "dense") or hasattr(covariance, "precision")
    ):
        raise InvalidArgumentError(
            "covariance: expected an EigenCovariance (EigenCovariance.from_dense(V)), or an object with ``precision`` "
            f"or ``dense()`` such as CarCovariance, found {type(covariance).__name__}."
        )
    if isinstance(covariance, SpatialSolver):
        return LazyCovariance(covariance)
    try:
        known = _CARRIED.get(covariance)
        if known is None:
            known = _CARRIED[covariance] = LazyCovariance(covariance)
    except TypeError:  # cannot be a key
        return LazyCovariance(covariance)
    return known


class SpatialEffect(TorchDistribution):
    r"""Gaussian random effect of one gene on its logits.

    .. math:: \nu_k \sim \mathcal N\bigl(0,\; \sigma_k^2 (\theta_k V + (1 - \theta_k) I)\bigr), \quad k = 1, \dots, Q

    independently over logits, or, with one σ and θ for all of them, with covariance :math:`I + 11'` between the logits
    of a spot: :math:`\nu_k = \psi_k - \psi_K` of isoforms whose ψ have that law and are independent
    (:mod:`pyrosplice.effects._isoform_effect`). In V's eigenbasis each coordinate of ν (or of ``L⁻¹ ν``) is
    independent, with variance :math:`d_{jk} = \sigma_k^2 (\theta_k \lambda_j + 1 - \theta_k)`.

    Parameters
    ----------
    covariance
        V: decomposed, or whatever describes it (:class:`~pyrosplice.spatial.car.CarCovariance`), which is decomposed
        when a density or a draw is asked for and never by a fit of the sparse engine.
    sigma, theta_logit
        Total standard deviation and logit of the spatial share, ``(..., G, 1)`` (shared by the logits) or
        ``(..., G, Q)``.
    n_logits
        Q. Batch shape ``(..., G)``, event shape ``(N, Q)``.
    isoform_effect
        ``"independent"`` or ``"symmetric"``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.glmm import SpatialEffect
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))))
    >>> sigma = torch.full((3, 1), 0.7, dtype=torch.float64)  # of three genes
    >>> effect = SpatialEffect(covariance, sigma, torch.zeros_like(sigma), n_logits=2)
    >>> effect.batch_shape, effect.event_shape, effect.sample().shape
    (torch.Size([3]), torch.Size([25, 2]), torch.Size([3, 25, 2]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        covariance: object,
        sigma: Tensor,
        theta_logit: Tensor,
        n_logits: int,
        validate_args: bool | None = None,
        *,
        isoform_effect: IsoformEffect = "independent",
    ) -> None:
        self.isoform_effect = isoform_effect
        shape = torch.broadcast_shapes(sigma.shape, theta_logit.shape, (n_logits,))
        self.space = carried(covariance)
        self.sigma = sigma.expand(shape)
        self.theta_logit = theta_logit.expand(shape)
        event = torch.Size((self.space.n_spots, n_logits))
        super().__init__(shape[:-1], event, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SpatialEffect:
        """Copy the distribution to a larger batch shape."""
        shape = (*batch_shape, self.event_shape[1])
        return SpatialEffect(
            self.space,
            self.sigma.expand(shape),
            self.theta_logit.expand(shape),
            shape[-1],
            validate_args=False,
            isoform_effect=self.isoform_effect,
        )

    @property
    def covariance(self) -> EigenCovariance:
        """Spatial covariance V, decomposed."""
        return self.space.eigen

    @property
    def eigen_variances(self) -> Tensor:
        """Variance of ν along each eigenvector of V, ``(..., G, N, Q)``; 1 − θ is computed without cancellation."""
        spatial, rest = torch.sigmoid(self.theta_logit), torch.sigmoid(-self.theta_logit)
        spread = spatial.unsqueeze(-2) * self.covariance.eigenvalues.unsqueeze(-1) + rest.unsqueeze(-2)
        return self.sigma.square().unsqueeze(-2) * spread

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``(..., G)``, constants included."""
        if self._validate_args:
            self._validate_sample(value)
        variances = self.eigen_variances
        terms = self._rotated(value).square() / variances + variances.log() + math.log(2 * math.pi)
        density = -0.5 * terms.sum((-2, -1))
        return density if self._basis is None else density - self.event_shape[0] * self._basis.log_volume

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Random effects ``(*sample_shape, ..., G, N, Q)``, differentiable in σ and θ."""
        like = self.eigen_variances
        return self.colored(
            torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=like.dtype, device=like.device)
        )

    def colored(self, white: Tensor) -> Tensor:
        """Random effects ν from standard normal numbers ``(..., G, N, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import SpatialEffect
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))))
        >>> sigma = torch.full((3, 1), 0.7, dtype=torch.float64)  # of three genes
        >>> effect = SpatialEffect(covariance, sigma, torch.zeros_like(sigma), n_logits=2)
        >>> effect.colored(torch.randn(3, 25, 2, generator=torch.Generator().manual_seed(0)).double()).shape
        torch.Size([3, 25, 2])
        """
        effect = torch.matmul(*_of_one_type(self.covariance.eigenvectors, white * self.eigen_variances.sqrt()))
        return effect if self._basis is None else self._basis.logits(effect)

    def whitened(self, value: Tensor) -> Tensor:
        """The standard normal numbers that :meth:`colored` makes ν ``(..., G, N, Q)`` from.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.glmm import SpatialEffect
        >>> from pyrosplice.spatial import CarCovariance, knn_graph
        >>> covariance = CarCovariance(knn_graph(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))))
        >>> sigma = torch.full((3, 1), 0.7, dtype=torch.float64)  # of three genes
        >>> effect = SpatialEffect(covariance, sigma, torch.zeros_like(sigma), n_logits=2)
        >>> nu = effect.sample()
        >>> bool(torch.allclose(effect.colored(effect.whitened(nu)), nu))
        True
        """
        return self._rotated(value) / self.eigen_variances.sqrt().clamp_min(1e-12)

    def _rotated(self, value: Tensor) -> Tensor:
        """ν in the coordinates in which all of it is independent."""
        own = value if self._basis is None else self._basis.coordinates(value)
        return torch.matmul(*_of_one_type(self.covariance.eigenvectors.mT, own))

    @property
    def _basis(self) -> SoftmaxBasis | None:
        return SoftmaxBasis.plain(self.event_shape[1], self.sigma) if self.isoform_effect == "symmetric" else None


def _of_one_type(matrix: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors in the wider of their types: a site of a model in float32 stands beside a covariance in float64."""
    wider = torch.promote_types(matrix.dtype, values.dtype)
    return matrix.to(wider), values.to(wider)
