"""Whatever happens to a saved model, it loads as it was or is refused by name: every family, by the same rules.

Spoiled files are of four kinds: bytes flipped and files cut anywhere; parts dropped, added and exchanged; files of
other programs; and files with valid checksums that say what no model of the class says. Saves are stopped at every
step that touches the disk.
"""

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as bytes_of

from pyrosplice import GaussianMixture
from pyrosplice._io.archive import FORMAT_VERSION, Archive
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NoModelFileError
from tests.faults.models import FAMILIES, content_of, put, tensors_and_header

EXECUTED = []


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.kind.__name__)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def whole(family, tmp_path_factory):
    """The files of a saved model."""
    path = tmp_path_factory.mktemp("whole") / "model"
    family.model(0).save(path)
    assert family.is_model(path, 0)
    return content_of(path)


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Waiting for the disk is not what these tests are about, but for the one of it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def refused_or_equal(family, path):
    """False where the model is refused in the library's words; True where it is the one that was saved."""
    try:
        found = family.is_model(path, 0)
    except ModelFileError as error:
        assert str(path) in str(error)
        return False
    assert found, "loaded, with other numbers"
    return True


def test_a_changed_byte_anywhere(family, whole, tmp_path):
    rng, equal, n = random.Random(0), 0, 400 // len(whole)
    for name, data in whole.items():
        length = len(data) if name.endswith(".json") else 8 + int.from_bytes(data[:8], "little")
        header = rng.sample(range(length), min(length, n // 2))
        for place in [*range(8), *header, *(rng.randrange(len(data)) for _ in range(n // 2))]:
            damaged = bytearray(data)
            damaged[place] = rng.choice([damaged[place] ^ 1 << rng.randrange(8), rng.randrange(256)])
            equal += refused_or_equal(family, put(tmp_path / "model", {**whole, name: bytes(damaged)}))
    assert equal < 40  # blanks between the words of a header, and bytes put back as they were


def test_a_cut_or_a_longer_file(family, whole, tmp_path):
    rng = random.Random(1)
    for name, data in whole.items():
        cuts = {0, 1, 7, 8, 9, len(data) - 1, *(rng.randrange(len(data)) for _ in range(60))}
        for spoiled in [*(data[:cut] for cut in cuts), data + b"\0", data + data, data[1:]]:
            assert not refused_or_equal(family, put(tmp_path / "model", {**whole, name: spoiled}))


def test_a_file_that_is_gone_or_another_models(family, whole, tmp_path):
    family.model(1).save(tmp_path / "other")
    other = content_of(tmp_path / "other")
    for name in whole:
        if name:
            left = {key: data for key, data in whole.items() if key != name}
            assert not refused_or_equal(family, put(tmp_path / "model", left))
            equal = refused_or_equal(family, put(tmp_path / "model", {**whole, name: other[name]}))
            assert not equal or other[name] == whole[name]
        for foreign in foreign_files(tmp_path):
            assert not refused_or_equal(family, put(tmp_path / "model", {**whole, name: foreign}))


class Payload:
    def __reduce__(self):
        return EXECUTED.append, (1,)


def foreign_files(folder):
    """Files that other programs write, and headers that promise too much."""
    np.savez(folder / "a.npz", a=np.zeros(3))
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "a.pt")
    deep = b"[" * 100_000
    header = json.dumps({"__metadata__": {"format": "pyrosplice", "content": "[" * 9999}}).encode()
    huge = json.dumps({"a": {"dtype": "F64", "shape": [2**40, 2**20], "data_offsets": [0, 2**63]}}).encode()
    yield from (b"", b"gene,count\n" * 100, b"{}", b"[]", b"null", b"3", b'{"format_version": 3}', deep, os.urandom(99))
    yield from ((folder / name).read_bytes() for name in ("a.npz", "a.pt"))
    yield pickle.dumps(Payload())
    yield bytes_of({"a": torch.zeros(3)})
    yield bytes_of({"a": torch.zeros(3)}, {"format": "pt"})
    for text in (b"{}", deep, header, huge, b'{"__metadata__": []}'):
        yield struct.pack("<Q", len(text)) + text
    yield struct.pack("<Q", 2**62) + b"{}"


def test_nothing_in_a_file_is_executed(family, whole, tmp_path):
    for name in whole:
        put(tmp_path / "model", {**whole, name: pickle.dumps(Payload())})
        with pytest.raises(ModelFileError, match="model"):
            family.kind.load(tmp_path / "model")
    assert EXECUTED == []


def test_a_tensor_dropped_added_renamed_exchanged_or_reshaped(family, whole, tmp_path):
    for name, data in whole.items():
        if name.endswith(".json"):
            continue
        tensors, header = tensors_and_header(data)
        for part, tensor in tensors.items():
            rest = {key: value for key, value in tensors.items() if key != part}
            changed = [rest, {**tensors, "more": tensor.clone()}, {**rest, f"{part}s": tensor}]
            changed += [{**rest, part: tensor.clone()[None]}, {**rest, part: tensor.reshape(-1).flip(0)[:-1].clone()}]
            changed += [{**rest, part: tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor.double()}]
            for spoiled in changed:
                put(tmp_path / "model", {**whole, name: bytes_of(spoiled, header)})
                with pytest.raises(ModelFileError, match=rf"damaged: its part '({part}s?|more)'"):
                    family.kind.load(tmp_path / "model")
        for key in header:
            lacking = {k: v for k, v in header.items() if k != key}
            for other in (lacking, {**header, key: "9"}, {**lacking, f"{key}s": header[key]}):
                assert not refused_or_equal(family, put(tmp_path / "model", {**whole, name: bytes_of(tensors, other)}))


def leaves(value, path=()):
    """Every place in JSON, and what is there."""
    yield path, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from leaves(item, (*path, key))


def with_change(value, path, change):
    """A copy of JSON in which ``change`` was made of the thing at ``path``."""
    if not path:
        return change(value)
    made = value.copy()
    made[path[0]] = with_change(value[path[0]], path[1:], change)
    return made


def crafted(family, whole, name, rng):
    """Files with valid checksums in which one thing is of another type, or one field is gone or one too many."""
    is_json = name.endswith(".json")
    archive = (Archive.of_json if is_json else Archive.of_bytes)(whole[name], "model")
    places = list(leaves(archive.content))
    for path, value in rng.sample(places, min(len(places), 30)):
        changes = [lambda _: {"lambda": "print(1)"}]
        if isinstance(value, dict) and "dict" not in value:
            changes.append(lambda value: {**value, "more": 1})
        for change in changes:
            made = Archive(archive.kind, with_change(archive.content, path, change), archive.tensors)
            if not isinstance(made.content, dict) or set(made.content) == {"lambda"}:
                continue
            yield path, made.to_json() if is_json else made.to_bytes()


FREE = ("reference", "state", "sv", "du")  # their keys are names that a person gave


@pytest.mark.slow
def test_valid_checksums_of_what_no_model_says(family, whole, tmp_path):
    rng = random.Random(2)
    for name in whole:
        for path, data in crafted(family, whole, name, rng):
            put(tmp_path / "model", {**whole, name: data})
            try:
                family.kind.load(tmp_path / "model")
            except ModelFileError as error:
                assert str(tmp_path / "model") in str(error)
            else:
                assert any(key in FREE for key in path), f"{name}: {path} was changed and is not missed"


def test_another_kind_or_version_is_named(family, whole, tmp_path):
    for name, data in whole.items():
        is_json = name.endswith(".json")
        archive = (Archive.of_json if is_json else Archive.of_bytes)(data, "model")
        for kind, version, words in (
            ("Other", FORMAT_VERSION, "holds a Other; expected a"),
            (archive.kind, FORMAT_VERSION + 1, f"format version {FORMAT_VERSION + 1}.*reads up to"),
            (archive.kind, 0, "format version 0.*fit the model again"),
        ):
            other = Archive(kind, archive.content, archive.tensors, version)
            put(tmp_path / "model", {**whole, name: other.to_json() if is_json else other.to_bytes()})
            with pytest.raises(ModelFileError, match=words):
                family.kind.load(tmp_path / "model")


class Killed(BaseException):
    """What no clean-up survives."""


STEPS = [(Path, "open"), (Path, "mkdir"), (Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (os, "fsync")]


def stopped_at(monkeypatch, step, error, *, dead):
    """Make the ``step``-th call that touches the disk raise; after it, none has an effect where ``dead``."""
    made = [0]

    def wrapped(call):
        def run(*arguments, **options):
            made[0] += 1
            if made[0] == step or (dead and made[0] > step):
                raise error
            return call(*arguments, **options)

        return run

    for owner, name in STEPS:
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("dead", [True, False], ids=["killed", "disk full"])
@pytest.mark.parametrize("before", [None, 1])
def test_a_save_that_stops_at_any_step(family, tmp_path, monkeypatch, dead, before):
    error = Killed() if dead else OSError(28, "No space left on device")
    for step in range(1, 99):
        path = tmp_path / str(step) / "model"
        path.parent.mkdir()
        if before is not None:
            family.model(before).save(path)
        with monkeypatch.context() as patch:
            made = stopped_at(patch, step, error, dead=dead)
            try:
                family.model(0).save(path)
                kept = 0
            except (Killed, OSError):
                kept = before
        check_kept(family, path, kept, before, dead=dead)
        if step % 3 == 0:
            family.model(2).save(path)
            assert family.is_model(path, 2)
        if made[0] < step:
            break
    assert 4 < step < 60


def check_kept(family, path, kept, before, *, dead):
    """After a save that stopped: one model is whole."""
    if not dead:
        assert not list(path.parent.glob(".*")), "left something beside the model"
    if kept is None and (not dead or not path.exists() or not any(path.iterdir() if path.is_dir() else [path])):
        with pytest.raises(NoModelFileError):
            family.kind.load(path)
    else:
        try:
            assert family.is_model(path, *((0, before) if dead and before is not None else (0 if dead else kept,)))
        except NoModelFileError:
            assert before is None


def test_writers_at_the_same_time(family, tmp_path):
    path, failed = tmp_path / "model", []
    family.model(0).save(path)

    def save(seed):
        try:
            for _ in range(3):
                family.model(seed).save(path)
                assert family.is_model(path, 0, 1, 2)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=save, args=(seed,)) for seed in (0, 1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model", "model.pt", "model.pyrosplice", "a.b.safetensors", "ä b"])
def test_a_name_is_taken_as_it_is_given(family, tmp_path, name):
    family.model(0).save(tmp_path / "new" / name)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [name]
    assert family.is_model(tmp_path / "new" / name, 0)
    family.model(1).save(str(tmp_path / "new" / name))
    assert family.is_model(tmp_path / "new" / name, 1)


def test_a_link_stays_a_link(family, tmp_path):
    family.model(0).save(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    family.model(1).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and family.is_model(tmp_path / "model", 1)


@pytest.mark.parametrize("path", [None, 3, b"x", "", "a\0b"], ids=str)
def test_what_is_no_path_is_refused(family, path):
    for call in (family.kind.load, family.model(0).save):
        with pytest.raises(InvalidArgumentError, match="path"):
            call(path)


def test_a_path_without_a_model_is_named(family, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none", tmp_path / "folder"):
        with pytest.raises(FileNotFoundError, match=str(path)) as raised:
            family.kind.load(path)
        assert isinstance(raised.value, ModelFileError)


def test_classes_with_other_options_are_refused(family, whole, tmp_path):
    put(tmp_path / "model", whole)
    other = type("Other", (family.kind,), {})
    with pytest.raises(ModelFileError, match=f"holds a {family.kind.__name__}; expected a Other"):
        other.load(tmp_path / "model")

    def init(self, tempo=1):
        family.kind.__init__(self)
        self.tempo = tempo

    if family.kind is GaussianMixture:
        return  # whose files hold the arguments of the subclass, by scikit-learn's rule
    more = type("More", (family.kind,), {"__init__": init})
    model = more()
    vars(model).update(vars(family.model(0)))
    with pytest.raises(InvalidArgumentError, match=r"More: its constructor differs from its parent's in .*tempo"):
        model.save(tmp_path / "more")
    assert not (tmp_path / "more").exists()


@pytest.mark.slow
def test_saves_that_are_killed(tmp_path):
    call = [sys.executable, "-m", "tests.faults.killed", str(tmp_path), "10"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == [word for family in FAMILIES for word in (family.kind.__name__, "10/10")]
