"""Covariates whose size is far from one, named where a model of a person's own cannot be fitted with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, RefusedModelError

FAR = (
    100.0  # zero-inflated Poisson, log link: with columns of sd 10 fits end as with 1, with 1,000 first points overflow
)


@contextmanager
def sizes_named(design: Tensor, name: str) -> Iterator[None]:
    """Say which columns of a design ``(N, P)`` are of a size far from one, in what the model of that name raises."""
    try:
        yield
    except (ArithmeticError, RuntimeError, ValueError) as error:
        words = _far_from_one(design)
        if not words:
            raise
        if isinstance(error, InvalidArgumentError):
            kind = RefusedModelError if isinstance(error, RefusedModelError) else InvalidArgumentError
            raise kind(f"{error} {words}") from error
        first = str(error).partition("\n")[0][:200]
        raise InvalidArgumentError(f"model: {name} raised {type(error).__name__}: {first} ... {words}") from error


def warn_of_sizes(design: Tensor, name: str, converged: Tensor) -> None:
    """Warn where a fit has not converged and columns of the design are of a size far from one."""
    words = _far_from_one(design)
    if words and not bool(converged.all()):
        lost = int((~converged).sum())
        warnings.warn(f"model: {lost} of {len(converged)} genes of {name} have not converged. {words}", stacklevel=5)


def _far_from_one(design: Tensor) -> str:
    size = design.square().mean(0).sqrt() if len(design) else design.new_zeros(design.shape[1])
    far = {column: float(s) for column, s in enumerate(size) if s > FAR or 0 < s < 1 / FAR}
    if not far:
        return ""
    sizes = ", ".join(f"column {column}: {s:.3g}" for column, s in far.items())
    return (
        f"The design has columns of a size far from one ({sizes}), and a model of your own is searched in coefficients "
        "as they are: give such covariates in units of about their standard deviation."
    )
