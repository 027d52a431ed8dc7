"""A fitted Gaussian mixture as a scriptable torch module."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, CovarianceType
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option


@dataclass(frozen=True)
class GaussianMixtureModelConfig:
    """Shape of a mixture: components M, features D, and the type of its covariances.

    Examples
    --------
    >>> from pyrosplice import GaussianMixtureModel, GaussianMixtureModelConfig
    >>> model = GaussianMixtureModel(GaussianMixtureModelConfig(3, 2, "diag"))
    >>> model.means.shape, model.precisions_cholesky.shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    num_components: int
    num_features: int
    covariance_type: CovarianceType

    def __post_init__(self) -> None:
        check_integer("num_components", self.num_components)
        check_integer("num_features", self.num_features)
        check_option("covariance_type", self.covariance_type, COVARIANCE_TYPES)


class GaussianMixtureModel(nn.Module):
    r"""Density of a Gaussian mixture, with :math:`U_m U_m^\top = \Sigma_m^{-1}` kept instead of the covariances.

    A new one has equal weights, means at zero and unit covariances.

    Attributes
    ----------
    component_probs
        Weights ``(M,)``.
    means
        ``(M, D)``.
    precisions_cholesky
        Upper triangular U: full ``(M, D, D)``, tied ``(D, D)``; its diagonal: diag ``(M, D)``, spherical ``(M,)``.
    config
        :class:`GaussianMixtureModelConfig`.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import GaussianMixture
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> mixture = GaussianMixture(2, random_state=0).fit(x)
    >>> model = mixture.model_
    >>> model.component_probs.shape, model.means.shape, model.precisions_cholesky.shape
    (torch.Size([2]), torch.Size([2, 2]), torch.Size([2, 2]))
    """

    component_probs: Tensor
    means: Tensor
    precisions_cholesky: Tensor

    def __init__(self, config: GaussianMixtureModelConfig) -> None:
        super().__init__()
        if not isinstance(config, GaussianMixtureModelConfig):
            raise InvalidArgumentError(f"config: expected a GaussianMixtureModelConfig, found {type(config).__name__}.")
        self.config = config
        self.covariance_type: str = config.covariance_type
        m, d = config.num_components, config.num_features
        eye = torch.eye(d)
        units = {"full": eye.repeat(m, 1, 1), "tied": eye, "diag": torch.ones(m, d), "spherical": torch.ones(m)}
        self.register_buffer("component_probs", torch.full((m,), 1 / m))
        self.register_buffer("means", torch.zeros(m, d))
        self.register_buffer("precisions_cholesky", units[config.covariance_type])

    @classmethod
    def from_parameters(cls, parameters: MixtureParameters, dtype: torch.dtype) -> Self:
        """Make the module of one mixture's parameters.

        Examples
        --------
        >>> import torch
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> again = type(mixture.model_).from_parameters(mixture.model_.parameters_of(), torch.float64)
        >>> again.means.dtype
        torch.float64
        """
        m, d = parameters.means.shape
        kind = parameters.covariance_type
        model = cls(GaussianMixtureModelConfig(m, d, kind))
        model.component_probs = parameters.weights.to(dtype)
        model.means = parameters.means.to(dtype)
        if kind in ("full", "tied"):
            factor = torch.linalg.cholesky(parameters.covariances)
            eye = torch.eye(d, dtype=factor.dtype, device=factor.device).expand_as(factor)
            root = torch.linalg.solve_triangular(factor, eye, upper=False).mT
        else:
            root = parameters.covariances.rsqrt()
        model.precisions_cholesky = root.to(dtype).contiguous()
        return model

    def extra_repr(self) -> str:
        """Size and kind, for the module's text."""
        m, d = self.means.shape
        return f"{m} components, {d} features, {self.covariance_type} covariances"

    def parameters_of(self) -> MixtureParameters:
        """The parameters, in float64.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.model_.parameters_of().means.dtype
        torch.float64
        """
        weights, means, covariances = self.component_probs.double(), self.means.double(), self.covariances.double()
        return MixtureParameters(weights, means, covariances, self.config.covariance_type)

    @property
    def covariances(self) -> Tensor:
        """Covariances: full ``(M, D, D)``, tied ``(D, D)``, diag ``(M, D)``, spherical ``(M,)``."""
        if self.covariance_type == "full" or self.covariance_type == "tied":
            root = torch.linalg.inv(self.precisions_cholesky)
            return torch.matmul(root.transpose(-1, -2), root)
        return self.precisions_cholesky.square().reciprocal()

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Log responsibilities ``(N, M)`` and log densities ``(N,)`` of cells ``(N, D)``."""
        m = self.means.size(0)
        d = self.means.size(1)
        if data.dim() != 2 or data.size(1) != d:
            raise ValueError(f"data: expected cells (N, {d}), found shape {data.shape}.")
        joint = torch.empty(data.size(0), m, dtype=self.means.dtype, device=data.device)
        for k in range(m):
            y, log_det = self._whitened(data - self.means[k], k)
            joint[:, k] = log_det - 0.5 * y.square().sum(1)
        joint = joint + self.component_probs.log() - 0.5 * d * math.log(2 * math.pi)
        return torch.log_softmax(joint, dim=1), torch.logsumexp(joint, dim=1)

    def _whitened(self, gap: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.covariance_type == "full":
            root = self.precisions_cholesky[k]
            return torch.mm(gap, root), root.diagonal().log().sum()
        if self.covariance_type == "tied":
            return torch.mm(gap, self.precisions_cholesky), self.precisions_cholesky.diagonal().log().sum()
        root = self.precisions_cholesky[k]
        if self.covariance_type == "diag":
            return gap * root, root.log().sum()
        return gap * root, root.log() * gap.size(1)

    @torch.jit.export
    def place(self, component: Tensor, noise: Tensor) -> Tensor:
        """Cells ``(N, D)`` of given components ``(N,)`` made from standard normal ``noise`` ``(N, D)``.

        Noise of another type is taken in that of the means, which the cells then have.

        Examples
        --------
        >>> import torch
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> cells = mixture.model_.place(torch.tensor([0, 1]), torch.zeros_like(mixture.model_.means))
        >>> bool(torch.allclose(cells, mixture.model_.means))  # without noise
        True
        """
        noise = noise.to(self.means.dtype)
        out = torch.empty_like(noise)
        for k in range(self.means.size(0)):
            mine = component == k
            z = noise[mine]
            if self.covariance_type == "full":
                z = torch.mm(z, torch.linalg.inv(self.precisions_cholesky[k]))
            elif self.covariance_type == "tied":
                z = torch.mm(z, torch.linalg.inv(self.precisions_cholesky))
            else:
                z = z / self.precisions_cholesky[k]
            out[mine] = self.means[k] + z
        return out

    @torch.jit.export
    def sample(self, num_datapoints: int) -> Tensor:
        """Draw cells ``(N, D)`` with torch's generator.

        Examples
        --------
        >>> import torch
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> _ = torch.manual_seed(0)
        >>> mixture.model_.sample(5).shape
        torch.Size([5, 2])
        """
        if num_datapoints < 1:
            raise ValueError(f"num_datapoints: expected a whole number of at least 1, found {num_datapoints}.")
        component = torch.multinomial(self.component_probs, num_datapoints, replacement=True)
        noise = torch.randn(num_datapoints, self.means.size(1), dtype=self.means.dtype, device=self.means.device)
        return self.place(component, noise)
