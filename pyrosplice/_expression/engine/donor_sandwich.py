r"""Standard errors of location that allow for cells of a donor being alike: the bias-reduced sandwich, and its law.

With s_d the score and I_d the expected information of donor d, :math:`B = (\sum_d I_d)^{-1}`,

.. math:: V = B \Big[\sum_d M_d s_d s_d' M_d'\Big] B

where :math:`M_d` makes each term unbiased under the model (CR2; Bell and McCaffrey 2002), computed in the coefficients'
space: :math:`M_d = I_d^{1/2} (1 - I_d^{1/2} B I_d^{1/2})^{-1/2} I_d^{-1/2}`.

A contrast's estimate e and the terms :math:`r_d = c' B M_d s_d` of its variance are linear in the donors' scores, whose
covariance is :math:`\Omega_d = I_d + \tau^2 h_d h_d'`: cells, and an effect of the donor on the intercept (on the
contrast, where that varies within donors). So with K the joint covariance of :math:`(e, r_1, \dots, r_J)`,
:math:`P(e^2 > t^2 \sum_d r_d^2)` is that of one quadratic form with a single positive eigenvalue, and

.. math:: p(t) = \frac2\pi \int_0^{\pi/2} \prod_i \Big(1 + \frac{\lambda_i(t)}{\sin^2\varphi}\Big)^{-1/2} d\varphi

with :math:`\lambda_i` minus the ratios of the negative eigenvalues to it. Where donors are alike in size this is
Student's t; where they are not, a t with Satterthwaite's degrees of freedom for independent cells is too short in the
tails (12 donors of 10 to 200 cells: 6.3 to 8 % at 5 %), and one for :math:`\tau > 0` too long (2 to 3 %). τ is pooled
over at least fifty genes. Null genes rejected at 5 / 1 %, 6 to 24 donors, also 3 against 9, means 0.2 and 5, τ 0 to
0.5: 3.9 to 6.3 / 0.4 to 1.8 (``tests/studies/expression_small_groups.csv``, and another seed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtridf
from torch import Tensor

from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.engine.pseudo_cells import Rows, weighted_gram
from pyrosplice._expression.engine.row_source import RowSource

Array = NDArray[np.float64]
Index = NDArray[np.intp]
NEGLIGIBLE = 1e-8
ENOUGH_GENES = 50  # to pool their donors' variance; with fewer the law is that of donors that differ without bound
LEVEL = 0.05  # at which Student's t has the exact law's critical value
SECANTS = 12
NO_SPREAD = 1e-12  # of the variance that the model expects: a gene constant over its cells is 0 up to rounding
NODES = torch.arange(-20.0, 20.1, 0.25, dtype=torch.float64)  # of log tan φ: errors of 1e-9 (poles are π / 2 away)


@dataclass(frozen=True)
class ClusterTest:
    """Covariance of the location coefficients ``(G, P, P)``; the p-value and degrees of freedom of a contrast ``(G,)``.

    The degrees of freedom are those of the Student's t that has the law's critical value at 5 %: for intervals.
    All are NaN where the residuals of no donor differ from zero: there is nothing to tell the spread between donors
    from.
    """

    covariance: Array
    pval: Array
    df: Array


def cluster_test(source: RowSource, fit: GlmFit, contrast: Array, *, within: bool) -> ClusterTest:
    """Sandwich over the strata of ``source``, and the test of one contrast.

    Parameters
    ----------
    source
        Rows with ``design.strata`` set to the donor of each cell.
    fit
        Estimates of its genes.
    contrast : (P,)
        Contrast of location coefficients.
    within
        Whether the contrast is about columns that vary within donors: they then differ in their response to it.
    """
    g, p = len(fit.theta), fit.n_location
    out = ClusterTest(np.full((g, p, p), np.nan), np.full(g, np.nan), np.full(g, np.nan))
    location = source.basis.part(slice(0, p))
    estimate = fit.theta[:, :p] @ contrast
    excess, expected = [], []
    for _, linear in _blocks(source, fit, contrast, within):
        cells, donors = (k[:, 1:, 1:].diagonal(dim1=1, dim2=2).sum(1) for k in (linear.cells, linear.donors))
        good = torch.isfinite(linear.variance) & (cells > 0) & torch.isfinite(donors)
        excess.append(((linear.variance - cells) / cells)[good])
        expected.append((donors / cells)[good])
    n_genes, total = sum(map(len, expected)), sum(float(e.sum()) for e in expected)
    pooled = max(sum(float(e.sum()) for e in excess) / total, 0.0) if total > 0 else 0.0
    for which, linear in _blocks(source, fit, contrast, within):
        joint = linear.cells + pooled * linear.donors if n_genes >= ENOUGH_GENES else linear.donors
        t = torch.as_tensor(estimate[which], device=joint.device) / linear.variance.sqrt()
        pval, df = _law(joint, t)
        out.pval[which], out.df[which] = pval.cpu().numpy(), df.cpu().numpy()
        out.covariance[which] = location.covariance(linear.covariance.cpu().numpy())
    return out


@dataclass(frozen=True)
class _Linear:
    """A contrast's estimate and the terms of its variance as linear functions of the donors' scores.

    ``cells`` and ``donors`` ``(G, J + 1, J + 1)``: their covariance, the estimate first, that cells and a unit variance
    between donors bring; ``variance`` ``(G,)`` and ``covariance`` ``(G, P, P)`` are the sandwich's.
    """

    covariance: Tensor
    variance: Tensor
    cells: Tensor
    donors: Tensor


def _blocks(source: RowSource, fit: GlmFit, contrast: Array, within: bool) -> Iterator[tuple[Index, _Linear]]:
    stratum = torch.as_tensor(source.stratum, device=source.device)
    location = source.basis.part(slice(0, fit.n_location))
    direction = torch.as_tensor(contrast @ location.matrix, dtype=torch.float64, device=source.device)
    for which, rows in source.conditioned.blocks(np.flatnonzero(np.isfinite(fit.theta).all(1))):
        theta = torch.as_tensor(source.basis.inward(fit.theta[which]), device=rows.x.device)
        score, information, intercept = _donor_parts(rows, source, theta, stratum)
        yield which, _linear(score, information, None if within else intercept, direction)


def _donor_parts(rows: Rows, source: RowSource, theta: Tensor, stratum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score ``(G, J, P)``, expected information ``(G, J, P, P)`` and that on an intercept ``(G, J, P)`` of donors."""
    p = rows.x.shape[1]
    eta, zeta = rows.eta(theta[:, :p]), rows.zeta(theta[:, p:])
    slope = source.likelihood.terms(rows.total, rows.weight, eta, zeta).g_eta
    weight = source.likelihood.location_information(rows.total, rows.weight, eta, zeta)
    score, information, intercept = [], [], []
    for donor in range(int(stratum.max()) + 1):
        mine = (stratum == donor).nonzero()[:, 0]
        score.append(slope[:, mine] @ rows.x[mine])
        information.append(weighted_gram(weight[:, mine], rows.x[mine], rows.x[mine]))
        intercept.append(weight[:, mine] @ rows.x[mine])
    return torch.stack(score, 1), torch.stack(information, 1), torch.stack(intercept, 1)


