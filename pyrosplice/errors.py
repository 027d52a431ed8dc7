"""The exceptions of the library. Each is also the builtin that callers of the documented interfaces catch."""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

Call = TypeVar("Call", bound=Callable[..., Any])
MOST = 2**63 - 1  # that tensors and their generators take


class InvalidArgumentError(ValueError, AssertionError):
    """An argument has a value that it must not have. Says which, what was found, what was expected.

    Examples
    --------
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.errors import InvalidArgumentError
    >>> try:
    ...     MultinomGLM(fitting_method="newtn")
    ... except InvalidArgumentError as error:
    ...     print(error)
    fitting_method: expected one of 'gd', 'iwls', 'newton', found 'newtn'.
    """


class UnknownOptionError(InvalidArgumentError, TypeError):
    """A call was given an option that it does not have. Lists what there is.

    Examples
    --------
    >>> from pyrosplice import GaussianMixture
    >>> GaussianMixture(2, tolerance=0.1)
    Traceback (most recent call last):
        ...
    pyrosplice.errors.UnknownOptionError: GaussianMixture: no option 'tolerance'; it takes num_components, ...
    """


class NotReadyError(RuntimeError, ValueError):
    """Something was asked for before the step that makes it (``setup_data``, ``fit``, a test).

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.errors import NotReadyError
    >>> try:
    ...     SplisosmGLMM().fit()
    ... except NotReadyError as error:
    ...     print(error)
    There are no data yet: call setup_data(adata) first.
    """


class UnreliableWarning(UserWarning):
    """Results have p-values that may not hold, and say which.

    Examples
    --------
    >>> import warnings
    >>> from pyrosplice.errors import UnreliableWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", UnreliableWarning)  # stop a script rather than report such p-values
    ...     warnings.warn("p-values that may not hold", UnreliableWarning)
    Traceback (most recent call last):
        ...
    pyrosplice.errors.UnreliableWarning: p-values that may not hold
    """


class NoResultsError(InvalidArgumentError, NotReadyError):
    """A result was asked for that no call has made, or that the fit at hand cannot give. Says which call would.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM()
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=2, seed=0))
    >>> model.get_formatted_test_results("sv")
    Traceback (most recent call last):
        ...
    pyrosplice.errors.NoResultsError: test_type='sv': there are no results yet; call
    test_spatial_variability() first.
    """


class NotStatedError(InvalidArgumentError, NotImplementedError):
    """A class that a user wrote does not say what is needed. Names the method to override.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.likelihoods import Likelihood
    >>> class Mislabelled(Likelihood):
    ...     def log_prob(self, counts, eta):  # one in twenty is of any isoform
    ...         usage = torch.cat([eta, torch.zeros_like(eta[..., :1])], -1).softmax(-1)
    ...         usage = 0.95 * usage + 0.05 / counts.shape[-1]
    ...         ways = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
    ...         return ways + (counts * usage.log()).sum(-1)
    >>> Mislabelled().require("mean")
    Traceback (most recent call last):
        ...
    pyrosplice.errors.NotStatedError: likelihood: Mislabelled does not say what it expects; override
    Likelihood.mean.
    """


class RefusedModelError(InvalidArgumentError, NotImplementedError):
    """A Pyro model has a part that the method asked for cannot do. Names the site or plate, and what would do.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyrosplice.errors import RefusedModelError
    >>> from pyrosplice.guides import AutoNewtonMAP
    >>> def walk(y):
    ...     with pyro.plate("genes", 2, dim=-1):
    ...         level = pyro.sample("level", dist.Normal(0.0, torch.ones(2)))
    ...         pyro.sample("y", dist.Normal(level.flip(0), 1.0), obs=y)  # each gene depends on the other
    >>> try:
    ...     AutoNewtonMAP(walk).fit(torch.zeros(2))
    ... except RefusedModelError as error:
    ...     print("genes" in str(error))
    True
    """


class ModelFileError(ValueError):
    """A file is not one that this version of the library can read: truncated, foreign, or newer.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.errors import ModelFileError
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "usage.safetensors").write_text("not a model")
    ...     try:
    ...         SplisosmGLMM.load(f"{folder}/usage.safetensors")
    ...     except ModelFileError:
    ...         print("not a file of ours")
    not a file of ours
    """


