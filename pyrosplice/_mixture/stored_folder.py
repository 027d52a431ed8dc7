"""What a folder of a :class:`GaussianMixture` holds: JSON for what was asked, safetensors for what was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from pyrosplice._io.archive import AGAIN, Archive, damage_named
from pyrosplice._io.atomic import as_path
from pyrosplice._io.codec import NEW, check_keys
from pyrosplice._io.folder import Folder
from pyrosplice._io.older import mixture_1
from pyrosplice._io.stored_values import from_json, to_json
from pyrosplice._mixture.density_module import GaussianMixtureModel, GaussianMixtureModelConfig
from pyrosplice._mixture.fitted_state import MixtureState
from pyrosplice._mixture.mixture_prior import MixturePrior
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.guides._own_fit import SavedSites, check_saved
from pyrosplice.guides._own_model import Program, name_of
from pyrosplice.priors._prior_tables import prior_from_json, prior_to_json
from pyrosplice.reasons import Reason

PARAMETERS, ATTRIBUTES = "params.json", "attributes.json"
CONFIG, TENSORS = "model/config.json", "model/parameters.safetensors"
FIT = (ATTRIBUTES, CONFIG, TENSORS)
WITH = "saved_with"  # the other files of a save, so that one that is gone is missed
PRIOR, PRIORS = "MixturePrior", "distributions"  # one of numbers, and priors by site
MODEL = "model"
SITE = "site."  # before the names of the sites of a model of one's own


@dataclass(frozen=True)
class Attributes:
    """A fit without its tensors; ``parameters``, ``config`` and ``tensors`` are the seals of what belongs to it."""

    converged_: bool
    num_iter_: int
    nll_: float
    n_features_in_: int
    feature_names_in_: list[str] | None
    named_by_anndata: bool
    parameters: str | None
    config: str
    tensors: str
    own_name: str | None = field(default=None, metadata={NEW: True})
    own_engine: str | None = field(default=None, metadata={NEW: True})
    reason: Reason | None = field(default=None, metadata={NEW: True})


def write_mixture(
    path: Path, of: MixtureState, *, parameters: bool = False, fit: bool = False, whole: bool = False
) -> None:
    """Write the constructor's arguments, the fit, or both; ``whole`` takes away the fit of an older save.

    Raises
    ------
    InvalidArgumentError
        A parameter that cannot be saved, or the folder is a file.
    """
    parts = _fit_to(of) if fit else {}
    if parameters:
        asked = _parameters_to(of)
        parts[PARAMETERS] = Archive(asked.kind, {WITH: sorted(parts)} | asked.content)
    Folder(path, (PARAMETERS, *FIT)).write(parts, absent=FIT if whole and not fit else ())


class SavedMixture:
    """Files of a mixture of a class, all or those of some ``names``, read at one time and verified."""

    def __init__(self, path: Path, kind: type[MixtureState], names: Sequence[str] = (PARAMETERS, *FIT)) -> None:
        self.kind, self.folder = kind, Folder(path, (PARAMETERS, *FIT))
        self.parts = self.folder.read(kind.__name__, mixture_1, names)

    def parameters(self, known: Collection[str], model: Program | None = None) -> dict[str, Any]:
        """The constructor's arguments; refused where they are not the ``known`` ones, or of another ``model``."""
        given = self._part(PARAMETERS).content.items()
        stored = {"priors": None} | {name: value for name, value in given if name not in (WITH, MODEL)}  # new: priors
        name = self._part(PARAMETERS).content.get(MODEL)
        saved = None if name is None else SavedSites(str(name), "", {})
        check_saved(saved, model, self.folder.named(PARAMETERS), needed=True)
        with damage_named(self.folder.named(PARAMETERS)):
            check_keys(stored, [name for name in known if name != MODEL], "")
            if self._part(PARAMETERS).content.get(WITH) not in ([], sorted(FIT)):
                raise ModelFileError(f"{WITH}: expected [] or {sorted(FIT)}.")
            arguments = {name: _given(from_json(value)) for name, value in stored.items()}
            return arguments if model is None else {**arguments, MODEL: model}

    def has_fit(self) -> bool:
        """Whether there is one; refused where a file of it is gone, or it is one of other parameters."""
        asked = self._part(PARAMETERS).content
        if not asked.get(WITH) and not any(name in self.parts for name in FIT):
            return False
        seal = Archive(self.kind.__name__, {name: value for name, value in asked.items() if name != WITH}).seal
        if self._attributes().parameters not in (None, seal):
            raise ModelFileError(
                f"{self.folder.named(ATTRIBUTES)} is the fit of an estimator with other parameters than those of "
                "params.json; save both with save(), or take them one by one with load_parameters() and "
                "load_attributes()."
            )
        return True

    def restore(self, estimator: MixtureState) -> None:
        """Put the fit into ``estimator``."""
        attributes, config, tensors = self._attributes(), self._part(CONFIG), self._part(TENSORS)
        with damage_named(self.folder.named(TENSORS)):
            if (config.seal, tensors.seal) != (attributes.config, attributes.tensors):
                raise ModelFileError(f"damaged: it is not the model that was saved with {ATTRIBUTES}; {AGAIN}.")
            model = GaussianMixtureModel(GaussianMixtureModelConfig(**config.content))
            model = model.to(tensors.tensors["means"].dtype)
            sites = {name.removeprefix(SITE): v for name, v in tensors.tensors.items() if name.startswith(SITE)}
            model.load_state_dict({name: v for name, v in tensors.tensors.items() if not name.startswith(SITE)})
            _check(model, attributes)
            own = None
            if attributes.own_name is not None:
                arrays = {name: value.double().numpy() for name, value in sites.items()}
                own = SavedSites(attributes.own_name, str(attributes.own_engine), arrays)
        for name in ("converged_", "num_iter_", "nll_", "n_features_in_"):
            setattr(estimator, name, getattr(attributes, name))
        if attributes.feature_names_in_ is not None:
            estimator.feature_names_in_ = np.array(attributes.feature_names_in_, dtype=object)
        elif hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
        estimator.model_ = model
        estimator.take_saved(own, attributes.reason)
        estimator.named_by_anndata_ = attributes.named_by_anndata

    def _attributes(self) -> Attributes:
        part = self._part(ATTRIBUTES)
        with damage_named(self.folder.named(ATTRIBUTES)):
            return part.to(Attributes)

    def _part(self, name: str) -> Archive:
        if name not in self.parts:
            raise self.folder.missing(name)
        return self.parts[name]


