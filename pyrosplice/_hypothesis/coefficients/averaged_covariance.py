r"""A working model at the posterior mean of its covariance.

With :math:`\bar S = W^{-1} + \sum_g \bar a_g^2 V_g + \bar c^2 I`, :math:`\bar a_g^2` and :math:`\bar c^2` posterior
means (:mod:`pyrosplice._hypothesis.coefficients.restricted_posterior`), a covariate's score or its generalised
least-squares estimate has the variance of :math:`\bar S`: that of an estimate whose variances are not known, to first
order, and never that of a model at the boundary of its parameters. The part of V itself is a sparse solve; the steeper
spectra, of rank r, are added by Woodbury's identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.restricted_posterior import Variances, regular_factor
from pyrosplice._hypothesis.coefficients.score import Linearized
from pyrosplice._hypothesis.coefficients.working_model import WorkingModel
from pyrosplice._linalg.blocks import matmul, nan_where_indefinite, planar, sandwich
from pyrosplice._linalg.solver import Factor


class AveragedPrecision:
    """Inverse ``S̄⁻¹`` of the averaged covariance of a batch of genes, as products.

    Attributes
    ----------
    spot_precision
        Diagonal blocks, ``(B, N, Q, Q)``.
    """

    def __init__(self, model: WorkingModel, variances: Variances):
        self.model = model
        self.effective = planar(model.noisy_precision(variances.white.sqrt())[0])
        self.spot_precision = self.effective
        self._factor: Factor | None = None
        self._steep: Tensor | None = None
        if model.solver is None:
            return
        self._a = planar(model.field_scale(variances.field[:, 0].sqrt()).expand_as(model.response))
        self._factor = model.solver.factorize(sandwich(self._a, self.effective, self._a))
        covariance = sandwich(self._a, self._factor.spot_covariance(), self._a)
        self.spot_precision = self.effective - matmul(matmul(self.effective, covariance), self.effective)
        self._add_steep((variances.field[:, 1:] @ model.spectra.values).sqrt())

    def _add_steep(self, root: Tensor) -> None:
        """Add fields along the leading eigenvectors with these standard deviations ``(B, r)``."""
        vectors, (n_genes, n_spots, q) = self.model.spectra.vectors, self.model.response.shape
        rank = vectors.shape[1]
        scale = self.model.field_scale(torch.ones(n_genes, dtype=torch.float64)).expand(n_genes, n_spots, q)
        eye = torch.eye(q, dtype=torch.float64)
        spread = torch.einsum("nk,bnq,bk,qr->bnqkr", vectors, scale, root, eye).flatten(3)
        images = self._smooth_product(spread)
        system = torch.einsum("bnqi,bnqj->bij", spread, images)
        torch.diagonal(system, dim1=-2, dim2=-1).add_(1.0)
        factor = nan_where_indefinite((system + system.mT) / 2)
        flat = images.reshape(n_genes, n_spots * q, rank * q)
        half = torch.linalg.solve_triangular(factor.mT, flat, upper=True, left=False)
        steep = half.reshape(n_genes, n_spots, q, rank * q)
        self._steep, self.spot_precision = steep, self.spot_precision - steep @ steep.mT

    def product(self, fields: Tensor) -> Tensor:
        """Product ``S̄⁻¹ x`` with ``(B, N, Q, R)``."""
        out = self._smooth_product(fields)
        if self._steep is None:
            return out
        return out - torch.einsum("bnqi,bir->bnqr", self._steep, torch.einsum("bnqi,bnqr->bir", self._steep, fields))

    def _smooth_product(self, fields: Tensor) -> Tensor:
        out = matmul(self.effective, planar(fields))
        if self._factor is None or self.model.solver is None:
            return out
        a, shape, solver = self._a.unsqueeze(-1), fields.shape[2:], self.model.solver
        pulled = self._factor.solve(solver.gather((a * out).flatten(2)).unflatten(2, shape))
        return out - matmul(self.effective, a * solver.spread(pulled.flatten(2)).unflatten(2, shape))


def averaged(model: WorkingModel, variances: Variances, n_fixed: int) -> Linearized:
    """The model at its posterior mean covariance as tests see it, of the coordinates of the random effect.

    The residual is that of the generalised least-squares fit of the first ``n_fixed`` columns.
    """
    precision, q = AveragedPrecision(model, variances), model.n_logits
    eye = torch.eye(q, dtype=torch.float64)
    columns = torch.einsum("nc,qr->nqcr", model.design[:, :n_fixed], eye).flatten(2)
    fields = torch.cat([columns.expand(len(model.response), -1, -1, -1), model.response.unsqueeze(-1)], -1)
    images = precision.product(fields)
    products = torch.einsum("nqi,bnqr->bir", columns, images)
    coefficients = torch.cholesky_solve(products[..., -1:], regular_factor(products[..., :-1]))
    residual = images[..., -1] - torch.einsum("bnqi,bi->bnq", images[..., :-1], coefficients.squeeze(-1))
    return Linearized(residual, precision.product, precision.spot_precision)
