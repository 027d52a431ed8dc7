"""Files of every format version that was ever written load, or are refused in words.

``stored/before_one_rule.zip`` is of the commit before there was one rule of versions (usage 1, expression 2, mixture
1), ``stored/version_3.zip`` of the first with it.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as bytes_of

from pyrosplice import ExpressionGLM, GaussianMixture, SplisosmGLMM
from pyrosplice.errors import ModelFileError
from tests.faults.models import content_of, put, tensors_and_header

STORED = Path(__file__).parent / "stored"


def unpacked(name, folder):
    shutil.unpack_archive(STORED / f"{name}.zip", folder)
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return unpacked("before_one_rule", tmp_path_factory.mktemp("old"))


def of_old(name, path):
    """A few numbers of an old file, and whatever else it can give."""
    if name == "usage":
        model = SplisosmGLMM.load(path)
        assert "priors beta ~ Normal(loc=0, scale=1)" in repr(model) and "CAR, rho 0.99, 24 edges" in repr(model)
        tables = [model.get_formatted_test_results(kind)["pvalue"] for kind in ("du", "sv")]
        return model, np.concatenate([*tables, model.get_training_summary()["best_loss"]])
    if name == "expression":
        model = ExpressionGLM.load(path)
        return model, np.concatenate([model.summary()["effect"][:3], model.cond(g="b", t=0.3)])
    model = GaussianMixture.load(path)
    assert model.feature_names_in_.tolist() == ["u", "v"] and model.trainer_params == {"max_epochs": 5}
    return model, torch.cat([model.model_.means, model.init_means]).numpy().ravel()


OLD_NUMBERS = {
    "usage": [0.048797, 0.420935, 0.543418, 0.327136, 45.691180, 46.840864],
    "expression": [1.454861, 0.098853, 0.131009, 1, 1, 0, 0.441, 0.189, 0.027],
    "mixture": [-0.1253, 0.0495, 4.2419, 4.2866, 0.12573022, -0.13210486, 4.64042265, 4.10490012],
}


@pytest.mark.parametrize("stored", ["before_one_rule", "version_3"])
@pytest.mark.parametrize("name", OLD_NUMBERS)
def test_files_of_every_version_load(stored, name, tmp_path):
    model, numbers = of_old(name, unpacked(stored, tmp_path) / name)
    np.testing.assert_allclose(numbers, OLD_NUMBERS[name], atol=1e-4)
    model.save(tmp_path / "new")
    np.testing.assert_array_equal(of_old(name, tmp_path / "new")[1], numbers)


@pytest.mark.parametrize("name", OLD_NUMBERS)
def test_damage_of_files_of_before_there_was_one_rule(old, name, tmp_path):
    rng, files = random.Random(3), content_of(old / name)
    for _ in range(60):
        part = rng.choice([key for key in files if not key.endswith(".json")])  # JSON had no checksum
        damaged = bytearray(files[part])
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with pytest.raises(ModelFileError, match="model"):
            of_old(name, put(tmp_path / "model", {**files, part: bytes(damaged)}))


@pytest.mark.parametrize("name", ["usage", "expression"])
def test_a_file_without_a_checksum_is_refused(old, name, tmp_path):
    tensors, header = tensors_and_header((old / name).read_bytes())
    del header["sha256"]
    (tmp_path / "model").write_bytes(bytes_of(tensors, header))
    with pytest.raises(ModelFileError, match=r"model' has no checksums.*fit the model again"):
        of_old(name, tmp_path / "model")