def _linear(score: Tensor, information: Tensor, donor: Tensor | None, contrast: Tensor) -> _Linear:
    scale = information.sum(1).diagonal(dim1=1, dim2=2).clamp_min(1e-300).sqrt()  # for well-scaled eigenvectors
    information = information / (scale[:, None, :, None] * scale[:, None, None, :])
    score, contrast = score / scale[:, None], contrast / scale
    bread = torch.linalg.inv_ex(information.sum(1))[0]
    adjust = _unbiasing(information, bread)
    moved = (adjust @ score.unsqueeze(-1)).squeeze(-1)
    covariance = bread @ (moved.mT @ moved) @ bread / (scale[:, :, None] * scale[:, None, :])
    direction = (bread @ contrast.unsqueeze(-1)).squeeze(-1)
    if donor is None:
        effect = (information @ direction[:, None, :, None]).squeeze(-1)
        effect = effect / (direction * contrast).sum(1)[:, None, None]
    else:
        effect = donor / scale[:, None]
    a = (adjust.mT @ direction[:, None, :, None]).squeeze(-1)  # (G, J, P): row d of c'B M_d
    back = (information @ a.unsqueeze(-1)).squeeze(-1) @ bread  # what each row takes of all donors' scores
    cells = _joint(a, back, direction, (information @ a.unsqueeze(-1)).squeeze(-1), information.sum(1))
    spread = effect * (a * effect).sum(-1, keepdim=True)
    donors = _joint(a, back, direction, spread, effect.mT @ effect)
    variance = (moved @ direction.unsqueeze(-1)).square().sum((1, 2))
    unknown = variance < NO_SPREAD * (contrast * direction).sum(1)
    covariance[unknown], variance[unknown] = torch.nan, torch.nan
    return _Linear(covariance, variance, cells, donors)


