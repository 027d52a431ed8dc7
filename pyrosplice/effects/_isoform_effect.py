r"""How the random effects of a gene's isoforms hang together, and coordinates in which isoforms have no order.

The K − 1 logits of a gene are against its last isoform, :math:`\eta_k = \psi_k - \psi_K` with ψ on the scale of the
softmax, where all isoforms are alike. Two covariances of the random effect between the logits:

=================  ================  ==============================================================================
isoform_effect     between logits    on the scale of the softmax
=================  ================  ==============================================================================
``"independent"``  I                 the last isoform has no effect, the others have independent ones
``"symmetric"``    I + 11'           every isoform has an independent one of the same variance, and none is special
=================  ================  ==============================================================================

Under ``"symmetric"`` any two isoforms' log odds vary by 2σ², and what isoform is last makes no difference.

Engines know effects that are independent between predictors. They work in coordinates u of the logits with
:math:`\eta = L u` and :math:`L L' = I + 11'`, in which the symmetric effect is :math:`\sigma^2 I`. With H an
orthonormal basis of the contrasts of K isoforms, :math:`\psi = H u`, L is the difference of each row of H to the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import congruent, planar, planar_matvec
from pyrosplice._overrides import is_ours
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.likelihoods._contract import Likelihood

IsoformEffect = Literal["independent", "symmetric"]
_SHARP = 1e-6  # up to which log ratios are the same


@dataclass(frozen=True)
class SoftmaxBasis:
    """L of every gene, in whose coordinates u isoforms have no order.

    Attributes
    ----------
    root
        L, ``(B, 1, Q, Q)`` or, the same for all genes, ``(Q, Q)``.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.effects import SoftmaxBasis
    >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
    >>> basis.root @ basis.root.T  # the covariance of the logits, which has no order of the isoforms
    tensor([[2.0000, 1.0000],
            [1.0000, 2.0000]], dtype=torch.float64)
    """

    root: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> SoftmaxBasis:
        """Make coordinates u for genes with ``counts`` ``(B, N, K)`` that do not depend on the order of the isoforms.

        The rows of H go to the isoforms by their totals, so that whatever is computed in u, step by step, is the same
        for every order.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> counts = torch.tensor([[[5.0, 2.0, 1.0]], [[1.0, 2.0, 5.0]]], dtype=torch.float64)
        >>> SoftmaxBasis.of(counts).root.shape  # of two genes
        torch.Size([2, 1, 2, 2])
        """
        contrasts = _contrasts(counts.shape[-1]).to(counts)[_ranks(counts)]
        return cls(planar((contrasts[:, :-1] - contrasts[:, -1:]).unsqueeze(1)))

    @classmethod
    def plain(cls, n_logits: int, like: Tensor) -> SoftmaxBasis:
        """Make one basis for all genes, for what is the same in any such coordinates.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> basis.root.shape
        torch.Size([2, 2])
        """
        contrasts = _contrasts(n_logits + 1).to(like)
        return cls(contrasts[:-1] - contrasts[-1])

    @property
    def inverse(self) -> Tensor:
        """Matrix from logits to the coordinates, ``L⁻¹ = L' (I − 11' / K)``."""
        turned = self.root.mT
        return turned - turned.sum(-1, keepdim=True) / (turned.shape[-1] + 1)

    @property
    def log_volume(self) -> float:
        """Log of the volume that the coordinates stretch, ``log |L|`` = ½ log K."""
        return 0.5 * math.log(self.root.shape[-1] + 1)

    def select(self, genes: Tensor) -> SoftmaxBasis:
        """Take the coordinates of some of the genes.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> counts = torch.tensor([[[5.0, 2.0, 1.0]], [[1.0, 2.0, 5.0]]], dtype=torch.float64)
        >>> SoftmaxBasis.of(counts).select(torch.tensor([1])).root.shape
        torch.Size([1, 1, 2, 2])
        """
        return self if self.root.ndim == 2 else SoftmaxBasis(planar(self.root[genes]))

    def logits(self, u: Tensor) -> Tensor:
        """Logits of given coordinates, ``L u``: ``(..., B, N, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> u = torch.ones(1, 4, 2, dtype=torch.float64)
        >>> basis.logits(u).shape
        torch.Size([1, 4, 2])
        """
        return planar_matvec(self.root, u)

    def coordinates(self, logits: Tensor) -> Tensor:
        """Coordinates of given logits, ``L⁻¹ η``: ``(..., B, N, Q)``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> u = torch.ones(1, 4, 2, dtype=torch.float64)
        >>> torch.allclose(basis.coordinates(basis.logits(u)), u)
        True
        """
        return planar_matvec(self.inverse, logits)

    def logit_covariance(self, covariance: Tensor) -> Tensor:
        """Covariance of the logits from covariances ``(B, N, Q, Q)`` of u, ``L C L'``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> identity = torch.eye(2, dtype=torch.float64).expand(1, 1, 2, 2)
        >>> basis.logit_covariance(identity).squeeze().round(decimals=6)  # I + 11'
        tensor([[2., 1.],
                [1., 2.]], dtype=torch.float64)
        """
        return congruent(self.root, covariance)

    def information(self, information: Tensor) -> Tensor:
        """Information ``(B, N, Q, Q)`` of the logits as that of u: ``L' W L``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> information = torch.eye(2, dtype=torch.float64).expand(1, 1, 2, 2)
        >>> basis.information(information).shape
        torch.Size([1, 1, 2, 2])
        """
        return congruent(self.root.mT, information)

    def logit_slope(self, slope: Tensor) -> Tensor:
        """Derivatives ``(B, N, Q)`` in u as such in η: ``L⁻ᵀ s``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> basis.logit_slope(torch.ones(1, 4, 2, dtype=torch.float64)).shape
        torch.Size([1, 4, 2])
        """
        return planar_matvec(self.inverse.mT, slope)

    def logit_precision(self, precision: Tensor) -> Tensor:
        """Precision of the logits from precisions ``(B, N, Q, Q)`` of u, ``L⁻ᵀ P L⁻¹``.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> identity = torch.eye(2, dtype=torch.float64).expand(1, 1, 2, 2)
        >>> product = basis.logit_precision(identity) @ basis.logit_covariance(identity)
        >>> torch.allclose(product, identity)
        True
        """
        return congruent(self.inverse.mT, precision)

    def logit_information(self, information: Tensor) -> Tensor:
        """Information ``(B, C Q, C Q)`` of coefficients of u, predictors fastest, as that of coefficients of η.

        Examples
        --------
        >>> import torch
        >>> from pyrosplice.effects import SoftmaxBasis
        >>> basis = SoftmaxBasis.plain(2, torch.zeros(1, dtype=torch.float64))
        >>> basis.logit_information(torch.eye(4, dtype=torch.float64)[None]).shape  # of two coefficients
        torch.Size([1, 4, 4])
        """
        n_genes, size = information.shape[:2]
        q = self.root.shape[-1]
        inverse = self.inverse.expand(n_genes, 1, q, q)[:, 0]
        blocks = information.reshape(n_genes, size // q, q, size // q, q)
        return torch.einsum("bqk,bcqdr,brl->bckdl", inverse, blocks, inverse).reshape(n_genes, size, size)


def check_isoform_effect(
    name: str, *, share_variance: bool, likelihood: Likelihood, counts: Tensor | None = None
) -> None:
    """Raise unless there is such an effect, and it has a meaning beside the other options.

    Parameters
    ----------
    name
        ``"independent"`` or ``"symmetric"``.
    share_variance
        A symmetric effect has one variance.
    likelihood
        A likelihood whose predictors are to be logits against the last isoform. Of one that somebody wrote and that
        says its ``mean``, the log ratios of this must follow its predictors one for one, or isoforms be exchangeable in
        it.
    counts
        ``(G, N, K)``, where there are any; else for the least K that the likelihood is for.
    """
    check_option("isoform_effect", name, get_args(IsoformEffect))
    if name == "independent":
        return
    if not share_variance:
        raise InvalidArgumentError(
            "isoform_effect='symmetric': expected share_variance=True, found False: a variance of each logit is one of "
            "each isoform against the last, which has no symmetric form."
        )
    n_isos = likelihood.n_categories[0] if counts is None else counts.shape[-1]
    found = likelihood.n_predictors(n_isos)
    if found != n_isos - 1 or (counts is not None and not _follows_logits(likelihood, counts)):
        what = (
            f"has {found} predictor(s) of {n_isos} categories"
            if found != n_isos - 1
            else "has a mean whose log ratios to the last isoform do not follow its predictors"
        )
        raise InvalidArgumentError(
            f"isoform_effect='symmetric': expected a likelihood whose predictors are the logits of the isoforms "
            f"against the last one; {type(likelihood).__name__} {what}. Use isoform_effect='independent'."
        )


def basis_of(name: str, counts: Tensor) -> SoftmaxBasis | None:
    """Coordinates of an effect that is symmetric; None for one that is independent between the logits themselves."""
    return SoftmaxBasis.of(counts) if name == "symmetric" else None


def _contrasts(n_isos: int) -> Tensor:
    """Helmert's orthonormal contrasts ``(K, K − 1)``: each isoform but the first against the mean of those before."""
    before = torch.arange(1, n_isos, dtype=torch.float64)
    table = torch.triu(torch.ones(n_isos, n_isos - 1, dtype=torch.float64))
    table[torch.arange(1, n_isos), torch.arange(n_isos - 1)] = -before
    return table / (before * (before + 1)).sqrt()


def _ranks(counts: Tensor) -> Tensor:
    """Place of each isoform ``(B, K)``, the most frequent first; of equally frequent ones by their counts."""
    totals = counts.sum(1)
    order = totals.argsort(dim=-1, descending=True, stable=True)
    sizes = totals.gather(1, order)
    for gene in (sizes.diff(dim=-1) == 0).any(-1).nonzero()[:, 0].tolist():
        table = counts[gene].T.contiguous().cpu()
        keys = [(-float(row.sum()), -float(row.square().sum()), row.numpy().tobytes()) for row in table]
        order[gene] = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), device=order.device)
    return order.argsort(dim=-1)


