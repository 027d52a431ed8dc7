"""A list of random effects as a person gives it, of groups, of neighbourhoods, of single observations; in files too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from pyrosplice._io.codec import check_keys
from pyrosplice.effects._effect import Effect
from pyrosplice.effects._field import Field, Independent
from pyrosplice.effects._group_terms import Groups
from pyrosplice.errors import InvalidArgumentError, ModelFileError, call_hint

GivenEffect = Effect | Field | Independent
PLAIN: tuple[type[Any], ...] = (Groups, Field, Independent)  # effects that are no more than numbers and names


def read_effects(effects: object, space: object = None) -> tuple[GivenEffect, ...]:
    """Check a list of effects, or one alone, and a field that was given beside it.

    Raises
    ------
    InvalidArgumentError
        Something that is no effect; two fields, or two effects of every observation.
    """
    if isinstance(effects, (Effect, Field, Independent)):
        effects = (effects,)
    asked = [*effects] if isinstance(effects, Sequence) and not isinstance(effects, str) else [effects]
    given: list[GivenEffect] = []
    if space is not None and not isinstance(space, Field):
        raise InvalidArgumentError(
            f"space: expected a field, such as pyrosplice.effects.Field(k_neighbors=6), found {space!r}"
            f"{call_hint(space, Field)}."
        )
    for one in asked:
        if not isinstance(one, (Effect, Field, Independent)):
            raise InvalidArgumentError(
                f"effects: expected Groups, Independent, Field or an Effect of your own, found {one!r}"
                f"{call_hint(one, Effect)}."
            )
        given.append(one)
    given += [] if space is None else [space]
    n_fields = sum(isinstance(one, Field) for one in given)
    if n_fields > 1 or sum(isinstance(one, Independent) for one in given) > 1:
        raise InvalidArgumentError(
            f"effects: expected one field and one effect of every cell at most, found {given}. A field that "
            "multiplies a covariate stands in the place of the common one; groups may vary beside it."
        )
    return tuple(given)


def field_of(given: Sequence[GivenEffect]) -> Field | None:
    """The field among effects; None without one."""
    return next((one for one in given if isinstance(one, Field)), None)


def described(effect: GivenEffect | None) -> dict[str, object] | None:
    """An effect as JSON: its arguments, or, of one's own, only its name."""
    if effect is None:
        return None
    kind = type(effect)
    if kind not in PLAIN or (isinstance(effect, Field) and effect.covariance is not None):
        return {"kind": "own", "name": kind.__name__}
    names = (f.name for f in fields(cast(Any, kind)))
    return {"kind": kind.__name__, **{name: getattr(effect, name) for name in names}}


def saved_effects(effects: Sequence[GivenEffect], space: Field | None) -> dict[str, Any]:
    """The arguments ``effects`` and ``space`` of a constructor as JSON."""
    return {"effects": [described(one) for one in effects], "space": described(space)}


def restored(stored: object, given: Sequence[GivenEffect], path: str) -> GivenEffect | None:
    """Inverse of :func:`described`; one's own is among the ``given``.

    Raises
    ------
    ModelFileError
        It is not among them, or the file says something else than an effect.
    """
    if stored is None:
        return None
    if not isinstance(stored, Mapping) or "kind" not in stored:
        raise ModelFileError(f"effects: expected a description of an effect, found {str(stored)[:40]!r}.")
    if stored["kind"] == "own":
        found = [one for one in given if type(one).__name__ == stored.get("name")]
        if not found:
            raise ModelFileError(
                f"{path} was saved with an effect of your own, {stored.get('name')}, and files hold no code: call "
                "load(path, effects=[...]) with it."
            )
        return found[0]
    kind = next((kind for kind in PLAIN if kind.__name__ == stored["kind"]), None)
    if kind is None:
        raise ModelFileError(f"effects: expected one of {[k.__name__ for k in PLAIN]}, found {stored['kind']!r}.")
    check_keys(dict(stored), ["kind", *(f.name for f in fields(kind))], "effects")
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name != "kind"}
    try:
        made: GivenEffect = kind(**arguments)
    except ValueError as error:
        raise ModelFileError(f"effects: {error}") from error
    return made
