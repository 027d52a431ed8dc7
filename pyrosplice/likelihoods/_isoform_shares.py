r"""Likelihoods of isoform usage beside the multinomial: two isoforms, and more variation than the multinomial has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyrosplice._linalg.blocks import matvec
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._rising import log_rising, rising_bend, rising_slope, rising_twist
from pyrosplice.likelihoods._softmax import draw_multinomial, usage_of


class Binomial(Multinomial):
    """Binomial with logit link: counts are (successes, failures), K = 2. The multinomial of two categories.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.likelihoods import Binomial
    >>> included = torch.tensor([6.0, 5.0, 8.0, 5.0])  # of ten reads an exon is in
    >>> model = MultinomGLM(likelihood=Binomial())
    >>> model.setup_data(torch.stack([included, 10 - included], -1)[None])
    >>> model.fit(quiet=True)
    >>> round(model.get_isoform_ratio()[0, 0, 0].item(), 6)
    0.6
    """

    name = "binomial"
    n_categories = (2, 2)


class DirichletMultinomial(Likelihood):
    r"""Dirichlet-multinomial with softmax link: usage varies between spots of equal predictor.

    .. math:: y_i \sim \operatorname{DirMult}(n_i, A p_i), \quad p_i = \operatorname{softmax}([\eta_i, 0])

    The variance is the multinomial's times :math:`(n_i + A) / (1 + A)`; A → ∞ is the multinomial.

    Parameters
    ----------
    concentration
        A, one a gene: a number, ``(G, 1)``, or None to estimate it (site ``concentration``).

    Notes
    -----
    In a mixed model, σ²(1 − θ) and 1 / A both describe variation that is independent between spots; data tell them
    apart only by how the variance grows with n. Hold one, or give them priors. A small A leaves a spot little
    information however many its counts, and Laplace's marginal likelihood then leans towards a σ and an A that are too
    small, by 0.2 posterior sds on average and up to 1 in 16 simulated genes of 36 spots: with both integrated over,
    Laplace's draws of the two do not pass calibration (``tests/studies/posterior_calibration.py``), those of the
    coefficients do. Those of ``method="importance"`` pass; look at ``pareto_k``, and compare with NUTS for genes of
    which it is above 0.7.
    Where data show no over-dispersion the likelihood is flat towards A = ∞, and the estimate is a large number.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.likelihoods import DirichletMultinomial
    >>> counts = torch.tensor([[[9.0, 1.0], [1.0, 9.0], [8.0, 2.0], [0.0, 10.0]]])  # far more uneven than chance
    >>> model = MultinomGLM(likelihood=DirichletMultinomial())
    >>> model.setup_data(counts)
    >>> model.fit(quiet=True)
    >>> bool(model.concentration < 2)
    True
    """

    name = "Dirichlet-multinomial"
    hyperparameters = {"concentration": 20.0}  # noqa: RUF012 (read-only by its annotation)

    def __init__(self, concentration: float | Tensor | None = None) -> None:
        self.concentration = concentration

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density, ``log n! − Σ log y! + log Γ(A) − log Γ(n + A) + Σ [log Γ(y + α) − log Γ(α)]``, α = A p."""
        total = counts.sum(-1)
        coefficient = torch.lgamma(total + 1) - torch.lgamma(counts + 1).sum(-1)
        return coefficient + self.log_kernel(counts, eta)

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density without the multinomial coefficient."""
        usage = (self.link_of(DirichletMultinomial) or usage_of)(eta)
        size, alpha = self._size(eta), self._alpha(usage)
        return log_rising(alpha, counts).sum(-1) - log_rising(size, counts.sum(-1))

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage of each isoform, ``softmax([η, 0])``."""
        return usage_of(eta)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a usage from the Dirichlet distribution, then molecules."""
        alpha = self._alpha(self.mean(eta)).clamp_min(1e-12)
        gamma = torch._standard_gamma(alpha.contiguous(), generator=generator).clamp_min(1e-300)
        return draw_multinomial(totals, gamma / gamma.sum(-1, keepdim=True), generator=generator)

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative in the logits, ``u_m − p_m Σ u`` with ``u = α (ψ(y + α) − ψ(α))``."""
        usage, _, slope = self._slope(counts, eta)
        return (slope - usage * slope.sum(-1, keepdim=True))[..., :-1]

    def curvature(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative in the logits.

        ``−v_m δ_ml + v_m p_l + p_m v_l + p_m (δ_ml − p_l) Σu − p_m p_l Σv`` with ``v = du / d log α``.
        """
        usage, _, slope, second = self._parts(counts, eta)
        bend = slope + second
        total, p, v = slope.sum(-1)[..., None, None], usage[..., :-1], bend[..., :-1]
        outer = v.unsqueeze(-1) * p.unsqueeze(-2)
        square = p.unsqueeze(-1) * p.unsqueeze(-2)
        diagonal = torch.diag_embed(p * total.squeeze(-1) - v)
        return diagonal + outer + outer.mT - square * (total + bend.sum(-1)[..., None, None])

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        """Derivative of the information: ``g_m − p_m Σg + p_m (h_m − p'h)``, g in log α and h, at fixed α, in p."""
        parts = self._parts(counts, eta)
        usage, (own, through) = parts[0], self._trace_gradient(counts, parts, weight)
        through = usage * (through - (usage * through).sum(-1, keepdim=True))
        return (own - usage * own.sum(-1, keepdim=True) + through)[..., :-1]

    def hyper_gradient(
        self, counts: Tensor, eta: Tensor, names: Sequence[str], along: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Derivatives in the log of the concentration at fixed η.

        ``Σu − A [ψ(n + A) − ψ(A)] + a' (v − p Σv) − Σg / 2`` of each spot; of its first two terms the squares.
        """
        usage, _, slope, second = parts = self._parts(counts, eta)
        size = self._size(eta)
        single = whole = slope.sum(-1) - size * rising_slope(size, counts.sum(-1))
        if weight is not None:
            whole = whole - 0.5 * self._trace_gradient(counts, parts, weight)[0].sum(-1)
        if along is not None:
            bend = slope + second
            whole = whole + (along * (bend - usage * bend.sum(-1, keepdim=True))[..., :-1]).sum(-1)
        return whole.sum(-1, keepdim=True), single.square().sum(-1, keepdim=True)

    @staticmethod
    def _trace_gradient(counts: Tensor, parts: tuple[Tensor, ...], weight: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of ``tr(C W)`` in log α and, at fixed α, in p: each ``(..., N, K)``."""
        usage, alpha, slope, second = parts
        bend = slope + second
        twist = bend + 2 * second + alpha**3 * rising_twist(alpha, counts)
        diagonal = pad(torch.diagonal(weight, dim1=-2, dim2=-1), (0, 1))
        product, turned = (pad(matvec(weight, x[..., :-1]), (0, 1)) for x in (usage, bend))
        square = (product * usage).sum(-1, keepdim=True)
        total, both = slope.sum(-1, keepdim=True), (slope + bend).sum(-1, keepdim=True)
        own = ((diagonal * usage).sum(-1, keepdim=True) - square) * bend + (2 * product - diagonal - square) * twist
        return own, diagonal * total + 2 * turned - 2 * product * both

    def _parts(self, counts: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Usage p, α, u and v − u, each ``(..., N, K)``."""
        usage, alpha, slope = self._slope(counts, eta)
        return usage, alpha, slope, alpha.square() * rising_bend(alpha, counts)

    def _slope(self, counts: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Usage p, α and u, each ``(..., N, K)``."""
        usage = usage_of(eta)
        alpha = self._alpha(usage)
        return usage, alpha, alpha * rising_slope(alpha, counts)

    def _size(self, eta: Tensor) -> Tensor:
        return torch.as_tensor(self.concentration, dtype=eta.dtype, device=eta.device)

    def _alpha(self, usage: Tensor) -> Tensor:
        size = self._size(usage)
        return (size.unsqueeze(-1) if size.ndim else size) * usage


class BetaBinomial(DirichletMultinomial):
    """Beta-binomial with logit link: counts are (successes, failures), K = 2.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.likelihoods import BetaBinomial
    >>> included = torch.tensor([9.0, 1.0, 8.0, 0.0])  # of ten reads an exon is in
    >>> model = MultinomGLM(likelihood=BetaBinomial())
    >>> model.setup_data(torch.stack([included, 10 - included], -1)[None])
    >>> model.fit(quiet=True)
    >>> model.concentration.shape
    torch.Size([1, 1])
    """

    name = "beta-binomial"
    n_categories = (2, 2)
