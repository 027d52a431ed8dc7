"""A Gaussian mixture on disk: JSON for what was asked, safetensors for what was found; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.estimators.mixture_module import GaussianMixtureModel, GaussianMixtureModelConfig
from pyrosplice.estimators.mixture_state import MixtureState
from pyrosplice.io import check_file
from pyrosplice.models.gaussian_mixture import MixturePrior

FORMAT_VERSION = 1
PARTS = ("model", "params.json", "attributes.json")
ATTRIBUTES = ("converged_", "num_iter_", "nll_", "n_features_in_")


def write_mixture(
    path: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    fit: MixtureState | None = None,
    whole: bool = False,
) -> None:
    """Write ``params.json`` of constructor arguments, and ``attributes.json`` and ``model/`` of a fit.

    All is written beside ``path`` first and moved there once it is whole, so that an error leaves what stood there;
    ``whole`` also takes away the parts of an older model that the new one does not have.

    Raises
    ------
    InvalidArgumentError
        A parameter that cannot be saved, or ``path`` is a file.
    """
    if path.exists() and not path.is_dir():
        raise InvalidArgumentError(f"path: expected a directory, found the file {str(path)!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        if parameters is not None:
            _write(partial / "params.json", _encoded(parameters))
        if fit is not None:
            _write_fit(partial, fit)
        _replace(partial, path, whole=whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_parameters(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The constructor arguments of ``params.json``, which must be among the ``known``."""
    content = _read(path / "params.json")
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ModelFileError(f"{path / 'params.json'}: {unknown} are no parameters of a mixture; update the library.")
    return {name: _decode(value) for name, value in content.items()}


def has_fit(path: Path) -> bool:
    """Whether a fit was saved; refused where it is that of other parameters than the ones saved beside it."""
    file = path / "attributes.json"
    if not file.exists():
        return False
    asked = _read(file).get("parameters_sha256")
    if asked is not None and asked != _digest(_read(path / "params.json")):
        raise ModelFileError(
            f"{file}: the fit of an estimator with other parameters than those of params.json; save both with save(), "
            "or take them one by one with load_parameters() and load_attributes()."
        )
    return True


def read_attributes(path: Path, estimator: MixtureState) -> None:
    """Put a saved fit into ``estimator``."""
    attributes = _read(path / "attributes.json")
    named = attributes.pop("named_by_anndata", False)
    config = _read(path / "model" / "config.json")
    file = path / "model" / "parameters.safetensors"
    digest, names = attributes.pop("sha256", None), attributes.pop("feature_names_in_", None)
    try:
        content = file.read_bytes()
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("it is not the one that was saved with attributes.json")
        model = GaussianMixtureModel(GaussianMixtureModelConfig(**config))
        tensors = load(content)
        model = model.to(tensors["means"].dtype)
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{file}: not a saved mixture, or damaged ({error}); save it again.") from error
    for name in ATTRIBUTES:
        if name not in attributes:
            raise ModelFileError(f"{path / 'attributes.json'}: damaged, {name!r} is not in it; save it again.")
        setattr(estimator, name, attributes[name])
    if names is not None:
        estimator.feature_names_in_ = np.array(names, dtype=object)
    elif hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_
    estimator.model_, estimator.named_by_anndata_ = model, named


def _write_fit(folder: Path, estimator: MixtureState) -> None:
    model, file = estimator.model_, folder / "model" / "parameters.safetensors"
    file.parent.mkdir()
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, file)
    _write(folder / "model" / "config.json", asdict(model.config))
    attributes = {name: getattr(estimator, name) for name in ATTRIBUTES}
    if hasattr(estimator, "feature_names_in_"):
        attributes["feature_names_in_"] = [str(name) for name in estimator.feature_names_in_]
    attributes |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    attributes |= {"named_by_anndata": estimator.named_by_anndata_}
    with suppress(InvalidArgumentError):  # parameters that cannot be saved are in no file that this fit could meet
        attributes |= {"parameters_sha256": _digest(_encoded(estimator.get_params(deep=False)))}
    _write(folder / "attributes.json", attributes)


def _replace(partial: Path, path: Path, *, whole: bool) -> None:
    """Move what is new to ``path``: the folder as a whole where nothing else is in it, else part by part."""
    partial.chmod(0o777 & ~_umask())
    if not path.exists():
        partial.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    places = [(partial / part, path / part) for part in PARTS if whole or (partial / part).exists()]
    if whole and {entry.name for entry in path.iterdir()} <= set(PARTS) and not path.is_symlink():
        places = [(partial, path)]
    moved: list[tuple[Path, Path]] = []
    try:
        for _, held in places:
            if held.exists():
                moved.append((held, held.rename(old / held.name)))
        for new, held in places:
            if new.exists():
                moved.append((new, new.rename(held)))
    except BaseException:
        for before, after in reversed(moved):
            after.rename(before)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _encoded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _encode(name, value) for name, value in parameters.items()}


def _digest(encoded: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(encoded, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _encode(name: str, value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        try:
            array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        except TypeError as error:  # bfloat16, which NumPy does not have
            raise InvalidArgumentError(f"{name}: cannot be saved ({error}); give float32 or float64.") from error
        return {"tensor": array.tolist(), "dtype": str(array.dtype), "numpy": isinstance(value, np.ndarray)}
    if isinstance(value, (pd.DataFrame, pd.Series)):
        table = value.to_frame("values") if isinstance(value, pd.Series) else value
        columns, index = [str(c) for c in table.columns], [str(i) for i in table.index]
        cells = table.to_numpy(dtype=np.float64).tolist()
        return {"table": cells, "index": index, "columns": columns, "series": isinstance(value, pd.Series)}
    if isinstance(value, MixturePrior):
        return {"prior": {field: _encode(field, getattr(value, field)) for field in value.__dataclass_fields__}}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _encode(f"{name}[{key!r}]", own) for key, own in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(name, own) for own in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InvalidArgumentError(f"{name}: {type(value).__name__} cannot be saved; use plain values (an integer seed).")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(own) for own in value]
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return {key: _decode(own) for key, own in value["mapping"].items()}
    if "prior" in value:
        return MixturePrior(**{name: _decode(v) for name, v in value["prior"].items()})
    if "table" in value:
        table = pd.DataFrame(value["table"], index=value["index"], columns=value["columns"])
        return table["values"] if value["series"] else table
    array = np.array(value["tensor"], dtype=value["dtype"])
    return array if value["numpy"] else torch.from_numpy(array)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({"format_version": FORMAT_VERSION, **content}, indent=1))


def _read(file: Path) -> dict[str, Any]:
    check_file(file)
    try:
        content = json.loads(file.read_text())
        version = content.pop("format_version")
    except (OSError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{file}: not a file of a saved mixture ({error!r}).") from error
    if version != FORMAT_VERSION:
        raise ModelFileError(f"{file}: format version {version}, this library reads {FORMAT_VERSION}; update it.")
    return content
