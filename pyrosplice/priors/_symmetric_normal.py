r"""Normal prior of logits in which isoforms have no order.

Independent priors of the logits treat the last isoform in its own way. Here the isoforms have independent effects on
the scale of the softmax, so that the log odds of *any* two of them are :math:`N(0, s^2)`: for the K − 1 logits

.. math:: N(0,\ \tfrac{s^2}{2} (I + 11')).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.errors import InvalidArgumentError


class SymmetricNormal(TorchDistribution):
    """Prior of ``beta`` or ``bias_eta`` under which the log odds of any two isoforms are ``Normal(0, scale)``.

    As it is given to ``priors=``, for genes of any number of isoforms, it is the distribution of one log odds.

    Parameters
    ----------
    scale
        s, positive; one for each covariate, ``(P, 1)``, or one for all.
    n_logits
        Q, for the joint distribution of the logits: event shape ``(Q,)``. None (default): of a single one.

    Examples
    --------
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.priors import SymmetricNormal
    >>> model = MultinomGLM(priors={"beta": SymmetricNormal(1.0), "bias_eta": SymmetricNormal(3.0)})
    >>> model.priors["beta"]
    SymmetricNormal(scale: 1.0)
    """

    arg_constraints = {"scale": constraints.positive}  # noqa: RUF012 (torch's own declaration)
    has_rsample = True

    def __init__(
        self, scale: float | Tensor, n_logits: int | None = None, *, validate_args: bool | None = None
    ) -> None:
        self.scale, self.n_logits = torch.as_tensor(scale, dtype=torch.float64), n_logits
        if not bool(((self.scale > 0) & torch.isfinite(self.scale)).all()):
            raise InvalidArgumentError(f"scale: expected positive finite numbers, found {scale!r}.")
        event = () if n_logits is None else (n_logits,)
        super().__init__(self.scale.shape, torch.Size(event), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The real numbers."""
        return constraints.real if self.n_logits is None else constraints.independent(constraints.real, 1)

    def of_logits(self, n_logits: int) -> SymmetricNormal:
        """Joint distribution of ``n_logits`` of them; a last dimension of ``scale`` is that of the logits.

        Examples
        --------
        >>> from pyrosplice.priors import SymmetricNormal
        >>> prior = SymmetricNormal(1.0).of_logits(3)  # of a gene with four isoforms
        >>> prior.event_shape
        torch.Size([3])
        """
        scale = self.scale
        if scale.ndim and scale.shape[-1] not in (1, n_logits):
            raise InvalidArgumentError(f"scale: expected shape (..., 1), found {tuple(scale.shape)}.")
        if scale.ndim:
            if not bool((scale == scale[..., :1]).all()):
                raise InvalidArgumentError("scale: expected the same number for all logits of a covariate.")
            scale = scale[..., 0]
        return SymmetricNormal(scale, n_logits, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SymmetricNormal:
        """Copy the distribution to a larger batch shape."""
        return SymmetricNormal(self.scale.expand(torch.Size(batch_shape)), self.n_logits, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, constants included."""
        if self.n_logits is None:
            q, square, volume = 1, value.square() / self.scale.square(), 0.0
        else:
            q, spread = self.n_logits, value.square().sum(-1) - value.sum(-1).square() / (self.n_logits + 1)
            square, volume = 2 * spread / self.scale.square(), math.log(q + 1) - q * math.log(2)
        return -0.5 * (square + q * math.log(2 * math.pi) + volume) - q * self.scale.log()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw values, differentiable in the scale."""
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.scale.dtype)
        if self.n_logits is None:
            return noise * self.scale
        root = SoftmaxBasis.plain(self.n_logits, noise).root
        return noise @ root.mT * (self.scale / 2**0.5).unsqueeze(-1)
