"""What a file of a fitted :class:`ExpressionGLM` holds, and how its design is made again without evaluating code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrosplice._expression.constraints import Constraints
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.mixed.cell_effects import OF_EFFECTS
from pyrosplice._expression.mixed.mixed_record import MixedRecord
from pyrosplice._expression.own_expression import SavedSites
from pyrosplice._expression.positions import SPATIAL_KEY
from pyrosplice._io.codec import NEW, check_keys, check_sizes
from pyrosplice._optimize.convergence import FitCode
from pyrosplice._tables.formula_files import check_plain, pack, unpack
from pyrosplice._tables.formula_grammar import is_plain
from pyrosplice._tables.random_terms import split_random_terms
from pyrosplice.effects._effect_list import GivenEffect, restored
from pyrosplice.errors import ModelFileError
from pyrosplice.guides._own_model import takes
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._prior_tables import likelihood_from_json, likelihood_to_json

FORMULAS = ("formula_loc", "formula_scale")
SETTINGS = (*FORMULAS, "as_numeric", "constraints_loc", "constraints_scale", "noise_model", *OF_EFFECTS)


def file_arguments(kind: type) -> set[str]:
    """Constructor arguments that a file holds, or that ``load`` takes; a class may be without newer ones."""
    optional = ("model", "likelihood", *OF_EFFECTS)
    return {*SETTINGS} - {*OF_EFFECTS} | {name for name in optional if takes(kind, name)}


@dataclass(frozen=True)
class SavedDesign:
    """A design without its rows; ``recipe`` makes those of other cells, None where a formula is more than one."""

    names: list[str]
    terms: list[str]
    variables: list[frozenset[str]]
    every_level: tuple[str, ...]
    recipe: Any


@dataclass(frozen=True)
class SavedExpression:
    """Everything that a loaded model has.

    Attributes
    ----------
    settings
        Arguments of the model's constructor.
    fit, constraints, design, genes, mean
        The engine's result, how all coefficients follow from the free ones, the location design, names of the genes
        and mean of each.
    own
        Fit of a model of a person's own.
    mixed
        Fit with random effects.
    """

    settings: dict[str, Any]
    fit: GlmFit
    constraints: Constraints
    design: SavedDesign
    genes: list[str]
    mean: NDArray[np.float64]
    own: SavedSites | None = field(default=None, metadata={NEW: True})
    mixed: MixedRecord | None = field(default=None, metadata={NEW: True})


def saved_noise(noise_model: str | Likelihood) -> Any:
    """A name as it is; of a likelihood its own name, and what makes a shipped one of plain numbers again."""
    if isinstance(noise_model, str):
        return noise_model
    return {"name": repr(noise_model), "content": likelihood_to_json(noise_model)}


def noise_again(saved: Any, given: Likelihood | None, path: str) -> str | Likelihood:
    """Inverse of :func:`saved_noise`; one of a person's own is the ``given``.

    Raises
    ------
    ModelFileError
        It is needed and was not given, or is not the one that was saved.
    """
    if isinstance(saved, str):
        name, content = saved, {}
    else:
        check_keys(saved, ("name", "content"), "noise_model")
        name, content = str(saved["name"]), saved["content"]
    if given is None and content is None:
        raise ModelFileError(
            f"{path} was saved with a likelihood that is not pyrosplice's, and files hold no code: call "
            f"load(path, likelihood={name})."
        )
    if given is not None and (content is not None or name.partition("(")[0] != type(given).__name__):
        raise ModelFileError(f"likelihood: {path} was saved with {name}, found {given!r}.")
    if given is not None:
        return given
    return likelihood_from_json(content) if content else name


def settings_again(
    saved: SavedExpression, kind: type, given: tuple[Likelihood | None, Sequence[GivenEffect]], path: str
) -> dict[str, Any]:
    """Arguments of the constructor of a class; likelihood and effects of one's own are the ``given``.

    Raises
    ------
    ModelFileError
        Arguments that are missing or unknown, or of one's own and not given; parts of different sizes.
    """
    older: dict[str, Any] = {"effects": [], "space": None, "spatial_key": SPATIAL_KEY, "section_key": None}
    stored = older | saved.settings
    check_keys(stored, SETTINGS, "settings")
    if saved.mixed is not None:
        saved.mixed.check(saved.genes)
    effects = [restored(one, given[1], path) for one in stored["effects"]]
    noise, space = noise_again(stored["noise_model"], given[0], path), restored(stored["space"], given[1], path)
    settings = stored | {"noise_model": noise, "effects": effects, "space": space}
    return {name: value for name, value in settings.items() if name not in OF_EFFECTS or takes(kind, name)}


def saved_design(design: DesignMatrix, settings: dict[str, Any]) -> tuple[SavedDesign, dict[str, Any]]:
    """A design, and the constructor's arguments, without formulas that are more than formulas."""
    recipe = None if design.recipe is None else pack(design.recipe, design.reference)
    columns = [*settings["as_numeric"], *(() if design.recipe is None else design.recipe.columns)]
    code = [name for name in FORMULAS if settings[name] is not None and not is_plain(settings[name], columns)]
    settings = settings | dict.fromkeys(code)
    if recipe is not None and recipe["formula"] != _fixed_part(settings["formula_loc"]):
        recipe = None  # the design was given, or the formula is more than one
    return SavedDesign(design.names, design.terms, design.variables, design.every_level, recipe), settings


