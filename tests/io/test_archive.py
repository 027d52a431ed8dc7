"""The mechanics of files, apart from any model: what goes in comes out, and nothing else does."""

import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._io.archive import Archive
from pyrosplice._io.atomic import DAY, PREFIX, write_whole
from pyrosplice._io.codec import check_sizes
from pyrosplice._io.folder import UNFINISHED, Folder
from pyrosplice._io.storable import anndata_from_bytes, anndata_to_bytes
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.reasons import Reason


@dataclass(frozen=True)
class Inner:
    values: dict[str, Tensor]
    done: bool


@dataclass(frozen=True)
class Ended:
    why: list[Reason]


@dataclass(frozen=True)
class Outer:
    count: int
    loss: float
    name: str | None
    inner: list[Inner]
    names: tuple[str, ...]
    used: list[frozenset[str]]
    array: NDArray[np.float64]
    free: Any


text = st.text(max_size=4)
numbers = arrays.arrays(np.float64, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
tensors = numbers.map(lambda a: torch.tensor(a, dtype=torch.float32))
free = st.recursive(
    st.none() | st.booleans() | st.integers() | text | numbers, lambda s: st.dictionaries(text, s), max_leaves=4
)
outer = st.builds(
    Outer,
    st.integers(),
    st.floats(),
    st.none() | text,
    st.lists(st.builds(Inner, st.dictionaries(text, tensors, max_size=2), st.booleans()), max_size=2),
    st.lists(text).map(tuple),
    st.lists(st.frozensets(text)),
    numbers,
    free,
)


def same(a, b):
    if isinstance(a, (Outer, Inner)):
        return all(same(value, getattr(b, name)) for name, value in vars(a).items())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, Tensor, float)):
        x, y = np.asarray(a), np.asarray(b)
        return type(a) is type(b) and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)
    return type(a) is type(b) and a == b


@given(outer)
@settings(max_examples=40)
def test_what_a_dataclass_holds_comes_back(record):
    archive = Archive.of("Outer", record)
    again = Archive.of_bytes(archive.to_bytes(), "file")
    assert again.seal == archive.seal
    assert same(record, again.to(Outer))


def test_keys_with_dots_are_not_taken_for_each_other():
    record = Inner({"a.b": torch.zeros(1), "a": torch.ones(2)}, True)
    free = {"a.b": np.zeros(1), "a": {"b": np.ones(2)}}
    for made in (record, Outer(1, 2.0, "a", [record], ("x",), [], np.zeros(2), free)):
        assert same(made, Archive.of("K", made).to(type(made)))


RECORD = Outer(1, 2.0, "a", [], ("x",), [], np.zeros(2), 3)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"count": 1.5}, "count: expected int, found '1.5'"),
        ({"count": True}, "count: expected int"),
        ({"name": 3}, "name: expected str"),
        ({"names": "x"}, "names: expected list"),
        ({"inner": [{"values": {}, "done": 1}]}, "inner.0.done: expected bool"),
        ({"inner": [{"values": {}}]}, "inner.0.done: missing"),
        ({"array": "more"}, "array: its tensor 'more' is not in the file"),
        ({"free": {"part": "array"}}, "free: its tensor 'array' is not in the file, or is that of something else"),
        ({"new": 1}, "new: unknown"),
    ],
)
def test_what_is_not_of_its_type_is_named(changed, words):
    archive = Archive.of("Outer", RECORD)
    with pytest.raises(ModelFileError, match=words):
        Archive("Outer", archive.content | changed, archive.tensors).to(Outer)


def test_a_tensor_of_another_type_or_of_nothing_is_named():
    archive = Archive.of("Outer", RECORD)
    with pytest.raises(ModelFileError, match="array: expected an array of float64, found int64"):
        Archive("Outer", archive.content, {"array": torch.zeros(2, dtype=torch.int64)}).to(Outer)
    with pytest.raises(ModelFileError, match=r"found \['more'\], which no part of a Outer is"):
        Archive("Outer", archive.content, {**archive.tensors, "more": torch.zeros(2)}).to(Outer)


def test_sizes_that_are_not_the_same_are_named():
    check_sizes(a=(np.zeros((2, 3)), "GD"), b=(["x", "y"], "G"), c=(torch.zeros(3, 3), "DD"))
    with pytest.raises(ModelFileError, match=r"b: expected shape \(2,\), found \(3,\)"):
        check_sizes(a=(np.zeros((2, 3)), "GD"), b=(["x"] * 3, "G"))
    with pytest.raises(ModelFileError, match=r"c: expected shape \(2, 2\), found \(2, 3\)"):
        check_sizes(c=(torch.zeros(2, 3), "DD"))


def test_names_that_a_file_has_for_itself_are_refused():
    with pytest.raises(InvalidArgumentError, match="content"):
        Archive("A", {}, {"content": torch.zeros(1)}).to_bytes()
    with pytest.raises(InvalidArgumentError, match="kind"):
        Archive("A", {"kind": 1}).to_json()


def test_a_kind_may_name_its_json_itself(tmp_path):
    archive = Archive("A", {"x": 1}, {"t": torch.ones(2)}, part="about")
    archive.save(tmp_path / "a")
    read = Archive.load(tmp_path / "a", "A")
    assert (read.content, read.part) == (archive.content, "about")
    with pytest.raises(InvalidArgumentError, match="'about' is the name of the JSON"):
        Archive("A", {}, {"about": torch.zeros(1)}, part="about").to_bytes()


