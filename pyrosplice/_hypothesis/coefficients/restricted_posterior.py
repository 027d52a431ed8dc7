r"""What the data say of the variances of a working model: their restricted posterior, on a grid that finds its place.

For the spectra :math:`V_g` of :mod:`pyrosplice._hypothesis.coefficients.working_model`, each as likely beforehand, and
a prior of a (field) and c (independent), by default half-normal with standard deviation 1.5 on the scale of logits
each, the posterior is proportional to the prior and the restricted likelihood, X b integrated out,

.. math:: \log p(y \mid a, c, g) = -\tfrac12 \big(\log|S| + \log|X' S^{-1} X| + y' P y\big),

with :math:`P = S^{-1} - S^{-1} X (X' S^{-1} X)^{-1} X' S^{-1}`. It is found on a grid of (a, c) for each spectrum,
with cubic splines between its points; where the posterior is narrower than the grid, on further ones around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from pyrosplice._hypothesis.coefficients.working_model import WorkingModel

PRIOR_DEVIATION = 1.5
POINTS = 7, 5
"""Numbers of values of a and of c at which the model is worked out, for each spectrum."""
FINE = 43, 25  # points of the grids between them
WIDEST = 3.2, 2.2  # standard deviations that the first grid reaches, at least
AROUND = 4.0  # posterior standard deviations that a further grid reaches to each side
ZOOMS = 3  # grids after the first, at most
DEPTH = 60.0  # nats below its maximum beyond which the likelihood is as good as zero, and splines need not follow it
_MANY_SPOTS = 1_000  # above which the spectrum is looked for first
_DECIDED = 15.0  # nats by which a spectrum is more likely than others that are left out
_WIDTH = 10.0  # nats that evidence is below the largest likelihood, at most: a narrow posterior in a wide prior
_AT_THE_EDGE = 5e-3  # posterior probability of the outermost points beyond which a grid ends too early
TOO_NARROW = 0.25  # posterior standard deviation, in steps of the grid, that calls for a further one

Prior = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Log prior densities of a and c, which broadcast to ``(B, S, A, C)``, of genes with these positions ``(B,)``."""

Target = Callable[[Tensor, Tensor], Tensor]
"""Log variances ``(B, T)`` of what is tested, from the information ``X' S⁻¹ X`` ``(B, D, D)`` of genes ``(B,)``."""


@dataclass(frozen=True)
class Grid:
    """Points ``(B, S, A)`` of a for each spectrum and ``(B, C)`` of c, equally spaced in some coordinate."""

    field: Tensor
    white: Tensor

    @classmethod
    def first(cls, widest: tuple[Tensor, Tensor], n_spectra: int) -> Grid:
        """Make the first grid, from zero to ``widest`` ``(B,)``, closer together near zero."""
        u, v = (torch.linspace(0, 1, points, dtype=torch.float64) for points in POINTS)
        field = widest[0][:, None] * (0.35 * u + 0.65 * u**2.2)
        if not n_spectra:
            field = field[:, :1]
        return cls(field.unsqueeze(1).repeat(1, max(n_spectra, 1), 1), widest[1][:, None] * (0.5 * v + 0.5 * v**2))

    @classmethod
    def around(cls, found: Posterior) -> Grid:
        """Make a finer grid where the posterior is."""
        ends = []
        for mean, sd, step in (found.field_moments, found.white_moments):
            reach = AROUND * torch.maximum(sd, 0.35 * step)
            ends.append(((mean - reach).clamp_min(0.0).unsqueeze(-1), (mean + reach).unsqueeze(-1)))
        (low, high), (least, most) = ends
        n_field = 1 if found.field.shape[-1] == 1 else POINTS[0]  # one point where nothing is spatial
        u, v = (torch.linspace(0, 1, points, dtype=torch.float64) for points in (n_field, POINTS[1]))
        return cls(low + (high - low) * u, least + (most - least) * v)

    @classmethod
    def near(cls, estimates: tuple[Tensor, Tensor], wide: Grid) -> Grid:
        """Make a grid around estimates ``(B,)`` of a along the first spectrum and of c; along the others as before."""
        field, white = (
            low + (high - low) * torch.linspace(0, 1, points, dtype=torch.float64)
            for points, (low, high) in zip(POINTS, map(_around, estimates), strict=True)
        )
        return cls(torch.cat([field.unsqueeze(1), wide.field[:, 1:]], 1), white)

    def select(self, genes: Tensor) -> Grid:
        """Take the points of some of the genes."""
        return Grid(self.field[genes], self.white[genes])


