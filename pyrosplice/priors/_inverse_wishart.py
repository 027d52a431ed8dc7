"""The inverse-Wishart distribution, which neither PyTorch nor Pyro ships."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class InverseWishart(TorchDistribution):
    r"""Distribution of a covariance matrix, the usual prior of one.

    .. math:: p(\Sigma) = \frac{|\Psi|^{\nu/2}}{2^{\nu D/2}\,\Gamma_D(\nu/2)}
              |\Sigma|^{-(\nu+D+1)/2} \exp\{-\tfrac12 \operatorname{tr}(\Psi\Sigma^{-1})\}.

    Its mean is :math:`\Psi/(\nu-D-1)` for :math:`\nu > D+1`, and NaN for less, where there is none; its mode
    :math:`\Psi/(\nu+D+1)`.

    Parameters
    ----------
    dof
        Degrees of freedom ν, ``batch_shape``. The distribution is proper for ν > D − 1; for less it is a penalty, whose
        density is given without a constant and which has no draws.
    scale
        Scale matrix Ψ, ``batch_shape + (D, D)``, in squared units of the data.

    References
    ----------
    Gelman et al., Bayesian Data Analysis, 3rd edition, appendix A.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.priors import InverseWishart
    >>> prior = InverseWishart(6.0, torch.eye(2, dtype=torch.float64))
    >>> prior.event_shape, prior.log_prob(torch.eye(2, dtype=torch.float64)).shape
    (torch.Size([2, 2]), torch.Size([]))
    """

    arg_constraints = {"dof": constraints.real, "scale": constraints.positive_definite}  # noqa: RUF012
    support = constraints.positive_definite
    has_rsample = True

    def __init__(self, dof: Tensor | float, scale: Tensor, *, validate_args: bool | None = None) -> None:
        dof = torch.as_tensor(dof, dtype=scale.dtype, device=scale.device)
        shape = torch.broadcast_shapes(dof.shape, scale.shape[:-2])
        self.dof = dof.expand(shape)
        self.scale = scale.expand(shape + scale.shape[-2:])
        super().__init__(shape, scale.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: object = None) -> InverseWishart:
        """Copy the distribution to more batch dimensions."""
        return InverseWishart(
            self.dof.expand(batch_shape), self.scale.expand(torch.Size(batch_shape) + self.event_shape)
        )

    @property
    def mean(self) -> Tensor:
        """Mean, ``batch_shape + (D, D)``; NaN where ν is at most D + 1, as its tails are then too heavy for one."""
        excess = (self.dof - self.event_shape[-1] - 1)[..., None, None]
        return torch.where(excess > 0, self.scale / excess, torch.nan)

    @property
    def mode(self) -> Tensor:
        """Mode, ``batch_shape + (D, D)``; NaN where ν is at most -(D + 1), as the density then has none."""
        total = (self.dof + self.event_shape[-1] + 1)[..., None, None]
        return torch.where(total > 0, self.scale / total, torch.nan)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each covariance matrix, constants included."""
        dim = int(self.event_shape[-1])
        proper = self.dof > dim - 1
        half = torch.where(proper, self.dof, float(dim)) / 2
        factor = torch.linalg.cholesky(value)
        trace = torch.cholesky_solve(self.scale.expand(value.shape), factor).diagonal(dim1=-2, dim2=-1).sum(-1)
        constant = half * torch.linalg.slogdet(self.scale).logabsdet - half * dim * math.log(2)
        constant = constant - torch.special.multigammaln(half, dim)
        return (
            torch.where(proper, constant, torch.zeros_like(constant))
            - (self.dof + dim + 1) * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            - trace / 2
        )

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draw covariance matrices, ``sample_shape + batch_shape + (D, D)``."""
        return self.draw(sample_shape)

    def draw(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draws from a given generator, by Bartlett: Σ = C A⁻ᵀ A⁻¹ Cᵀ with Ψ = C Cᵀ, A Aᵀ standard Wishart.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.priors import InverseWishart
        >>> prior = InverseWishart(6.0, torch.eye(2, dtype=torch.float64))
        >>> prior.draw((5,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2, 2])
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        return inverse_wishart_of(
            self.scale, wishart_factor(self.dof.to(self.scale).expand(shape[:-2]), shape[-1], generator)
        )


def wishart_factor(dof: Tensor, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw A, lower triangular ``(..., D, D)``, such that A Aᵀ is standard Wishart with ``dof`` degrees of freedom."""
    normal = torch.randn((*dof.shape, dim, dim), dtype=dof.dtype, device=dof.device, generator=generator).tril(-1)
    steps = torch.arange(dim, dtype=dof.dtype, device=dof.device)
    chi2 = 2 * torch._standard_gamma(((dof[..., None] - steps) / 2).contiguous(), generator=generator)
    return normal + torch.diag_embed(chi2.sqrt())


def inverse_wishart_of(scale: Tensor, factor: Tensor) -> Tensor:
    """Σ = C A⁻ᵀ A⁻¹ Cᵀ with Ψ = C Cᵀ: an inverse Wishart draw of the scale Ψ from one of :func:`wishart_factor`."""
    root = torch.linalg.solve_triangular(factor, torch.linalg.cholesky(scale).mT.expand(factor.shape), upper=False)
    return root.mT @ root
