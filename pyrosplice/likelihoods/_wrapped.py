"""A likelihood around another one."""

from __future__ import annotations

from pyrosplice.likelihoods._contract import Likelihood


class Wrapped(Likelihood):
    """What a likelihood that evaluates another one by its own methods has from it: claims and hyper-parameters.

    Parameters
    ----------
    inner
        The other one.
    """

    def __init__(self, inner: Likelihood) -> None:
        self.inner = inner
        self.name, self.n_categories = inner.name, inner.n_categories
        self.additive, self.conditional, self.log_concave = inner.additive, inner.conditional, inner.log_concave
        self.hyperparameters = inner.hyperparameters
        for name in inner.hyperparameters:
            setattr(self, name, getattr(inner, name))

    def n_predictors(self, n_isos: int) -> int:
        """Number Q of predictors."""
        return self.inner.n_predictors(n_isos)

    def states(self, method: str) -> bool:
        """Whether ``mean`` or ``sample`` is this density's."""
        return self.inner.states(method)

    def __repr__(self) -> str:
        return repr(self.inner)
