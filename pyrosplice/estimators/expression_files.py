"""Files of fitted expression models: what is written, and how it is read back without evaluating anything."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pyrosplice.data.constraints import Constraints
from pyrosplice.data.expression_design import DesignMatrix
from pyrosplice.data.formula_files import check_plain, pack, unpack
from pyrosplice.data.formula_grammar import is_plain
from pyrosplice.errors import ModelFileError
from pyrosplice.inference.nb_basis import Basis, identity
from pyrosplice.inference.nb_fit import GlmFit
from pyrosplice.io import check_file, digest_of, new_file

FORMAT = "pyrosplice-expression"
FORMAT_VERSION = 2  # 1: the design by its levels only; information in the design's own coordinates
OLD_NAMES = {"inner_information": "information", "inner_fisher": "fisher"}


@dataclass(frozen=True)
class Saved:
    """Everything that a loaded model has.

    Attributes
    ----------
    settings
        Arguments of the model's constructor.
    fit, constraints, design, genes, mean
        The engine's result, how all coefficients follow from the free ones, the location design without its rows,
        names of the genes and mean of each.
    """

    settings: dict[str, Any]
    fit: GlmFit
    constraints: Constraints
    design: DesignMatrix
    genes: list[str]
    mean: NDArray[np.float64]


def write(path: str | Path, saved: Saved) -> None:
    """One safetensors file; a formula that is more than a formula is left out."""
    fit, design, settings = saved.fit, saved.design, dict(saved.settings)
    arrays = {f.name: getattr(fit, f.name) for f in fields(GlmFit) if f.name != "basis"}
    arrays |= {"basis": fit.basis.matrix, "basis_inverse": fit.basis.inverse}
    arrays |= {"constraint": saved.constraints.matrix, "shift": saved.constraints.shift, "mean": saved.mean}
    stored = None if design.recipe is None else pack(design.recipe, design.reference)
    columns = [*settings["as_numeric"], *(() if design.recipe is None else design.recipe.columns)]
    for name in ("formula_loc", "formula_scale"):
        if settings[name] is not None and not is_plain(settings[name], columns):
            settings[name] = None
    if stored is not None and stored["formula"] != settings["formula_loc"]:
        stored = None  # the design was given, or the formula is more than one
    about = {
        **{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in settings.items()},
        "genes": list(saved.genes), "coefficients": design.names, "free": saved.constraints.free_names,
        "terms": design.terms, "variables": [sorted(used) for used in design.variables],
        "every_level": list(design.every_level), "recipe": stored,
    }  # fmt: skip
    meta = {"format": FORMAT, "version": str(FORMAT_VERSION), "about": json.dumps(about)}
    plain = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    save_file(plain, new_file(path), metadata=meta | {"sha256": _digest(plain, meta["about"])})


def read(path: str | Path) -> Saved:
    """Read a file of :func:`write`.

    Raises
    ------
    NoModelFileError
        No such file.
    ModelFileError
        For a file that is not one, from a newer version, damaged, or with a formula that holds code.
    """
    check_file(path)
    try:
        with safe_open(Path(path), framework="numpy") as file:
            meta = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"path: {path} is not a model file ({error}).") from error
    version = meta.get("version", "0")
    if meta.get("format") != FORMAT or not version.isdigit() or int(version) > FORMAT_VERSION:
        raise ModelFileError(
            f"path: {path} has format {meta.get('format')!r}, version {version!r}; expected one that "
            f"ExpressionGLM.save wrote, format {FORMAT!r} up to version {FORMAT_VERSION}."
        )
    if "sha256" in meta and meta["sha256"] != _digest(arrays, meta.get("about", "")):  # older files have none
        raise ModelFileError(f"path: {path} is damaged: its content is not what was written; save it again.")
    try:
        about = json.loads(meta["about"])
        return _saved(about, arrays)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"path: {path} is damaged ({type(error).__name__}: {error}).") from error


def _digest(arrays: dict[str, Any], about: str) -> str:
    return digest_of({name: torch.from_numpy(array) for name, array in arrays.items()}, about)


def _saved(about: dict[str, Any], arrays: dict[str, Any]) -> Saved:
    names, recipe = about["coefficients"], about.get("recipe")
    used = [] if recipe is None else [*recipe["levels"], *recipe["numeric"]]
    for part in ("formula_loc", "formula_scale"):
        if about[part] is not None:
            check_plain(about[part], [*used, *about["as_numeric"]])
    if recipe is not None and recipe["formula"] != about["formula_loc"]:
        raise ModelFileError("path: the file holds two formulas of the same design.")
    if recipe is None and "terms" not in about:
        design = _old_design(about)
    else:
        made = None if recipe is None else unpack(recipe)
        design = DesignMatrix(
            np.zeros((0, len(names))), names, made, tuple(about["every_level"]), about["terms"],
            [frozenset(used) for used in about["variables"]], {} if recipe is None else recipe["reference"],
        )  # fmt: skip
    size = arrays["theta"].shape[1]
    basis = Basis(arrays["basis"], arrays["basis_inverse"]) if "basis" in arrays else identity(size)
    arrays.setdefault("reach", np.ones(arrays["constraint"].shape[1]))  # of files that do not say
    kept = [f.name for f in fields(GlmFit) if f.name != "basis"]
    fit = GlmFit(**{n: arrays[n] if n in arrays else arrays[OLD_NAMES[n]] for n in kept}, basis=basis)
    settings = {k: about.get(k) for k in ("formula_loc", "formula_scale", "as_numeric", "noise_model")}
    settings |= {k: _constraints(about.get(k)) for k in ("constraints_loc", "constraints_scale")}
    constraints = Constraints(arrays["constraint"], arrays["shift"], about["free"])
    return Saved(settings, fit, constraints, design, about["genes"], arrays["mean"])


def _constraints(stored: Any) -> Any:
    """A constraint matrix is stored as nested lists; dicts and strings are what they are."""
    nested = isinstance(stored, list) and bool(stored) and isinstance(stored[0], list)
    return np.asarray(stored, dtype=np.float64) if nested else stored


def _old_design(about: dict[str, Any]) -> DesignMatrix:
    """A design of version 1, by its formula and levels; without a recipe where a transformation had seen its data."""
    names, formula = about["coefficients"], about["formula_loc"]
    bare = DesignMatrix(np.zeros((0, len(names))), names)
    if formula is None or "(" in formula:
        return bare
    stored = {"formula": formula, "names": names, "levels": about["levels"], "numeric": about["numeric"],
              "reference": {}, "state": {"dict": []}}  # fmt: skip
    try:
        made = unpack(stored)
    except ModelFileError:
        return bare  # constraints gave it other columns
    return DesignMatrix(np.zeros((0, len(names))), names, made, (), made.terms, made.variables)