@dataclass(frozen=True)
class Variances:
    """Variance of the field along each spectrum, ``(B, S)``, and of the independent part, ``(B,)``."""

    field: Tensor
    white: Tensor


@dataclass(frozen=True)
class Posterior:
    """The restricted posterior of a batch.

    Attributes
    ----------
    weight
        Probabilities of the spectra and points, ``(B, S, A, C)``; they sum to one.
    field, white
        The points, ``(B, S, A)`` and ``(B, C)``.
    log_variance
        Log variance of what is tested at each point, ``(B, S, A, C, T)``.
    log_evidence
        Log of the restricted likelihood averaged over the prior, up to a constant, ``(B,)``.
    spacing
        Distances between neighbouring points of the coarse grid near the posterior, ``(B, S)`` and ``(B,)``.
    """

    weight: Tensor
    field: Tensor
    white: Tensor
    log_variance: Tensor
    log_evidence: Tensor
    spacing: tuple[Tensor, Tensor]

    @property
    def variances(self) -> Variances:
        """Posterior means of a² and c²; a² along a spectrum is zero where the spectrum is another."""
        field = (self.weight.sum(-1) * self.field.square()).sum(-1)
        return Variances(field, (self.weight.sum((1, 2)) * self.white.square()).sum(-1))

    @property
    def uncertainty(self) -> Tensor:
        """Variance of the log variances of what is tested, ``(B, T)``."""
        weight = self.weight.unsqueeze(-1)
        mean = (weight * self.log_variance).sum((1, 2, 3), keepdim=True)
        return (weight * (self.log_variance - mean).square()).sum((1, 2, 3))

    @property
    def field_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of a within each spectrum, and the spacing of the points there."""
        weight = self.weight.sum(-1)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)
        return *_moments(weight, self.field), self.spacing[0]

    @property
    def white_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of c, and the spacing of the points there."""
        return *_moments(self.weight.sum((1, 2)), self.white), self.spacing[1]

    def replaced(self, genes: Tensor, others: Posterior) -> Posterior:
        """Put the posteriors of ``others`` in the place of some genes'."""

        def part(name: str) -> Tensor:
            whole: Tensor = getattr(self, name).clone()
            whole[genes] = getattr(others, name)
            return whole

        spacing = []
        for whole, own in zip(self.spacing, others.spacing, strict=True):
            spacing.append(whole.index_copy(0, genes, own))
        return Posterior(
            weight=part("weight"),
            field=part("field"),
            white=part("white"),
            log_variance=part("log_variance"),
            log_evidence=part("log_evidence"),
            spacing=(spacing[0], spacing[1]),
        )

    @property
    def cut(self) -> Tensor:
        """Genes whose posterior does not end within the grid, ``(B,)``."""
        field, white = self.weight.sum(-1), self.weight.sum((1, 2))
        beyond = field[..., -1].sum(1) + white[:, -1]
        before = (field[..., 0] * (self.field[..., 0] > 0)).sum(1) + white[:, 0] * (self.white[:, 0] > 0)
        return beyond + before > _AT_THE_EDGE

    @property
    def narrow(self) -> Tensor:
        """Genes whose posterior is too narrow for the grid, ``(B,)``."""
        (_, sd, step), (_, spread, gap) = self.field_moments, self.white_moments
        matters = self.weight.sum((2, 3)) > 0.01
        return ((sd < TOO_NARROW * step) & matters).any(1) | (spread < TOO_NARROW * gap)


