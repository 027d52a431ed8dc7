"""The M-step: parameters that maximise the expected log joint given the moments, for every covariance type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrosplice._mixture.em.mean_pull import FixedPull, MeanPull, ScaledPull
from pyrosplice._mixture.em.sufficient_statistics import Moments
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import CovarianceType, SitePriors, without_events
from pyrosplice.priors._scaled_normal import ScaledNormal


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
    """Conjugate priors and covariance floor in standardised units, ready to broadcast over ``(B, J, M, ...)``.

    Attributes
    ----------
    concentration_excess
        α − 1 of the Dirichlet, ``(M,)``; None where it is flat.
    pull
        Prior's pull on the means.
    scale, dof
        Scale of the covariances in their shape, and its degrees of freedom; of diagonal ones twice the rate and shape.
    floor
        Added to the variances.
    """

    concentration_excess: Tensor | None
    pull: MeanPull | None
    scale: Tensor | None
    dof: Tensor | float
    floor: Tensor

    @classmethod
    def of(cls, priors: Sequence[SitePriors], regularization: float, to_standard: Standardization) -> Penalty:
        """Conjugate priors, seen through a standardization: one for all data sets, or one each of equal strength.

        ``regularization`` is in squared units of the data.
        """
        shift, inverse, first = to_standard.shift, to_standard.inverse, priors[0]
        kind, dim = first.covariance_type, shift.shape[-1]
        extra = 1 if kind == "tied" else 2
        excess, scale, dof = None, None, 0.0
        if first.weights is not None:
            excess = without_events(first.weights).concentration.to(shift) - 1
        if first.covariances is not None:
            spreads = [without_events(one.covariances) for one in priors]
            matrix = kind in ("full", "tied")
            dof = (spreads[0].dof if matrix else 2 * spreads[0].concentration).to(shift)
            raw = _each_set([(one.scale if matrix else 2 * one.rate).to(shift) for one in spreads])
            scale = congruence(raw, inverse, kind, extra)
        unit = {"diag": shift.new_ones(dim), "spherical": shift.new_ones(())}
        eye = unit.get(kind, torch.eye(dim, dtype=shift.dtype, device=shift.device))
        floor = regularization * congruence(eye, inverse, kind, extra)
        pull = None if first.means is None else _pull_of([one.means for one in priors], to_standard)
        return cls(excess, pull, scale, dof, floor)

    def select(self, index: Tensor) -> Penalty:
        """The penalty of some of the data sets."""
        pull = None if self.pull is None else self.pull.select(index)
        scale = None if self.scale is None else self.scale[index]
        return replace(self, pull=pull, scale=scale, floor=self.floor[index])

    def pseudo_count(self, covariance_type: CovarianceType, dim: int) -> Tensor | float:
        """Cells that the mode of a covariance is divided by beside its own; 0 where its prior is flat."""
        if self.scale is None:
            return 0.0
        return self.dof + (dim + 1 if covariance_type in ("full", "tied") else 2)

    def log_density(self, parameters: MixtureParameters) -> Tensor:
        """Log prior ``(B, J)`` up to a constant; 0 for a flat one."""
        total = parameters.weights.new_zeros(())
        active = parameters.weights > 0
        if self.concentration_excess is not None:
            log_weights = torch.where(active, parameters.weights, torch.ones_like(parameters.weights)).log()
            total = total + (self.concentration_excess * log_weights).sum(-1)
        if self.pull is not None:
            total = total + torch.where(active, self.pull.log_density(parameters), 0.0).sum(-1)
        if self.scale is not None:
            total = total + self._log_density_of_covariances(parameters, active, self.scale)
        return total

    def _log_density_of_covariances(self, parameters: MixtureParameters, active: Tensor, scale: Tensor) -> Tensor:
        kind, covariances = parameters.covariance_type, parameters.covariances
        pseudo_count = self.pseudo_count(kind, parameters.means.shape[-1])
        if kind in ("full", "tied"):
            factor, _ = torch.linalg.cholesky_ex(covariances)
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            trace = (torch.cholesky_inverse(factor) * scale).sum((-2, -1))
            each = -0.5 * (trace + pseudo_count * log_det)
        else:
            each = -0.5 * (scale / covariances + pseudo_count * covariances.log())
            each = each.sum(-1) if kind == "diag" else each
        return each if kind == "tied" else torch.where(active, each, 0.0).sum(-1)


def _pull_of(priors: Sequence[Any], to_standard: Standardization) -> MeanPull:
    each, shift = [without_events(prior) for prior in priors], to_standard.shift
    loc = _each_set([one.loc.to(shift) for one in each])
    mean = (loc - shift[:, None, None]) @ to_standard.inverse.mT[:, None]
    if isinstance(each[0], ScaledNormal):
        return ScaledPull(mean, each[0].cells.to(shift))
    spread = isinstance(each[0], torch.distributions.MultivariateNormal)
    raw = [one.precision_matrix if spread else torch.diag_embed(one.scale.square().reciprocal()) for one in each]
    precision = _each_set([one.to(shift) for one in raw])
    return FixedPull(mean, congruence(precision, to_standard.factor.mT, "full", 2))


def _each_set(values: Sequence[Tensor]) -> Tensor:
    """Numbers of one prior, or of one for each data set with the problems' dimension after the first."""
    return values[0] if len(values) == 1 else torch.stack(list(values))[:, None]