def test_a_file_is_on_the_disk_before_it_takes_a_place(tmp_path, monkeypatch):
    happened, fsync, replace = [], os.fsync, Path.replace

    def synced(handle):
        happened.append("fsync")
        fsync(handle)

    def replaced(self, target):
        happened.append("replace")
        assert self.read_bytes() == b"new"
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(tmp_path / "a", b"new")
    assert happened == ["fsync", "replace", "fsync"]


def test_what_kills_have_left_goes_in_the_end(tmp_path):
    for name, age in (("now", 0), ("old", 2 * DAY)):
        file = tmp_path / f"{PREFIX}{name}.partial"
        file.write_bytes(b"x")
        os.utime(file, (time.time() - age,) * 2)
    write_whole(tmp_path / "a", b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", f"{PREFIX}now.partial"}


def test_who_may_read_a_file_stays_as_it_was(tmp_path):
    write_whole(tmp_path / "a", b"old")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "a").chmod(0o640)
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_protected_file_is_left_with_what_to_do(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs this may be allowed everything
    with pytest.raises(PermissionError, match="write-protected") as raised:
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert "what stood there is as it was; save to another place" in raised.value.__notes__[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_folder_keeps_what_is_not_its_own(tmp_path):
    folder = Folder(tmp_path / "m", ("a.json", "in/b.json"))
    folder.write({"a.json": Archive("K", {"x": 1}), "in/b.json": Archive("K", {"x": 2})})
    for name in ("notes.txt", "in/notes.txt"):
        (tmp_path / "m" / name).write_text("mine")
    folder.write({"a.json": Archive("K", {"x": 3})}, absent=["in/b.json"])
    assert {n: a.content for n, a in folder.read("K", no_upgrade, folder.names).items()} == {"a.json": {"x": 3}}
    assert (tmp_path / "m" / "in" / "notes.txt").read_text() == "mine"


def test_an_unfinished_save_is_read_and_then_finished_as_a_whole(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "m", ("a.json", "in/b.json", "c.json"))
    folder.write({"a.json": Archive("K", {"x": 1}), "in/b.json": Archive("K", {"x": 2})})
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "_finish", lambda _: None)
        folder.write({"a.json": Archive("K", {"x": 3})}, absent=["in/b.json"])
        assert (tmp_path / "m" / "in" / "b.json").exists()
        assert {n: a.content for n, a in folder.read("K", no_upgrade, folder.names).items()} == {"a.json": {"x": 3}}
    folder.write({"c.json": Archive("K", {"x": 4})})
    found = {n: a.content["x"] for n, a in folder.read("K", no_upgrade, folder.names).items()}
    assert found == {"a.json": 3, "c.json": 4}
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"m", "m/a.json", "m/c.json"}


def no_upgrade(*_):
    raise AssertionError


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "b.json"])
def test_an_unfinished_save_writes_its_own_files_only(name, tmp_path):
    folder = Folder(tmp_path / "m", ("a.json",))
    folder.write({"a.json": Archive("K", {"x": 1})})
    Archive("save", {"absent": []}, {name: torch.zeros(3, dtype=torch.uint8)}).save(tmp_path / "m" / UNFINISHED)
    with pytest.raises(ModelFileError, match="not those of its folder"):
        folder.read("K", no_upgrade, folder.names)
    folder.write({"a.json": Archive("K", {"x": 2})})
    assert folder.read("K", no_upgrade, folder.names)["a.json"].content == {"x": 2}
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"m", "m/a.json"}


def huge(group, _):
    group.create_dataset("it", shape=(3, 2**40), dtype="f8", chunks=(1, 1024))


def link(group, other):
    group["it"] = h5py.ExternalLink(str(other), "/secret")


def external(group, other):
    group.create_dataset("it", shape=(3,), dtype="f8", external=[(str(other), 0, 24)])


def virtual(group, other):
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(other), "secret", shape=(3,))
    group.create_virtual_dataset("it", layout)


@pytest.mark.parametrize(
    ("spoil", "words"), [(huge, "larger than its file"), (link, "link"), (external, "another"), (virtual, "another")]
)
def test_an_anndata_that_reads_other_files_or_too_much_is_refused(spoil, words, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as h5:
        h5["secret"] = np.arange(3.0)
    file, rest = anndata_to_bytes(ad.AnnData(np.ones((3, 2), dtype=np.float32), uns={"deep": {"none": None, "a": 1}}))
    buffer = io.BytesIO(file)
    with h5py.File(buffer, "r+") as h5:
        spoil(h5["obsm"], other)
    with pytest.raises(ModelFileError, match=rf"adata/obsm/it.*{words}"):
        anndata_from_bytes(buffer.getvalue(), rest)
    assert anndata_from_bytes(file, rest).uns["deep"] == {"none": None, "a": 1}


def test_words_of_a_vocabulary_come_back_as_what_they_are():
    stored = Archive.of("Kind", Ended([Reason.CONVERGED, Reason.NO_COUNTS]))
    assert stored.content["why"] == ["converged", "no_counts"] and type(stored.content["why"][0]) is str
    assert all(type(word) is Reason for word in stored.to(Ended).why)
    with pytest.raises(ModelFileError, match=r"why.0: expected one of running, converged, .*found 'tired'"):
        Archive("Kind", {"why": ["tired"]}).to(Ended)