def _around(estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Ends ``(B, 1)`` of an interval that a narrow posterior does not reach."""
    reach = 0.4 * estimate + 0.05
    return (estimate - reach).clamp_min(0.0).unsqueeze(1), (estimate + reach).unsqueeze(1)


def half_normal(field: Tensor, white: Tensor, genes: Tensor) -> Tensor:
    """The default prior, the same for all genes."""
    return -0.5 * (field.square() + white.square()) / PRIOR_DEVIATION**2


def restricted_posterior(
    model: WorkingModel,
    n_fixed: int,
    target: Target,
    *,
    largest: tuple[Tensor, Tensor],
    prior: Prior = half_normal,
) -> Posterior:
    """The restricted posterior of the variances.

    Parameters
    ----------
    model
        The working model; its first ``n_fixed`` columns are fitted, the others are only what is tested.
    target
        What it is whose variance is wanted.
    largest
        Estimates of a and c, ``(B,)`` each, that the first grid must not end before.
    prior
        Prior of a and c.
    """
    search = _Search(model, n_fixed, target, prior, torch.arange(len(model.response)))
    widest = [(2.5 * estimate).clamp(least, 4 * least) for estimate, least in zip(largest, WIDEST, strict=True)]
    n_spectra = 0 if model.solver is None else 1 + len(model.spectra.values)
    wide = Grid.first((widest[0], widest[1]), n_spectra)
    if n_spectra < 2 or model.response.shape[1] <= _MANY_SPOTS:
        return search.posterior(wide)
    return search.of_what_matters(wide, largest)


@dataclass(frozen=True)
class _Search:
    """The posterior of some genes, looked for along all spectra, along V alone or along the steeper ones.

    Among many spots the data nearly always tell which, and a factorisation of V at every point of a grid is dear.
    """

    model: WorkingModel
    n_fixed: int
    target: Target
    prior: Prior
    genes: Tensor
    used: tuple[bool, bool] = (True, True)

    def select(self, genes: Tensor) -> _Search:
        """Take the search of some of the genes."""
        return replace(self, model=select(self.model, genes), genes=self.genes[genes])

    def posterior(self, grid: Grid) -> Posterior:
        """Find the posterior on a first grid, and on further ones where it is narrower."""
        found = self.at(grid)
        for _ in range(ZOOMS):
            again = found.narrow.nonzero()[:, 0]
            if not len(again):
                break
            found = found.replaced(again, self.select(again).at(Grid.around(found).select(again)))
        return found

    def of_what_matters(self, wide: Grid, largest: tuple[Tensor, Tensor]) -> Posterior:
        """Search without V, or without the steeper spectra, where the others are far more likely."""
        found = replace(self, used=(False, True)).posterior(wide)
        products, logdet = self.model.with_noise(largest[1]).through_field(largest[0])
        here = restricted_likelihood(products, logdet, self.n_fixed * self.model.n_logits)
        alone = (here > found.log_evidence + _DECIDED + _WIDTH).nonzero()[:, 0]
        if len(alone):
            grid = Grid.near((largest[0][alone], largest[1][alone]), wide.select(alone))
            found = found.replaced(alone, replace(self.select(alone), used=(True, False)).posterior(grid))
        decided = (found.log_evidence > here + _DECIDED).index_copy(0, alone, ~found.cut[alone])
        others = (~decided).nonzero()[:, 0]
        return found.replaced(others, self.select(others).posterior(wide.select(others))) if len(others) else found

    def at(self, grid: Grid) -> Posterior:
        """Work out the posterior on the points of one grid."""
        return _interpolated(*self._values(grid), grid, self.prior, self.genes)

    def _values(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Log restricted likelihoods ``(B, S, A, C)`` and log variances ``(B, S, A, C, T)`` at the points of a grid.

        Along spectra that are not used the likelihood is zero.
        """
        likelihood, variances, model = [], [], self.model
        nothing = torch.full((len(self.genes),), -torch.inf, dtype=torch.float64)
        for white in grid.white.unbind(1):
            noise = model.with_noise(white)
            modes = noise.in_modes() if self.used[1] and grid.field.shape[1] > 1 else None
            without_field = self.target(noise.products[:, :-1, :-1], self.genes)
            for s, points in enumerate(grid.field.unbind(1)):
                for deviation in points.unbind(1):
                    if not self.used[min(s, 1)]:
                        likelihood.append(nothing)
                        variances.append(without_field)
                        continue
                    if modes is None or not s:
                        products, logdet = noise.through_field(deviation)
                    else:
                        products, logdet = modes.through_field(model.spectra.values[s - 1], deviation)
                    likelihood.append(restricted_likelihood(products, logdet, self.n_fixed * model.n_logits))
                    variances.append(self.target(products[:, :-1, :-1], self.genes))
        shape = grid.white.shape[1], *grid.field.shape[1:]
        coarse = torch.stack(likelihood, -1).unflatten(-1, shape).permute(0, 2, 3, 1)
        return coarse, torch.stack(variances, -1).unflatten(-1, shape).permute(0, 3, 4, 2, 1)


def select(model: WorkingModel, genes: Tensor) -> WorkingModel:
    """The working model of some genes."""
    scale = model.spot_scale
    own = scale if scale is None or len(scale) == 1 else scale[genes]
    parts = model.weight[genes], model.response[genes], model.design, model.solver, model.spectra
    return WorkingModel(*parts, model.logit_scale[genes], model.kept[genes], own)


def df_of_variance(variance: Tensor) -> Tensor:
    """Degrees of freedom with which a variance is known whose logarithm has this posterior ``variance``.

    A χ² over its degrees of freedom ν has 2 / ν, to first order.
    """
    return 2 / variance.clamp_min(1e-9)


def restricted_likelihood(products: Tensor, logdet: Tensor, n_coefficients: int) -> Tensor:
    """Log restricted likelihood ``(B,)`` from ``T' S⁻¹ T`` and ``log |S|``, the first coefficients integrated out."""
    information, cross = products[:, :n_coefficients, :n_coefficients], products[:, :n_coefficients, -1:]
    factor = regular_factor(information)
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    squares = products[:, -1, -1] - half.square().sum((1, 2))
    return -0.5 * (logdet + 2 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1) + squares)


