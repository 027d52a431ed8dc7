"""Files of before there was one rule of versions, with their parts put where today's files have them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyrosplice._io.archive import Archive
from pyrosplice._io.codec import pack
from pyrosplice._io.stored_values import to_json
from pyrosplice.errors import ModelFileError

Json = dict[str, Any]


def usage_1(old: Archive) -> Archive:
    """A model of isoform usage, format version 1."""
    content, data, fit = old.content, dict(old.content["data"]), old.content.get("fit")
    design, space = data.pop("design", None), data.pop("covariance")
    graph = {key: {"part": f"graph.{key}"} for key in ("edges", "weights") if f"graph.{key}" in old.tensors}
    graph |= {key: data.pop(key) for key in ("rho", "range_", "alpha") if key in data}
    made = graph or space == "IdentityCovariance"
    extensions = dict(content["extensions"])
    extensions["likelihood"] = _object(extensions["likelihood"])
    extensions["priors"] = {name: _object(prior) for name, prior in extensions["priors"].items()}
    extensions["covariance"] = space and {"name": space, "content": {"fields": graph} if made else None}
    data["adata"] = {"h5ad": "adata", "rest": "rest"}
    data["design"] = design and {"values": "design", "given_terms": design.pop("terms", []), **design}
    new = {"options": _plain(content["options"]), "data": data, "extensions": extensions, "fit": None}
    if fit is not None:
        null = _genes(old, "null") if "null" in fit else None
        new["fit"] = {"genes": _genes(old, "genes"), "null": null, "with_design": fit["with_design"], "n_jobs": 1}
    for test in ("sv", "du"):
        new[test] = _plain(content[test]) | {name: {"part": part} for name, part in _parts(old, test).items()}
    return Archive(old.kind, new, old.tensors)


def expression_2(old: Archive) -> Archive:
    """An expression model, format version 2."""
    about = dict(old.content)
    settings = ("formula_loc", "formula_scale", "as_numeric", "noise_model", "constraints_loc", "constraints_scale")
    other = ("basis", "basis_inverse", "constraint", "shift", "mean")
    fit = {name: name for name in old.tensors if name not in other}
    design = {name: about[name] for name in ("terms", "variables", "every_level")}
    new = {
        "settings": _plain({name: about[name] for name in settings}),
        "fit": fit | {"basis": {"matrix": "basis", "inverse": "basis_inverse"}},
        "constraints": {"matrix": "constraint", "shift": "shift", "free_names": about["free"]},
        "design": design | {"names": about["coefficients"], "recipe": pack(_recipe(about["recipe"]), Any, "", {})},
        "genes": about["genes"],
        "mean": "mean",
    }
    return Archive(old.kind, new, old.tensors)


def mixture_1(kind: str, parts: Mapping[str, Archive], data: Mapping[str, bytes]) -> dict[str, Archive]:
    """The files of a mixture, format version 1, in which checksums of one file stood in another."""
    old = {name: part.content for name, part in parts.items() if not part.kind}
    if any(parts[name].version != 1 for name in old):
        raise ModelFileError("expected files of format version 1 or of today's; fit the model again.")
    new = dict(parts) | {name: Archive(kind, content, parts[name].tensors) for name, content in old.items()}
    seal = None
    if "params.json" in old:
        values = {name: to_json(_mixture_value(value), name) for name, value in old["params.json"].items()}
        new["params.json"], seal = Archive(kind, {"saved_with": []} | values), Archive(kind, values).seal
    if "attributes.json" in old:
        about, tensors = dict(old["attributes.json"]), "model/parameters.safetensors"
        if about.pop("sha256") != _sha256(data[tensors]):
            raise ModelFileError(f"{tensors} is damaged: it is not the one that was saved with attributes.json.")
        said, found = about.pop("parameters_sha256", None), json.dumps(old.get("params.json"), sort_keys=True)
        about |= {"parameters": seal if said == _sha256(found.encode()) else said}
        about |= {"config": new["model/config.json"].seal, "tensors": new[tensors].seal}
        new["attributes.json"] = Archive(kind, {"feature_names_in_": None} | about)
    return new


def _mixture_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_mixture_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return {key: _mixture_value(item) for key, item in value["mapping"].items()}
    if "prior" in value:
        return {"MixturePrior": {name: _mixture_value(item) for name, item in value["prior"].items()}}
    if "table" in value:
        table = pd.DataFrame(value["table"], index=value["index"], columns=value["columns"])
        return table["values"] if value["series"] else table
    array = np.array(value["tensor"], dtype=value["dtype"])
    return array if value["numpy"] else torch.from_numpy(array)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _recipe(stored: Json | None) -> Json | None:
    """A formula's state as values, where it was JSON of its own kind."""

    def value(state: Any) -> Any:
        if isinstance(state, list):
            return [value(item) for item in state]
        if not isinstance(state, dict):
            return state
        if "array" in state:
            return np.asarray(value(state["array"]))
        return {value(key): value(item) for key, item in state["dict"]}

    return stored and {**stored, "state": value(stored["state"])}


def _plain(values: Mapping[str, Any]) -> Json:
    return {name: pack(value, Any, name, {}) for name, value in values.items()}


def _object(stored: Json) -> Json:
    return {"name": stored["name"], "content": pack(stored["content"], Any, "", {})}


def _genes(old: Archive, name: str) -> list[Json]:
    sites: list[dict[str, str]] = [{} for _ in old.content["fit"][name]]
    for place, part in _parts(old, name).items():
        position, site = place.split(".")
        sites[int(position)][site] = part
    return [{"values": own, **record} for own, record in zip(sites, old.content["fit"][name], strict=True)]


def _parts(old: Archive, name: str) -> dict[str, str]:
    return {part.removeprefix(f"{name}."): part for part in old.tensors if part.startswith(f"{name}.")}
