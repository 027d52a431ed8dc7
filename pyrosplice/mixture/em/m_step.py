"""The M-step: parameters that maximise the expected log joint given the moments, for every covariance type."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice.mixture.em.sufficient_statistics import Moments
from pyrosplice.mixture.gaussian_mixture import CovarianceType, MixtureParameters, MixturePrior


@dataclass(frozen=True)
class Standardization:
    r"""The affine map :math:`y = A^{-1}(x - c)` that EM works behind, one per data set of a batch.

    With :math:`A A^\top` the pooled covariance the second moments of y are of order one, so that nothing cancels
    in the statistics wherever the data lie and however correlated they are.

    Attributes
    ----------
    shift
        c, ``(B, D)``.
    factor, inverse
        A and its inverse, lower triangular, ``(B, D, D)``. Diagonal for diag, a multiple of I for spherical.
    """

    shift: Tensor
    factor: Tensor
    inverse: Tensor

    @classmethod
    def from_covariance(
        cls, shift: Tensor, covariance: Tensor, covariance_type: CovarianceType, floor: float
    ) -> Standardization:
        """The map for means ``shift`` and ``covariance`` ``(B, D, D)``; ``floor`` is added to the variances."""
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        variances = variances + floor + 1e-12 * variances.mean(-1, keepdim=True)
        variances = torch.where(variances > 0, variances, torch.ones_like(variances))
        if covariance_type == "spherical":
            variances = variances.mean(-1, keepdim=True).expand(variances.shape)
        factor = torch.diag_embed(variances.sqrt())
        if covariance_type in ("full", "tied"):
            off = covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
            cholesky, info = torch.linalg.cholesky_ex(off + torch.diag_embed(variances))
            factor = torch.where((info == 0)[:, None, None], cholesky, factor)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return cls(shift, factor, torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False))

    def select(self, index: Tensor) -> Standardization:
        """The maps of some of the data sets."""
        return Standardization(self.shift[index], self.factor[index], self.inverse[index])

    def log_det(self) -> Tensor:
        """What a log density in y lacks, log |A⁻¹|: ``(B,)``."""
        return self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward(self, parameters: MixtureParameters) -> MixtureParameters:
        """Parameters ``(B, J, M, ...)`` of x as parameters of y."""
        means = (parameters.means - self.shift[:, None, None]) @ self.inverse.mT[:, None]
        return self._moved(parameters, means, self.inverse)

    def backward(self, parameters: MixtureParameters) -> MixtureParameters:
        """Parameters ``(B, J, M, ...)`` of y as parameters of x."""
        means = parameters.means @ self.factor.mT[:, None] + self.shift[:, None, None]
        return self._moved(parameters, means, self.factor)

    def _moved(self, parameters: MixtureParameters, means: Tensor, by: Tensor) -> MixtureParameters:
        extra = 0 if parameters.covariance_type == "tied" else 1
        covariances = congruence(parameters.covariances, by, parameters.covariance_type, extra + 1)
        return replace(parameters, means=means, covariances=covariances)


def congruence(covariances: Tensor, by: Tensor, covariance_type: CovarianceType, extra: int) -> Tensor:
    """B C Bᵀ in the shape of the type; ``by`` ``(B, D, D)`` gets ``extra`` dimensions after its first."""
    by = by.reshape(by.shape[0], *(1,) * extra, *by.shape[1:])
    if covariance_type in ("full", "tied"):
        moved = by @ covariances @ by.mT
        return (moved + moved.mT) / 2
    scale = by.diagonal(dim1=-2, dim2=-1).square()
    return covariances * (scale if covariance_type == "diag" else scale[..., 0])


@dataclass(frozen=True)
class Penalty:
    """Prior and covariance floor in standardised units, ready to broadcast over ``(B, J, M, ...)``."""

    concentration_excess: float
    mean: Tensor | None
    mean_strength: float
    scale: Tensor | None
    pseudo_count: float
    floor: Tensor

    @classmethod
    def of(
        cls, prior: MixturePrior, regularization: float, to_standard: Standardization, covariance_type: CovarianceType
    ) -> Penalty:
        """The prior and ``regularization`` (squared units of the data) seen through a standardization."""
        shift, inverse = to_standard.shift, to_standard.inverse
        dim, extra = shift.shape[-1], 1 if covariance_type == "tied" else 2
        prior.check_features(dim)
        scale, mean, pseudo_count = None, None, 0.0
        if prior.covariance_scale is not None and prior.covariance_dof is not None:
            prior.covariance_distribution(shift, covariance_type)
            matrix = prior.covariance_scale.to(shift)
            shaped = {"diag": matrix.diagonal(), "spherical": matrix.trace() / dim}.get(covariance_type, matrix)
            scale = congruence(shaped, inverse, covariance_type, extra)
            pseudo_count = prior.covariance_dof + (dim + 1 if covariance_type in ("full", "tied") else 2)
        if prior.mean is not None:
            mean = ((prior.mean.to(shift) - shift)[:, None] @ inverse.mT)[:, None]
        unit = {"diag": shift.new_ones(dim), "spherical": shift.new_ones(())}
        eye = unit.get(covariance_type, torch.eye(dim, dtype=shift.dtype, device=shift.device))
        floor = regularization * congruence(eye, inverse, covariance_type, extra)
        return cls(prior.concentration - 1, mean, prior.mean_strength, scale, pseudo_count, floor)

    def select(self, index: Tensor) -> Penalty:
        """The penalty of some of the data sets."""
        mean = None if self.mean is None else self.mean[index]
        scale = None if self.scale is None else self.scale[index]
        return replace(self, mean=mean, scale=scale, floor=self.floor[index])

    def log_density(self, parameters: MixtureParameters) -> Tensor:
        """Log prior ``(B, J)`` up to a constant; 0 for a flat one."""
        total = parameters.weights.new_zeros(())
        active = parameters.weights > 0
        if self.concentration_excess:
            log_weights = torch.where(active, parameters.weights, torch.ones_like(parameters.weights)).log()
            total = total + self.concentration_excess * log_weights.sum(-1)
        if self.mean is not None:
            total = total + self._log_density_of_means(parameters, active, self.mean)
        if self.scale is not None:
            total = total + self._log_density_of_covariances(parameters, active, self.scale)
        return total

    def _log_density_of_means(self, parameters: MixtureParameters, active: Tensor, mean: Tensor) -> Tensor:
        factor, _ = torch.linalg.cholesky_ex(parameters.covariance_matrices())
        gap = torch.linalg.solve_triangular(factor, (parameters.means - mean)[..., None], upper=False)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = -0.5 * (log_det + self.mean_strength * gap.square().sum((-2, -1)))
        return torch.where(active, each, 0.0).sum(-1)

    def _log_density_of_covariances(self, parameters: MixtureParameters, active: Tensor, scale: Tensor) -> Tensor:
        kind, covariances = parameters.covariance_type, parameters.covariances
        if kind in ("full", "tied"):
            factor, _ = torch.linalg.cholesky_ex(covariances)
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            trace = (torch.cholesky_inverse(factor) * scale).sum((-2, -1))
            each = -0.5 * (trace + self.pseudo_count * log_det)
        else:
            each = -0.5 * (scale / covariances + self.pseudo_count * covariances.log())
            each = each.sum(-1) if kind == "diag" else each
        return each if kind == "tied" else torch.where(active, each, 0.0).sum(-1)


def maximize(moments: Moments, previous: MixtureParameters, penalty: Penalty) -> MixtureParameters:
    """The M-step, in closed form.

    A component without cells keeps its mean and covariance (unless the prior has them) and gets weight 0.
    """
    present = _present(moments.counts)
    counts, means, scatter = conditional_scatter(moments, previous, penalty, present)
    raised = counts
    if penalty.concentration_excess:
        raised = (counts + penalty.concentration_excess).clamp_min(0)
        raised = torch.where(previous.weights > 0, raised, 0.0)
    weights = raised / raised.sum(-1, keepdim=True)
    covariances = _covariances(scatter, counts, penalty, previous) + penalty.floor
    if penalty.scale is None and previous.covariance_type != "tied":
        present = present.reshape(*present.shape, *(1,) * (covariances.dim() - present.dim()))
        covariances = torch.where(present, covariances, previous.covariances)
    return replace(previous, weights=weights, means=means, covariances=covariances)


def conditional_scatter(
    moments: Moments, previous: MixtureParameters, penalty: Penalty, present: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts ``(..., M)``, conditional means ``(..., M, D)``, and sums of squares shaped as the covariances.

    The means are those that maximise the density given labels (and centre the posterior), the sums of squares are
    about the components' own means, with the pull of the prior mean on them added. Components that are not
    ``present``, those without cells by default, count as lying at their previous means.
    """
    counts = moments.counts
    present = _present(counts) if present is None else present
    origin = 0.0 if moments.origin is None else moments.origin
    gap = torch.where(present[..., None], moments.sums / counts[..., None], previous.means - origin)
    centre = gap + origin
    scatter = _scatter(moments, gap, previous.covariance_type)
    if penalty.mean is None:
        return counts, centre, scatter
    kappa, cells = penalty.mean_strength, counts[..., None]
    means = (cells * centre + kappa * penalty.mean) / (cells + kappa)
    spread = kappa * cells / (cells + kappa)
    return counts, means, scatter + _pull(spread, centre - penalty.mean, previous.covariance_type)


