r"""Wald tests, contrasts and effect sizes from the full information matrix of the coefficients.

Coefficients of a gene are ``[β; b]``, ``(P + 1, Q)`` with the intercept last, flattened with logits fastest; their
covariance is the inverse of :math:`(\tilde X \otimes I)' V^{-1} (\tilde X \otimes I)`, intercept and all covariates
included (see :mod:`pyrosplice.hypothesis.score` for :math:`V^{-1}`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.hypothesis.score import CovariateTest, PrecisionProduct, covariate_information
from pyrosplice.inference.glm import Standardisation


@dataclass(frozen=True)
class Effects:
    """Estimates and standard errors of the same shape."""

    estimate: Tensor
    standard_error: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the normal confidence interval."""
        if not 0 < level < 1:
            raise InvalidArgumentError(f"level: expected a number between 0 and 1, found {level!r}.")
        half = torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)) * self.standard_error
        return self.estimate - half, self.estimate + half


def coefficient_covariance(
    precision_product: PrecisionProduct, design: Tensor, *, n_genes: int, n_logits: int
) -> Tensor:
    """Covariance ``(B, (P + 1) Q, (P + 1) Q)`` of ``[β; b]`` for covariates ``(N, P)``; NaN where not estimable.

    Computed for standardised covariates and mapped back, so that origin and unit cost no accuracy.
    """
    scaling = Standardisation.of(design.to(torch.float64))
    information = covariate_information(precision_product, scaling.design, n_genes, n_logits)
    factor, info = torch.linalg.cholesky_ex(information)
    singular = (info != 0)[:, None, None]
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.cholesky_inverse(torch.where(singular, eye, factor))  # one gene's trouble stays its own
    return scaling.covariance(torch.where(singular, torch.nan, inverse), n_logits)


def wald_test(beta: Tensor, covariance: Tensor, *, terms: Sequence[Sequence[int]] | None = None) -> CovariateTest:
    """Wald tests that all coefficients of a term are zero, beside all other covariates.

    Parameters
    ----------
    beta
        ``(B, P, Q)``.
    covariance
        Of ``[β; b]``, ``(B, (P + 1) Q, (P + 1) Q)``.
    terms
        Covariates tested together. Default: each on its own.
    """
    n_factors = beta.shape[-2]
    groups = [list(term) for term in terms] if terms is not None else [[j] for j in range(n_factors)]
    results = []
    for group in groups:
        contrast = beta.new_zeros(len(group), n_factors)
        contrast[range(len(group)), group] = 1.0
        results.append(contrast_test(beta, covariance, contrast))
    return CovariateTest(*(torch.cat(parts, -1) for parts in zip(*results, strict=True)))


def contrast_test(beta: Tensor, covariance: Tensor, contrast: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Wald test that ``contrast @ β`` is zero in every logit.

    Parameters
    ----------
    contrast
        ``(C, P)``, linearly independent rows.

    Returns
    -------
    statistic, pvalue, dof
        ``(B, 1)``, ``(B, 1)`` and ``(1,)``, with dof C Q.
    """
    n_logits = beta.shape[-1]
    value = (contrast @ beta).flatten(1).unsqueeze(-1)
    rows = torch.kron(contrast.contiguous(), torch.eye(n_logits, dtype=beta.dtype, device=beta.device))
    size = rows.shape[1]
    variance = rows @ covariance[:, :size, :size] @ rows.T
    factor, info = torch.linalg.cholesky_ex(variance)
    statistic = (value * torch.cholesky_solve(value, factor)).sum(-2)
    statistic = torch.where((info != 0).unsqueeze(-1), torch.nan, statistic)
    dof = torch.tensor([len(rows)], device=beta.device)
    return statistic, chi2_sf(statistic, dof), dof


def log_odds_effects(beta: Tensor, covariance: Tensor) -> Effects:
    """Coefficients as log odds against the reference isoform a unit of the covariate, ``(B, P, Q)``."""
    variance = torch.diagonal(covariance, dim1=-2, dim2=-1)[:, : beta[0].numel()]
    return Effects(beta, variance.reshape(beta.shape).sqrt())


def usage_effects(beta: Tensor, bias_eta: Tensor, covariance: Tensor, design: Tensor) -> Effects:
    r"""Change of each isoform's usage a unit of the covariate, ``(B, P, K)``; 0.01 is a percentage point.

    The derivative :math:`g_{jk} = p_k (\beta_{jk} - \sum_m p_m \beta_{jm})` at the mean covariates, reference isoform
    included (its β is 0); the effects of a covariate sum to 0 over isoforms. Standard errors by the delta method.

    Parameters
    ----------
    beta, bias_eta
        ``(B, P, Q)`` and ``(B, Q)``.
    covariance
        Of ``[β; b]``.
    design
        Covariates ``(N, P)``.
    """
    mean = design.to(beta).mean(0)
    eta = bias_eta + (mean.unsqueeze(-1) * beta).sum(-2)
    usage = torch.softmax(torch.cat([eta, torch.zeros_like(eta[..., :1])], -1), -1)  # (B, K)
    full = torch.cat([beta, torch.zeros_like(beta[..., :1])], -1)  # (B, P, K)
    excess = full - (full * usage.unsqueeze(-2)).sum(-1, keepdim=True)
    effect = usage.unsqueeze(-2) * excess
    jacobian = torch.diag_embed(usage) - usage.unsqueeze(-1) * usage.unsqueeze(-2)  # dp_k / dη_l
    by_eta = jacobian.unsqueeze(1) * excess.unsqueeze(-1) - usage[:, None, :, None] * effect.unsqueeze(-2)
    n_factors, n_logits = beta.shape[-2:]
    by_coefficient = by_eta[..., :n_logits].unsqueeze(3) * torch.cat([mean, mean.new_ones(1)])[:, None]
    own = torch.arange(n_factors, device=beta.device)  # (B, P, K, P + 1, Q) from here on
    by_coefficient[:, own, :, own] += jacobian[..., :n_logits]
    rows = by_coefficient.flatten(3)
    variance = torch.einsum("bpkd,bde,bpke->bpk", rows, covariance, rows)
    return Effects(effect, variance.clamp_min(0.0).sqrt())