def regular_factor(information: Tensor) -> Tensor:
    """Cholesky factors of ``(…, D, D)``, NaN where there are none."""
    size = torch.diagonal(information, dim1=-2, dim2=-1).mean(-1).clamp_min(1e-100)
    eye = torch.eye(information.shape[-1], dtype=information.dtype)
    factor, info = torch.linalg.cholesky_ex(information + 1e-9 * size[..., None, None] * eye)
    return factor.masked_fill((info > 0)[..., None, None], torch.nan)


def _interpolated(likelihood: Tensor, log_variance: Tensor, grid: Grid, prior: Prior, genes: Tensor) -> Posterior:
    """Interpolate the posterior from the coarse points to the fine ones."""
    along, across = (_spline(points, fine) for points, fine in zip(likelihood.shape[2:], FINE, strict=True))
    likelihood = likelihood.nan_to_num(-torch.inf, neginf=-torch.inf)
    likelihood = torch.maximum(likelihood, likelihood.amax((1, 2, 3), keepdim=True) - DEPTH)
    value = _between(likelihood.unsqueeze(-1), along, across).squeeze(-1)
    field, white = grid.field @ along.T, grid.white @ across.T
    log_prior = prior(field.unsqueeze(-1), white[:, None, None], genes)
    log_prior = log_prior + _log_widths(field).unsqueeze(-1) + _log_widths(white)[:, None, None]
    density = (value + log_prior).nan_to_num(-torch.inf, neginf=-torch.inf).flatten(1)
    weight = torch.softmax(density, 1).unflatten(1, value.shape[1:])
    spacing = _spacing_at(field, weight.sum(-1), grid.field), _spacing_at(white, weight.sum((1, 2)), grid.white)
    return Posterior(weight, field, white, _between(log_variance, along, across), density.logsumexp(1), spacing)


def _between(values: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """Splines through ``(B, S, A, C, T)`` in both directions."""
    return torch.einsum("ia,kc,bsact->bsikt", along, across, values)


def _spline(points: int, fine: int) -> Tensor:
    """Weights ``(fine, points)`` of a cubic spline through equally spaced points; one point is itself."""
    if points == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    u = np.linspace(0, 1, points)
    spline = make_interp_spline(u, np.eye(points), k=min(3, points - 1))
    return torch.from_numpy(np.ascontiguousarray(spline(np.linspace(0, 1, fine))))


def _log_widths(points: Tensor) -> Tensor:
    """Logs of what each point of a grid ``(…, F)`` stands for."""
    if points.shape[-1] == 1:
        return torch.zeros_like(points)
    inner = (points[..., 2:] - points[..., :-2]) / 2
    first, last = points[..., 1:2] - points[..., :1], points[..., -1:] - points[..., -2:-1]
    return torch.cat([first / 2, inner, last / 2], -1).clamp_min(1e-300).log()


def _spacing_at(fine: Tensor, weight: Tensor, coarse: Tensor) -> Tensor:
    """Spacing of the coarse points around the mean of ``weight`` over the fine ones, ``(…,)``."""
    if coarse.shape[-1] == 1:
        return torch.zeros_like(coarse[..., 0])
    mean, _ = _moments(weight / weight.sum(-1, keepdim=True).clamp_min(1e-300), fine)
    at = torch.searchsorted(coarse.contiguous(), mean.unsqueeze(-1)).clamp(1, coarse.shape[-1] - 1)
    return (coarse.gather(-1, at) - coarse.gather(-1, at - 1)).squeeze(-1)


def _moments(weight: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weight * points).sum(-1)
    return mean, (weight * (points - mean.unsqueeze(-1)).square()).sum(-1).sqrt()