class MixtureStorage(MixtureState):
    """How a mixture is saved and loaded."""

    _stepwise: Any

    def save(self, path: str | Path) -> None:
        """Save the parameters and, if there is one, the fit to a directory: JSON and safetensors, no pickle.

        A model that was saved there before is replaced as a whole, once the new one is written.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mixture.save(f"{folder}/states")
        ...     again = GaussianMixture.load(f"{folder}/states")
        >>> bool((again.predict(x) == mixture.predict(x)).all())
        True
        """
        self.saved_sites()  # raises where there is nothing that a file could hold
        write_mixture(as_path(path), self, parameters=True, fit=hasattr(self, "model_"), whole=True)

    @classmethod
    def load(cls, path: str | Path, *, model: Program | None = None) -> Self:
        """Read the estimator that :meth:`save` wrote, with its fit if it has one; ``model`` as it was saved with.

        Raises
        ------
        NoModelFileError
            A file that is not there.
        ModelFileError
            A file that is truncated, damaged, of another program, class or version; says which.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mixture.save(f"{folder}/states")
        ...     print(GaussianMixture.load(f"{folder}/states").model_.means.shape)
        torch.Size([2, 2])
        """
        saved = SavedMixture(as_path(path), cls)
        estimator = cls(**saved.parameters(cls._get_param_names(), model))  # type: ignore[attr-defined]
        if saved.has_fit():
            saved.restore(estimator)
        return estimator

    def save_parameters(self, path: str | Path) -> None:
        """Save what the constructor was given: ``params.json``.

        Examples
        --------
        >>> import tempfile
        >>> from pyrosplice import GaussianMixture
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     GaussianMixture(3).save_parameters(folder)
        ...     print(GaussianMixture.load_parameters(folder).num_components)
        3
        """
        write_mixture(as_path(path), self, parameters=True)

    @classmethod
    def load_parameters(cls, path: str | Path, *, model: Program | None = None) -> Self:
        """Read an unfitted estimator with saved parameters; ``model`` as it was saved with.

        Examples
        --------
        >>> import tempfile
        >>> from pyrosplice import GaussianMixture
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     GaussianMixture(3).save_parameters(folder)
        ...     mixture = GaussianMixture.load_parameters(folder)
        >>> mixture.num_components, hasattr(mixture, "model_")
        (3, False)
        """
        return cls(**SavedMixture(as_path(path), cls, [PARAMETERS]).parameters(cls._get_param_names(), model))  # type: ignore[attr-defined]

    def save_attributes(self, path: str | Path) -> None:
        """Save the fit: ``attributes.json`` and ``model/``.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mixture.save_attributes(folder)
        ...     other = GaussianMixture(2)
        ...     other.load_attributes(folder)
        >>> bool((other.predict(x) == mixture.predict(x)).all())
        True
        """
        self.saved_sites()  # raises where there is nothing that a file could hold
        check_is_fitted(self, "model_")
        write_mixture(as_path(path), self, fit=True)

    def load_attributes(self, path: str | Path) -> None:
        """Take over a saved fit.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mixture.save_attributes(folder)
        ...     other = GaussianMixture(2)
        ...     other.load_attributes(folder)
        >>> other.converged_
        True
        """
        SavedMixture(as_path(path), type(self), FIT).restore(self)
        self._stepwise = None