def maximize(moments: Moments, previous: MixtureParameters, penalty: Penalty) -> MixtureParameters:
    """The M-step, in closed form.

    A component without cells keeps its mean and covariance (unless the prior has them) and gets weight 0.
    """
    present = _present(moments.counts)
    counts, means, scatter = component_scatter(moments, previous, present)
    if penalty.pull is not None:
        center, means = means, penalty.pull.means(counts, means, previous)
        scatter = pulled_scatter(scatter, penalty.pull, counts, center, means, previous.covariance_type)
    raised = counts
    if penalty.concentration_excess is not None:
        raised = (counts + penalty.concentration_excess).clamp_min(0)
        raised = torch.where(previous.weights > 0, raised, 0.0)
    weights = raised / raised.sum(-1, keepdim=True)
    covariances = _covariances(scatter, counts, penalty, previous) + penalty.floor
    if penalty.scale is None and previous.covariance_type != "tied":
        present = present.reshape(*present.shape, *(1,) * (covariances.dim() - present.dim()))
        covariances = torch.where(present, covariances, previous.covariances)
    return replace(previous, weights=weights, means=means, covariances=covariances)


def component_scatter(
    moments: Moments, previous: MixtureParameters, present: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts ``(..., M)``, centres ``(..., M, D)`` of the cells, sums of squares about them shaped as covariances.

    Components that are not ``present``, those without cells by default, count as lying at their previous means.
    """
    counts = moments.counts
    present = _present(counts) if present is None else present
    origin = 0.0 if moments.origin is None else moments.origin
    gap = torch.where(present[..., None], moments.sums / counts[..., None], previous.means - origin)
    return counts, gap + origin, _scatter(moments, gap, previous.covariance_type)


def pulled_scatter(
    scatter: Tensor, pull: MeanPull, counts: Tensor, center: Tensor, means: Tensor, kind: CovarianceType
) -> Tensor:
    """Sums of squares about the ``center`` of the cells, with what a prior of the means adds at ``means``."""
    return scatter + _pull(*pull.squares(counts, center, means), kind)


def _present(counts: Tensor) -> Tensor:
    """Components that have cells."""
    return counts > 1e-10 * counts.sum(-1, keepdim=True)


def _scatter(moments: Moments, center: Tensor, kind: CovarianceType) -> Tensor:
    """Sums of squares about the component means ``center``, measured from where the moments are."""
    counts = moments.counts[..., None]
    if kind == "tied":
        return moments.squares - center.mT @ (counts * center)
    if kind == "full":
        return moments.squares - (counts * center)[..., None] * center[..., None, :]
    if kind == "diag":
        return (moments.squares - counts * center.square()).clamp_min(0)
    return (moments.squares - moments.counts * center.square().sum(-1)).clamp_min(0)


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
    extra = penalty.pseudo_count(kind, dim)
    if penalty.pull is not None and penalty.pull.per_covariance:
        each: dict[str, float | Tensor] = {"tied": (previous.weights > 0).sum(-1), "spherical": dim}
        extra = extra + each.get(kind, 1)
    if kind == "tied":
        cells = (counts.sum(-1) + extra)[..., None, None]
    elif kind == "full":
        cells = (counts + extra)[..., None, None]
    else:
        cells = (counts * dim if kind == "spherical" else counts[..., None]) + extra
    return (scatter if penalty.scale is None else scatter + penalty.scale) / cells