def _unbiasing(information: Tensor, bread: Tensor) -> Tensor:
    """The M_d ``(G, J, P, P)``."""
    values, vectors = torch.linalg.eigh(information)
    kept = values > NEGLIGIBLE
    root = torch.where(kept, values.clamp_min(0).sqrt(), 0.0)
    inverse_root = torch.where(kept, 1 / root.clamp_min(1e-150), 0.0)
    half = (vectors * root[..., None, :]) @ vectors.mT
    half_inverse = (vectors * inverse_root[..., None, :]) @ vectors.mT
    left = torch.eye(bread.shape[-1], dtype=bread.dtype, device=bread.device) - half @ bread[:, None] @ half
    own, basis = torch.linalg.eigh(left)
    shrink = torch.where(own > NEGLIGIBLE, own.clamp_min(NEGLIGIBLE).rsqrt(), 0.0)
    return half @ (basis * shrink[..., None, :]) @ basis.mT @ half_inverse


def _joint(a: Tensor, back: Tensor, direction: Tensor, spread: Tensor, total: Tensor) -> Tensor:
    """Covariance of estimate and terms for scores of covariance Ω_d: ``spread`` Ω_d a_d, ``total`` their sum."""
    moved = (total @ direction.unsqueeze(-1)).squeeze(-1)
    cross = back @ spread.mT
    terms = back @ total @ back.mT - cross - cross.mT + torch.diag_embed((a * spread).sum(-1))
    beside = (spread * direction[:, None]).sum(-1) - (back * moved[:, None]).sum(-1)
    top = torch.cat([(direction * moved).sum(1)[:, None], beside], 1)
    return torch.cat([top[:, None], torch.cat([beside[:, :, None], terms], 2)], 1)


def _law(joint: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """p-value at ``t``, and the degrees of freedom of Student's t that agree with the law at 5 % ``(G,)``."""
    pval, df = (torch.full_like(t, torch.nan) for _ in range(2))
    good = (torch.isfinite(joint).all(2).all(1) & torch.isfinite(t) & (joint[:, 0, 0] > 0)).nonzero()[:, 0]
    if not len(good):
        return pval, df
    values, vectors = torch.linalg.eigh(joint[good] / joint[good, 0, 0][:, None, None])
    root = (vectors * values.clamp_min(0).sqrt()[:, None]).mT  # its square is the covariance
    pval[good] = _tail(root, t[good])
    x = torch.full_like(t[good], 2.0).log()
    low, f_low = x - 1, _tail(root, (x - 1).exp()).log()
    for _ in range(SECANTS):
        f = _tail(root, x.exp()).log()
        slope = torch.where(x == low, -1.0, (f - f_low) / torch.where(x == low, 1.0, x - low)).clamp(-1e3, -1e-2)
        low, f_low, x = x, f, x + ((np.log(LEVEL) - f) / slope).clamp(-1.5, 1.5)
    found = stdtridf(1 - LEVEL / 2, x.exp().clamp_min(1.96).cpu().numpy())
    df[good] = torch.as_tensor(found, device=t.device).clamp_max(1e6)
    return pval, df


def _tail(root: Tensor, t: Tensor) -> Tensor:
    """Chance ``P(e² > t² Σ r²)`` ``(G,)`` for ``(e, r) = root' z`` of standard normal z."""
    sign = torch.cat([torch.ones_like(t)[:, None], -t.square()[:, None].expand(-1, root.shape[2] - 1)], 1)
    values = torch.linalg.eigvalsh((root * sign[:, None]) @ root.mT)
    ratio = (-values[:, :-1]).clamp_min(0) / values[:, -1:]
    sine = torch.sigmoid(2 * NODES.to(t.device))  # its square, at tan φ = e^v
    integrand = torch.exp(-0.5 * torch.log1p(ratio[:, :, None] / sine).sum(1)) / torch.cosh(NODES.to(t.device))
    return (integrand.sum(1) * float(NODES[1] - NODES[0]) / torch.pi).clamp(0, 1)