class NoModelFileError(ModelFileError, FileNotFoundError):
    """There is no file where a model was to be read from. Says where.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.errors import NoModelFileError
    >>> try:
    ...     SplisosmGLMM.load("nowhere.safetensors")
    ... except NoModelFileError as error:
    ...     print(error)
    path: expected a file, 'nowhere.safetensors' is not there.
    """


class NonSpatialWarning(UserWarning):
    """The spatial graph is not what the user probably wanted (isolated spots, many components).

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from pyrosplice.errors import NonSpatialWarning
    >>> from pyrosplice.spatial import knn_graph, warn_if_disconnected
    >>> spots = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1]])
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_if_disconnected(knn_graph(spots, k_neighbors=1))
    >>> issubclass(caught[0].category, NonSpatialWarning)
    True
    """


def check_option(name: str, value: object, allowed: Collection[Any]) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is one of ``allowed``.

    Examples
    --------
    >>> from pyrosplice.errors import check_option
    >>> check_option("graph", "union", ("mutual", "union"))
    >>> check_option("graph", "ring", ("mutual", "union"))
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: graph: expected one of 'mutual', 'union', found 'ring'.
    """
    if not _is_among(value, allowed):
        expected = f"one of {', '.join(sorted(map(repr, allowed)))}" if allowed else "none"
        raise InvalidArgumentError(f"{name}: expected {expected}, found {value!r}.")


def check_known(name: str, value: object, known: Collection[Any], what: str) -> None:
    """Raise :class:`InvalidArgumentError` unless ``value`` is one of the ``known`` names; ``what`` says what of.

    Examples
    --------
    >>> from pyrosplice.errors import check_known
    >>> check_known("gene", "Actb", ["Myl6", "Cdc42"], "one of the genes")
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: gene: expected one of the genes ['Myl6', 'Cdc42'], found 'Actb'.
    """
    if not _is_among(value, known):
        raise InvalidArgumentError(f"{name}: expected {what} {list(known)}, found {value!r}.")


def _is_among(value: object, allowed: Collection[Any]) -> bool:
    try:
        return not getattr(value, "ndim", 0) and bool(value in allowed)
    except (TypeError, ValueError):  # what has no hash, or no truth
        return False


def check_switches(**switches: Any) -> None:
    """Raise :class:`InvalidArgumentError` unless every value is True or False.

    Examples
    --------
    >>> from pyrosplice.errors import check_switches
    >>> check_switches(quiet=True)
    >>> check_switches(quiet="no")
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: quiet: expected one of False, True, found 'no'.
    """
    for name, value in switches.items():
        check_option(name, value, (True, False))


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is one real number, of Python or NumPy, and no boolean.

    Examples
    --------
    >>> from pyrosplice.errors import is_number
    >>> is_number(2), is_number(True), is_number("2")
    (True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether ``value`` is a whole number of at least ``least``, of Python or NumPy, and no boolean.

    Examples
    --------
    >>> from pyrosplice.errors import is_whole
    >>> is_whole(2, least=1), is_whole(2.0, least=1), is_whole(0, least=1)
    (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def listed(names: Iterable[Any], *, near: str = "", most: int = 20) -> str:
    """List names for an error message, the first or those most like ``near`` where there are many.

    Examples
    --------
    >>> from pyrosplice.errors import listed
    >>> listed(["a", "b"])
    "['a', 'b']"
    >>> listed((f"gene_{i}" for i in range(100)), most=3)
    "['gene_0', 'gene_1', 'gene_2', …] (100 in all)"
    """
    every = [str(name) for name in names]
    if len(every) <= most:
        return str(every)
    close = difflib.get_close_matches(near, every, n=most // 2, cutoff=0.3) if near else []
    shown = ", ".join(map(repr, close or every[:most]))
    return f"[{shown}, …] ({len(every)} in all)"


def call_hint(found: object, kind: type) -> str:
    """How to make an object of a class of that ``kind`` that was given in its place; "" for anything else.

    Examples
    --------
    >>> from pyrosplice.likelihoods import Likelihood, Poisson
    >>> from pyrosplice.errors import call_hint
    >>> call_hint(Poisson, Likelihood)
    ' (call it: Poisson())'
    """
    return f" (call it: {found.__name__}())" if isinstance(found, type) and issubclass(found, kind) else ""


def own_options_only(call: Call) -> Call:
    """Make ``call`` refuse options that it does not have with :class:`UnknownOptionError`, which lists its own.

    A call that takes any option reads them itself, and comes back as it is.

    Examples
    --------
    >>> from pyrosplice.errors import own_options_only
    >>> @own_options_only
    ... def fit(counts, n_iter=10):
    ...     return n_iter
    >>> fit([1, 2], n_iter=3)
    3
    >>> fit([1, 2], iterations=3)
    Traceback (most recent call last):
        ...
    pyrosplice.errors.UnknownOptionError: fit: no option 'iterations'; it takes counts, n_iter.
    """
    check = check_of_options(call)
    if check is None:
        return call

    @functools.wraps(call)
    def checked(*args: Any, **options: Any) -> object:
        check(args, options)
        return call(*args, **options)

    return checked  # type: ignore[return-value]


def check_of_options(call: Callable[..., Any]) -> Callable[[tuple[Any, ...], Mapping[str, Any]], None] | None:
    """What raises :class:`UnknownOptionError` for options that ``call`` does not have; None where it takes any.

    Examples
    --------
    >>> from pyrosplice.errors import check_of_options
    >>> def fit(counts, n_iter=10):
    ...     return n_iter
    >>> check = check_of_options(fit)
    >>> check((), {"n_iter": 3})
    >>> check((), {"iterations": 3})
    Traceback (most recent call last):
        ...
    pyrosplice.errors.UnknownOptionError: fit: no option 'iterations'; it takes counts, n_iter.
    """
    described = inspect.signature(call).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in described):
        return None
    names = [p.name for p in described if p.name != "self"]
    is_method = len(names) < len(described)

    def check(args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in names:
                title = f"{type(args[0]).__name__}.{call.__name__}" if is_method else call.__name__
                title, own = title.removesuffix(".__init__"), ", ".join(names) or "none"
                raise UnknownOptionError(f"{title}: no option {name!r}; it takes {own}.")

    return check


def check_integer(name: str, value: object, *, least: int = 1) -> int:
    """Read ``value`` as an int; :class:`InvalidArgumentError` unless it is whole (:func:`is_whole`), of 63 bits.

    Examples
    --------
    >>> from pyrosplice.errors import check_integer
    >>> check_integer("n_genes", 5)
    5
    >>> check_integer("n_genes", 0)
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: n_genes: expected a whole number of at least 1, found 0.
    """
    if not is_whole(value, least):
        raise InvalidArgumentError(f"{name}: expected a whole number of at least {least}, found {value!r}.")
    if int(value) > MOST:
        raise InvalidArgumentError(f"{name}: expected a whole number of at most {MOST}, found {value!r}.")
    return int(value)


def check_share(name: str, value: object, *, ends: bool = False) -> float:
    """Read ``value`` as a float; :class:`InvalidArgumentError` unless it is in (0, 1), with ``ends`` in [0, 1].

    Examples
    --------
    >>> from pyrosplice.errors import check_share
    >>> check_share("level", 0.95)
    0.95
    >>> check_share("level", 95)
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: level: expected a number between 0 and 1, found 95.
    """
    if not is_number(value) or not (0 <= value <= 1 if ends else 0 < value < 1):
        expected = "in [0, 1]" if ends else "between 0 and 1"
        raise InvalidArgumentError(f"{name}: expected a number {expected}, found {value!r}.")
    return float(value)


def check_number(name: str, value: object, *, least: float = 0.0) -> float:
    """Read ``value`` as a float; :class:`InvalidArgumentError` unless it is finite and at least ``least``.

    Examples
    --------
    >>> from pyrosplice.errors import check_number
    >>> check_number("sigma", 0.5)
    0.5
    >>> check_number("sigma", float("inf"))
    Traceback (most recent call last):
        ...
    pyrosplice.errors.InvalidArgumentError: sigma: expected a number of at least 0, found inf.
    """
    if not is_number(value) or not least <= float(value) < math.inf:
        raise InvalidArgumentError(f"{name}: expected a number of at least {least:g}, found {value!r}.")
    return float(value)