def _parameters_to(estimator: MixtureState) -> Archive:
    values = estimator.get_params(deep=False)
    model = values.pop(MODEL, None)
    own = {} if model is None else {MODEL: name_of(model)}
    plain = {name: to_json(_plain(value, name), name) for name, value in values.items()}
    return Archive(type(estimator).__name__, plain | own)


def _fit_to(estimator: MixtureState) -> dict[str, Archive]:
    model, kind = estimator.model_, type(estimator).__name__
    config = Archive(kind, asdict(model.config))
    own = estimator.saved_sites()
    sites = {} if own is None else {SITE + name: torch.from_numpy(value) for name, value in own.sites.items()}
    tensors = Archive(kind, {}, {name: value.detach().cpu() for name, value in model.state_dict().items()} | sites)
    names, seal = getattr(estimator, "feature_names_in_", None), None
    with suppress(InvalidArgumentError):  # parameters that cannot be saved are in no file that this fit could meet
        seal = _parameters_to(estimator).seal
    attributes = Attributes(
        estimator.converged_,
        estimator.num_iter_,
        estimator.nll_,
        estimator.n_features_in_,
        None if names is None else [str(name) for name in names],
        estimator.named_by_anndata_,
        seal,
        config.seal,
        tensors.seal,
        None if own is None else own.name,
        None if own is None else own.engine,
        estimator.reason_,
    )
    return {ATTRIBUTES: Archive.of(kind, attributes), CONFIG: config, TENSORS: tensors}


def _plain(value: Any, name: str) -> Any:
    """Priors as dictionaries; everything else as it is."""
    if name == "priors" and isinstance(value, Mapping):
        stored = {site: None if prior is None else prior_to_json(prior) for site, prior in value.items()}
        lost = {site: value[site] for site, prior in stored.items() if prior is None and value[site] is not None}
        if lost:
            raise InvalidArgumentError(
                f"priors: {lost} are not pyrosplice's or Pyro's, and files hold no code; expected distributions of "
                "pyro.distributions, untransformed."
            )
        return {PRIORS: stored}
    if not isinstance(value, MixturePrior):
        return dict(value) if isinstance(value, Mapping) else value
    return {PRIOR: {part.name: getattr(value, part.name) for part in fields(value)}}


def _given(value: Any) -> Any:
    """Inverse of :func:`_plain`."""
    if isinstance(value, dict) and set(value) == {PRIORS}:
        return {site: None if prior is None else prior_from_json(prior) for site, prior in value[PRIORS].items()}
    if not isinstance(value, dict) or set(value) != {PRIOR}:
        return value
    check_keys(value[PRIOR], [part.name for part in fields(MixturePrior)], PRIOR)
    return MixturePrior(**value[PRIOR])


def _check(model: GaussianMixtureModel, attributes: Attributes) -> None:
    """Raise unless the tensors are those of a mixture of the attributes' features."""
    if model.config.num_features != attributes.n_features_in_:
        raise ModelFileError(
            f"means: expected {attributes.n_features_in_} features, found {model.config.num_features}."
        )
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ModelFileError(f"{name}: expected finite numbers, found NaN or infinity.")