def _present(counts: Tensor) -> Tensor:
    """Components that have cells."""
    return counts > 1e-10 * counts.sum(-1, keepdim=True)


def _scatter(moments: Moments, centre: Tensor, kind: CovarianceType) -> Tensor:
    """Sums of squares about the component means ``centre``, measured from where the moments are."""
    counts = moments.counts[..., None]
    if kind == "tied":
        return moments.squares - centre.mT @ (counts * centre)
    if kind == "full":
        return moments.squares - (counts * centre)[..., None] * centre[..., None, :]
    if kind == "diag":
        return (moments.squares - counts * centre.square()).clamp_min(0)
    return (moments.squares - moments.counts * centre.square().sum(-1)).clamp_min(0)


def _pull(spread: Tensor, gap: Tensor, kind: CovarianceType) -> Tensor:
    """What the distances ``gap`` ``(..., M, D)`` to the prior mean add to the sums of squares."""
    if kind == "tied":
        return gap.mT @ (spread * gap)
    if kind == "full":
        return (spread * gap)[..., None] * gap[..., None, :]
    own = spread * gap.square()
    return own if kind == "diag" else own.sum(-1)


def _covariances(scatter: Tensor, counts: Tensor, penalty: Penalty, previous: MixtureParameters) -> Tensor:
    """Scatter over the number of cells, the prior's pseudo-observations counted on both sides."""
    kind, dim = previous.covariance_type, previous.means.shape[-1]
    extra: float | Tensor = penalty.pseudo_count
    if penalty.mean is not None:
        each: dict[str, float | Tensor] = {"tied": (previous.weights > 0).sum(-1), "spherical": dim}
        extra = extra + each.get(kind, 1)
    if kind == "tied":
        cells = (counts.sum(-1) + extra)[..., None, None]
    else:
        cells = (counts * dim if kind == "spherical" else counts) + extra
        cells = cells.reshape(*cells.shape, *(1,) * (scatter.dim() - cells.dim()))
    return (scatter if penalty.scale is None else scatter + penalty.scale) / cells