def saved_design_of(saved: SavedExpression) -> DesignMatrix:
    """The design, without rows.

    Raises
    ------
    ModelFileError
        A formula that holds code or does not make the design's columns; parts of different sizes.
    """
    design, recipe, settings = saved.design, saved.design.recipe, saved.settings
    used = [] if recipe is None else [*recipe["levels"], *recipe["numeric"]]
    for part in FORMULAS:
        if settings[part] is not None:
            check_plain(settings[part], [*used, *settings["as_numeric"]])
    if recipe is not None and recipe["formula"] != _fixed_part(settings["formula_loc"]):
        raise ModelFileError("design.recipe: the file holds two formulas of the same design.")
    _check(saved)
    made = DesignMatrix(
        np.zeros((0, len(design.names))), design.names, None, design.every_level, design.terms, design.variables
    )
    return made if recipe is None else replace(made, recipe=unpack(recipe), reference=recipe["reference"])


def _fixed_part(formula: str | None) -> str | None:
    """A formula without its random terms."""
    return None if formula is None else split_random_terms(formula, "formula_loc")[0]


def _check(saved: SavedExpression) -> None:
    """Raise where parts are of different numbers of genes, coefficients or free coefficients."""
    fit, bound, design = saved.fit, saved.constraints, saved.design
    check_sizes(
        genes=(saved.genes, "G"),
        mean=(saved.mean, "G"),
        theta=(fit.theta, "GD"),
        gradient=(fit.gradient, "GD"),
        log_likelihood=(fit.log_likelihood, "G"),
        code=(fit.code, "G"),
        n_iter=(fit.n_iter, "G"),
        inner_information=(fit.inner_information, "GDD"),
        inner_fisher=(fit.inner_fisher, "GFF"),
        basis=(fit.basis.matrix, "DD"),
        inverse=(fit.basis.inverse, "DD"),
        reach=(fit.reach, "F"),
        constraint=(bound.matrix, "PF"),
        shift=(bound.shift, "P"),
        free=(bound.free_names, "F"),
        names=(design.names, "P"),
        terms=(design.terms, "P"),
        variables=(design.variables, "P"),
    )
    if not np.isin(fit.code, list(FitCode)).all():
        found = f"{fit.code.min()} to {fit.code.max()}"
        raise ModelFileError(f"code: expected numbers from 0 to {max(FitCode):d}, found {found}.")
    for name, array in (("constraint", bound.matrix), ("shift", bound.shift), ("basis", fit.basis.matrix)):
        if not np.isfinite(array).all():
            raise ModelFileError(f"{name}: expected finite numbers, found NaN or infinity.")
