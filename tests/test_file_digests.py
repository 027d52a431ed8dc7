"""A file of which a bit has changed is refused, wherever the bit is; files without a digest are read as before."""

import random

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from pyrosplice import ExpressionGLM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import ModelFileError


def usage():
    model = SplisosmGLMM("glm")
    model.setup_data(simulate_isoforms(n_spots=16, n_genes=2, seed=0))
    model.fit(print_progress=False)
    return model


def expression():
    counts = np.random.default_rng(0).poisson(5.0, (20, 3))
    return ExpressionGLM("~ 1").fit(counts, sample_description=pd.DataFrame({"a": [0, 1] * 10}))


@pytest.fixture(scope="module", params=[usage, expression], ids=lambda make: make.__name__)
def saved(request, tmp_path_factory):
    path, model = tmp_path_factory.mktemp("files") / "model", request.param()
    model.save(path)
    return type(model), path


def test_a_flipped_bit_is_found(saved, tmp_path):
    kind, path = saved
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(40):
        damaged, place = bytearray(whole), rng.randrange(len(whole))
        damaged[place] ^= 1 << rng.randrange(8)
        (tmp_path / "damaged").write_bytes(bytes(damaged))
        with pytest.raises(ModelFileError):
            kind.load(tmp_path / "damaged")


def test_older_files_have_no_digest(saved, tmp_path):
    kind, path = saved
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["sha256"]
    save_file(tensors, tmp_path / "older", header)
    assert isinstance(kind.load(tmp_path / "older"), kind)


@pytest.mark.parametrize("path", [None, 3, b"x", ""])
def test_what_is_no_path_is_refused(saved, path):
    kind, whole = saved
    for call in (kind.load, kind.load(whole).save):
        with pytest.raises(ValueError, match="path"):
            call(path)
