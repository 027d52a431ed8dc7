"""Whether a Pyro model that somebody wrote is the one that an engine maximises: told by numbers, not by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import pyro
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyrosplice._overrides import is_ours
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.guides._first_points import ModelTrace, Site, is_subsample

SHARP = 1e-6  # nats that log densities of the same model may differ by (1e-9 of their size)
TRIES = 2
FARTHEST = (1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12)  # times a value and its opposite: a bound lies between two of them


def overridden(kind: type) -> tuple[type, list[str]]:
    """The nearest class of this library among a class and its ancestors, and the names that those before it define."""
    line = kind.__mro__
    shipped = next(place for place, ancestor in enumerate(line) if is_ours(ancestor))
    names = {name for ancestor in line[:shipped] for name in vars(ancestor)}
    return line[shipped], sorted(name for name in names if not name.startswith("__") or name == "__call__")


def require_same_density(
    program: Callable[..., Any],
    shipped: Callable[..., Any],
    points: Callable[[torch.Generator], Mapping[str, Tensor]],
    *data: Tensor,
) -> None:
    """Raise unless a Pyro model has the sites and the log density of the shipped one that the engine knows.

    Parameters
    ----------
    program, shipped, points, data
        As of :func:`difference_from`.

    Raises
    ------
    InvalidArgumentError
        Other latent sites, or another density at a random point; names what the model's class overrides.
    """
    found = difference_from(program, shipped, points, *data)
    if found is not None:
        kind, names = overridden(type(program))
        what = f"{type(program).__name__} overrides {', '.join(names) or 'nothing'}, and fits follow {kind.__name__}"
        raise InvalidArgumentError(
            f"model: {what}: {found}. Fit it by pyrosplice.guides, or infer with Pyro (SVI, NUTS) on the model itself."
        )


def difference_from(
    program: Callable[..., Any],
    shipped: Callable[..., Any],
    points: Callable[[torch.Generator], Mapping[str, Tensor]],
    *data: Tensor,
) -> str | None:
    """Say in words how a Pyro model differs from the shipped one; None where density and latent sites are the same.

    Parameters
    ----------
    program, shipped
        Pyro models, called with ``data``.
    points
        Random values of the shipped model's latent sites; those without an entry need not be sampled.
    data
        What they are called with.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIES):
        values = points(generator)
        with torch.no_grad():
            known = _trace(shipped, values, data)
            try:
                trace = _trace(program, values, data)
            except RuntimeError as error:  # such as a product with a float32 matrix
                return f"it does not run with its sites at values in float64 ({error})"
            sites = {name for name, node in trace.nodes.items() if _is_latent(node) and name not in values}
            missing = [name for name, value in values.items() if value.numel() and name not in trace.nodes]
            if sites or missing:
                difference = [f"samples {name!r}, which is none of its sites" for name in sorted(sites)]
                difference += [f"does not sample {name!r}" for name in missing]
                return f"it {', '.join(difference)}"
            for name, value in values.items():
                supports = [one.nodes[name]["fn"].support for one in (known, trace) if name in one.nodes]
                if not same_support(supports[0], supports[-1], value):
                    return f"its {name!r} is in {supports[-1]} rather than in {supports[0]}"
            expected, found = float(known.log_prob_sum()), float(trace.log_prob_sum())
        if not abs(found - expected) <= SHARP * (1 + 1e-3 * abs(expected)):
            return f"at a random point its log density is {found:.6g} rather than {expected:.6g}"
    return None


def same_support(known: Constraint, other: Constraint, value: Tensor) -> bool:
    """Whether two sites may have the same values: told by which of some far and near ones each takes.

    A flat density is zero nats inside and outside of its bounds, so that only the supports tell it from another one.

    Parameters
    ----------
    known, other
        Supports.
    value
        A value of both, from which the others are made.
    """
    probes = [sign * size * value for size in FARTHEST for sign in (1, -1)]
    return all(bool(known.check(probe).all()) == bool(other.check(probe).all()) for probe in probes)


def _trace(program: Callable[..., Any], values: Mapping[str, Tensor], data: tuple[Tensor, ...]) -> ModelTrace:
    run = pyro.poutine.trace(pyro.poutine.condition(program, data=dict(values)))
    return cast(ModelTrace, run.get_trace(*data))


def _is_latent(node: Site) -> bool:
    sampled = node["type"] == "sample" and not node["is_observed"]
    return sampled and not is_subsample(node)


def random_values(
    shapes: Mapping[str, tuple[int, ...]], positive: Callable[[str], bool], generator: torch.Generator
) -> dict[str, Tensor]:
    """Moderate values of sites, genes first."""
    values = {}
    for name, shape in shapes.items():
        drawn = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        values[name] = drawn.exp() if positive(name) else drawn
    return values
