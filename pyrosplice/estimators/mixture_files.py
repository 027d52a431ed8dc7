"""A Gaussian mixture on disk: JSON for what was asked, safetensors for what was found; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.estimators.mixture_module import GaussianMixtureModel, GaussianMixtureModelConfig
from pyrosplice.models.gaussian_mixture import MixturePrior

if TYPE_CHECKING:
    from pyrosplice.estimators.mixture import GaussianMixture

FORMAT_VERSION = 1


def write_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """``params.json`` of constructor arguments."""
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "params.json", {name: _encode(name, value) for name, value in parameters.items()})


def read_parameters(path: Path) -> dict[str, Any]:
    """The constructor arguments of ``params.json``."""
    return {name: _decode(value) for name, value in _read(path / "params.json").items()}


def write_attributes(path: Path, estimator: GaussianMixture) -> None:
    """``attributes.json``, ``model/config.json`` and ``model/parameters.safetensors`` of a fit."""
    model = estimator.model_
    (path / "model").mkdir(parents=True, exist_ok=True)
    names = ("converged_", "num_iter_", "nll_", "n_features_in_")
    _write(path / "attributes.json", {name: getattr(estimator, name) for name in names})
    _write(path / "model" / "config.json", asdict(model.config))
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path / "model" / "parameters.safetensors")


def read_attributes(path: Path, estimator: GaussianMixture) -> None:
    """Put a saved fit into ``estimator``."""
    attributes = _read(path / "attributes.json")
    config = _read(path / "model" / "config.json")
    file = path / "model" / "parameters.safetensors"
    try:
        model = GaussianMixtureModel(GaussianMixtureModelConfig(**config))
        tensors = load_file(file)
        model = model.to(tensors["means"].dtype)
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(f"{file}: not a saved mixture, or damaged ({error}); save it again.") from error
    for name, value in attributes.items():
        setattr(estimator, name, value)
    estimator.model_ = model


def _encode(name: str, value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = np.asarray(value)
        return {"tensor": array.tolist(), "dtype": str(array.dtype), "numpy": isinstance(value, np.ndarray)}
    if isinstance(value, MixturePrior):
        return {"prior": {field: _encode(field, getattr(value, field)) for field in value.__dataclass_fields__}}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"mapping": dict(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidArgumentError(f"{name}: {type(value).__name__} cannot be saved; use plain values (an integer seed).")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return value["mapping"]
    if "prior" in value:
        return MixturePrior(**{name: _decode(v) for name, v in value["prior"].items()})
    array = np.array(value["tensor"], dtype=value["dtype"])
    return array if value["numpy"] else torch.from_numpy(array)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({"format_version": FORMAT_VERSION, **content}, indent=1))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        version = content.pop("format_version")
    except (OSError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{file}: not a file of a saved mixture ({error!r}).") from error
    if version != FORMAT_VERSION:
        raise ModelFileError(f"{file}: format version {version}, this library reads {FORMAT_VERSION}; update it.")
    return content