def _follows_logits(likelihood: Likelihood, counts: Tensor) -> bool:
    """Whether, as far as the mean says, predictors are logits against the last isoform."""
    if is_ours(type(likelihood)) or not likelihood.states("mean"):
        return True
    bound, generator = likelihood.bind_start(len(counts), counts), torch.Generator().manual_seed(0)
    shape = (2, *counts.shape[:2], counts.shape[-1] - 1)
    one, other = torch.randn(shape, generator=generator, dtype=torch.float64).to(counts)
    means = bound.mean(one), bound.mean(other)
    first, second = (
        (mean[..., :-1] / mean[..., -1:]).log() - eta for mean, eta in zip(means, (one, other), strict=True)
    )
    if torch.allclose(first, second, rtol=0, atol=_SHARP):
        return True
    return all(
        torch.allclose(_swapped(means[0], k), bound.mean(_against(one, k)), rtol=0, atol=_SHARP)
        for k in range(counts.shape[-1] - 1)
    )


def _swapped(usage: Tensor, isoform: int) -> Tensor:
    """Usage ``(..., K)`` with an isoform and the last one exchanged."""
    order = list(range(usage.shape[-1]))
    order[isoform], order[-1] = order[-1], order[isoform]
    return usage[..., order]


def _against(logits: Tensor, isoform: int) -> Tensor:
    """Logits ``(..., K − 1)`` of isoforms that are exchanged in this way."""
    out = logits - logits[..., isoform, None]
    out[..., isoform] = -logits[..., isoform]
    return out
