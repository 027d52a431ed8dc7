r"""Standard errors of location that allow for cells of a donor being alike: the bias-reduced sandwich.

With s_d the score and I_d the expected information of donor d, :math:`B = (\sum_d I_d)^{-1}`,

.. math:: V = B \Big[\sum_d M_d s_d s_d' M_d'\Big] B

where :math:`M_d` makes each term unbiased under the model (CR2; Bell and McCaffrey 2002), computed in the coefficients'
space: :math:`M_d = I_d^{1/2} (1 - I_d^{1/2} B I_d^{1/2})^{-1/2} I_d^{-1/2}`. Degrees of freedom by Satterthwaite's
formula for the same model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.inference.nb_fit import GlmFit
from pyrosplice.inference.nb_rows import Rows, weighted_gram
from pyrosplice.inference.nb_source import RowSource

Array = NDArray[np.float64]
NEGLIGIBLE = 1e-8
NO_SPREAD = 1e-12  # of the variance that the model expects: a gene constant over its cells is 0 up to rounding


@dataclass(frozen=True)
class ClusterCovariance:
    """Covariance of the location coefficients ``(G, P, P)`` and the degrees of freedom of a contrast ``(G,)``.

    NaN where the residuals of no donor differ from zero: there is nothing to tell the spread between donors from.
    """

    covariance: Array
    df: Array


def cluster_covariance(source: RowSource, fit: GlmFit, contrast: Array) -> ClusterCovariance:
    """Sandwich over the strata of ``source``.

    Parameters
    ----------
    source
        With ``design.strata`` set to the donor of each cell.
    fit
        Estimates of its genes.
    contrast : (P,)
        The contrast of location coefficients that the degrees of freedom are for.
    """
    g, p = len(fit.theta), fit.n_location
    covariance, df = np.full((g, p, p), np.nan), np.full(g, np.nan)
    stratum = torch.as_tensor(source.stratum, device=source.device)
    location = source.basis.part(slice(0, p))
    direction = torch.as_tensor(contrast @ location.matrix, dtype=torch.float64, device=source.device)
    for which, rows in source.conditioned.blocks(np.flatnonzero(np.isfinite(fit.theta).all(1))):
        theta = torch.as_tensor(source.basis.inward(fit.theta[which]), device=rows.x.device)
        v, nu = _sandwich(*_donor_parts(rows, source, theta, stratum), direction)
        covariance[which], df[which] = location.covariance(v.cpu().numpy()), nu.cpu().numpy()
    return ClusterCovariance(covariance, df)


def _donor_parts(rows: Rows, source: RowSource, theta: Tensor, stratum: Tensor) -> tuple[Tensor, Tensor]:
    """Score ``(G, J, P)`` and expected information ``(G, J, P, P)`` of each donor."""
    p = rows.x.shape[1]
    eta, zeta = rows.eta(theta[:, :p]), rows.zeta(theta[:, p:])
    slope = source.noise.terms(rows.total, rows.weight, eta, zeta).g_eta
    weight = rows.weight * source.noise.expected_weight(eta, zeta)
    score, information = [], []
    for donor in range(int(stratum.max()) + 1):
        mine = (stratum == donor).nonzero()[:, 0]
        score.append(slope[:, mine] @ rows.x[mine])
        information.append(weighted_gram(weight[:, mine], rows.x[mine], rows.x[mine]))
    return torch.stack(score, 1), torch.stack(information, 1)


def _sandwich(score: Tensor, information: Tensor, contrast: Tensor) -> tuple[Tensor, Tensor]:
    scale = information.sum(1).diagonal(dim1=1, dim2=2).clamp_min(1e-300).sqrt()  # for well-scaled eigenvectors
    information = information / (scale[:, None, :, None] * scale[:, None, None, :])
    score, contrast = score / scale[:, None], contrast / scale
    bread = torch.linalg.inv_ex(information.sum(1))[0]
    values, vectors = torch.linalg.eigh(information)
    kept = values > NEGLIGIBLE
    root = torch.where(kept, values.clamp_min(0).sqrt(), 0.0)
    inverse_root = torch.where(kept, 1 / root.clamp_min(1e-150), 0.0)
    half = (vectors * root[..., None, :]) @ vectors.mT
    half_inverse = (vectors * inverse_root[..., None, :]) @ vectors.mT
    left = torch.eye(score.shape[-1], dtype=score.dtype, device=score.device) - half @ bread[:, None] @ half
    own, basis = torch.linalg.eigh(left)
    shrink = torch.where(own > NEGLIGIBLE, own.clamp_min(NEGLIGIBLE).rsqrt(), 0.0)
    adjust = half @ (basis * shrink[..., None, :]) @ basis.mT @ half_inverse
    moved = (adjust @ score.unsqueeze(-1)).squeeze(-1)
    middle = moved.mT @ moved
    covariance = bread @ middle @ bread
    direction = (bread @ contrast.unsqueeze(-1)).squeeze(-1)
    found = ((covariance @ contrast.unsqueeze(-1)).squeeze(-1) * contrast).sum(1)
    covariance[found < NO_SPREAD * (contrast * direction).sum(1)] = torch.nan
    a = (adjust.mT @ direction[:, None, :, None]).squeeze(-1)  # (G, J, P): row d of c'B M_d
    spread = (information @ a.unsqueeze(-1)).squeeze(-1)  # I_d a_d
    cross = -spread @ bread @ spread.mT
    own_part = torch.diag_embed((a * spread).sum(-1))
    working = own_part + cross
    df = working.diagonal(dim1=1, dim2=2).sum(1).square() / working.square().sum((1, 2))
    return covariance / (scale[:, :, None] * scale[:, None, :]), df
