"""The command line: what it takes and refuses, its exit codes, its help, and what it leaves in a folder."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrosplice import SplisosmGLMM
from pyrosplice._jobs import command_line, help_texts, usage_figures
from pyrosplice._jobs.command_line import JOBS, run_command
from pyrosplice._jobs.command_options import command_parser
from pyrosplice._jobs.job_progress import say
from pyrosplice._jobs.results_folder import OutputOptions, ResultsFolder, file_names
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from tests.test_report import PageReader

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--no-figures", "--quiet"]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """A file of eight genes, five with three isoforms, on 64 spots; with words and spaces of any script in names."""
    adata = simulate_isoforms(n_spots=64, n_genes=8, covariates=("iid",), seed=0)
    adata.obs["schicht ü"] = pd.Categorical(np.where(np.arange(64) < 32, "außen", "innen"))
    adata.obs["cluster"] = np.arange(64) % 3
    adata.obs["constant"] = 1.0
    adata.obs["gaps"] = np.where(np.arange(64) < 5, None, adata.obs["schicht ü"].astype(str))
    single = adata.var["gene_symbol"].isin(["gene_6", "gene_7", "gene_8"])
    first = ~adata.var["gene_symbol"].duplicated()
    path = tmp_path_factory.mktemp("a folder") / "gewebe µ.h5ad"
    adata[:, (~single | first).to_numpy()].copy().write_h5ad(path)
    return path


def refused(capsys, *words, code=1):
    """What standard error says of words that end with this exit code, without a traceback."""
    assert run_command([str(word) for word in words]) == code
    told = capsys.readouterr()
    assert "Traceback" not in told.err and not told.out
    return told.err


def test_a_file_becomes_tables_a_page_and_a_record(tissue, tmp_path, capsys):
    out = tmp_path / "results ü"
    assert (
        run_command(["usage", str(tissue), "--covariate", "schicht ü", "--out", str(out), *FAST, "--write-h5ad"]) == 0
    )
    told = capsys.readouterr()
    assert "5 genes, 5 converged" in told.out and "3 of 8 genes have fewer than two isoforms" in told.out
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert sorted(record["files"]) == sorted(path.name for path in out.iterdir())
    assert record["options"]["covariates"] == ["schicht ü"] and record["settings"]["counts"] == "layers['counts']"
    assert record["settings"]["n_genes"] == 5 and record["settings"]["n_genes_of_file"] == 8
    assert len(record["settings"]["data"]["sha256"]) == 64
    page = PageReader((out / "index.html").read_text(encoding="utf-8"))
    links = [link["href"] for link in page.of("a")]
    assert all(href.startswith("#section-") or (out / href).is_file() for href in links)
    assert len([href for href in links if href.endswith("run.json")]) == 1


def test_tables_are_those_of_the_library(tissue, tmp_path):
    out = tmp_path / "out"
    assert run_command(["usage", str(tissue), "--covariate", "iid", "--out", str(out), *FAST, "--write-h5ad"]) == 0
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False, isoform_effect="symmetric")
    model.setup_data(anndata.read_h5ad(tissue), group_gene_by_n_iso=True, design_mtx=["iid"])
    model.fit(batch_size=32, print_progress=False, random_seed=0)
    model.test_spatial_variability(method="score", print_progress=False)
    model.test_differential_usage(method="score", print_progress=False)
    for kind, name in (("sv", "spatial_variability"), ("du", "differential_usage")):
        written = pd.read_csv(out / f"{name}.csv", keep_default_na=False)
        pd.testing.assert_frame_equal(written, model.get_formatted_test_results(kind), check_exact=False, rtol=1e-9)
    loaded = SplisosmGLMM.load(out / "model.pyrosplice")
    assert loaded.gene_names == model.gene_names
    annotated = anndata.read_h5ad(out / "annotated.h5ad")
    assert annotated.shape == anndata.read_h5ad(tissue).shape and "usage" in annotated.uns


def test_a_record_repeats_its_run(tissue, tmp_path):
    for out in (tmp_path / "a", tmp_path / "b"):
        words = ["usage", str(tissue), "--as-label", "cluster", "--covariate", "cluster", "--no-space", "--layer", "X"]
        if out.name == "b":
            words = json.loads((tmp_path / "a" / "run.json").read_text(encoding="utf-8"))["arguments"]
            words = [str(out) if word == str(tmp_path / "a") else word for word in words]
        else:
            words += ["--out", str(out), *FAST]
        assert run_command(words) == 0
    for table in (tmp_path / "a").glob("*.csv"):
        first, again = pd.read_csv(table), pd.read_csv(tmp_path / "b" / table.name)
        timed = [name for name in first if "time" in name or "seconds" in name]  # of the fits, which is no result
        pd.testing.assert_frame_equal(first.drop(columns=timed), again.drop(columns=timed))
    covariates = set(pd.read_csv(tmp_path / "a" / "differential_usage.csv")["covariate"])
    assert len(covariates) > 1  # one a label, not one slope


def test_labels_that_are_missing_are_refused_or_left_out(tissue, tmp_path, capsys):
    words = ["usage", tissue, "--covariate", "gaps", "--out", tmp_path / "out", *FAST]
    assert "gaps" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()
    assert run_command([str(word) for word in [*words, "--missing", "drop"]]) == 0
    assert "warning:" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["n_spots"] == 59
    assert "5 of 64 spots" in record["warnings"][0]
    assert record["warnings"][0] in PageReader((tmp_path / "out" / "index.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layer", "raw"], "--layer: expected one of ['counts', 'true_ratios', 'X'], found 'raw'"),
        (["--gene-key", "symbol"], "--gene-key: expected a column of var"),
        (["--covariate", "iids"], "--covariate: expected a column of obs"),
        (["--covariate", "constant"], "constant"),
        (["--section-key", "slide"], "--section-key: expected a column of obs"),
        (["--spatial-key", "umap"], "--spatial-key: expected a key of obsm"),
        (["--spatial-key", "x,y"], "--spatial-key: expected a key of obsm"),
        (["--spatial-key", "spatial", "--no-space"], "--spatial-key, --no-space"),
        (["--no-space"], "nothing to test"),
        (
            ["--no-space", "--covariate", "iid", "--section-key", "cluster"],
            "--section-key: sections are of coordinates",
        ),
        (["--covariate", "iid", "--formula", "~ iid"], "--covariate, --formula"),
        (["--as-label", "layers"], "--as-label: expected a column of obs"),
        (["--device", "abacus"], "device"),
        (["--formula", "~ nothing"], "nothing"),
    ],
)
def test_what_the_data_do_not_have_is_refused_before_any_work(tissue, tmp_path, capsys, words, said):
    assert said in refused(capsys, "usage", tissue, *words, "--out", tmp_path / "out", *FAST)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["usage"],
        ["usage", "f.h5ad"],
        ["usage", "f.h5ad", "--out", ""],
        ["usage", "f.h5ad", "--out", "o", "--seed", "-1"],
        ["usage", "f.h5ad", "--out", "o", "--seed", str(2**40)],
        ["usage", "f.h5ad", "--out", "o", "--jobs", "0"],
        ["usage", "f.h5ad", "--out", "o", "--jobs", "two"],
        ["usage", "f.h5ad", "--out", "o", "--missing", "ignore"],
        ["usage", "f.h5ad", "--out", "o", "--cov", "iid"],  # no abbreviations: a new option must not change a script
        ["expression", "f.h5ad", "--out", "o", "--formula", "~ a"],
        ["expression", "f.h5ad", "--out", "o", "--formula", "~ a", "--test", "a", "--seed", "1"],  # nothing is random
        ["expression", "f.h5ad", "--out", "o", "--formula", "~ a", "--test", "a", "--reference", "a"],
        ["expression", "f.h5ad", "--out", "o", "--formula", "~ a", "--test", "a", *["--reference", "a=b"] * 2],
        ["states", "f.h5ad", "--out", "o"],
        ["states", "f.h5ad", "--out", "o", "--components", "0"],
        ["states", "f.h5ad", "--out", "o", "--components", "4-2"],
        ["states", "f.h5ad", "--out", "o", "--components", "1,x"],
        ["demo", "--out", "o", "--covariate", "iid"],  # of a file, and there is none
        ["demo", "--out", "o", "--data", "f.h5ad", "--n-spots", "64"],  # of a simulation
    ],
)
def test_wrong_options_are_code_2(capsys, words):
    assert "usage: pyrosplice" in refused(capsys, *words, code=2)


@pytest.mark.parametrize("job", ["usage", "expression", "states", "demo"])
def test_help_teaches_in_letters_that_every_console_has(capsys, job):
    assert run_command([job, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    for word in ("examples:", "exit codes: 0 done; 1", "130", "tables:", "--out", "default"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("job", list(JOBS))
def test_every_option_of_a_job_can_be_given_and_every_word_is_an_option(job):
    """What the parser takes and no class holds would be ignored."""
    parser = command_parser()
    own = next(action for action in parser._actions if action.choices).choices[job]
    given = {action.dest for action in own._actions if action.dest != "help"}
    held = {field.name for kind in (JOBS[job].options, OutputOptions) for field in fields(kind)}
    assert given == held


@pytest.mark.parametrize("job", ["usage", "expression", "states", "demo"])
def test_examples_of_the_help_are_taken(job):
    text = help_texts.JOBS[job][1].split("\n\n")[0].replace("\n      ", " ")
    examples = re.findall(r"^  pyrosplice (.*)$", text, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert command_parser().parse_args(shlex.split(example)).job == job


def test_a_folder_with_results_is_replaced_only_by_force(tissue, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["usage", str(tissue), "--no-space", "--covariate", "iid", "--out", str(out), *FAST]
    assert run_command([*words, "--write-h5ad"]) == 0
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert "--force" in refused(capsys, *words)
    assert "--layer" in refused(capsys, *words, "--force", "--layer", "none")  # what fails replaces nothing
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run_command([*words, "--force"]) == 0
    assert "annotated.h5ad" not in {
        path.name for path in out.iterdir()
    }  # of the earlier run, and no result of this one
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_record_that_lists_files_elsewhere_takes_none_of_them_away(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.csv"
    out.mkdir()
    other.write_text("mine", encoding="utf-8")
    (out / "run.json").write_text(json.dumps({"files": ["../other.csv", str(other), 3, "run.json"]}), encoding="utf-8")
    folder = ResultsFolder(OutputOptions(out=out, force=True, figures=False))
    folder.open()
    folder.write("a.csv", b"a", "a table")
    assert other.exists() and sorted(path.name for path in out.iterdir()) == ["a.csv"]


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', "\xff"])
def test_a_record_that_is_none_of_ours_is_left(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    folder = ResultsFolder(OutputOptions(out=tmp_path, force=True, figures=False))
    folder.write("a.csv", b"a", "a table")
    assert (tmp_path / "run.json").exists()


def test_what_cannot_be_written_is_refused_before_reading(tissue, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "inside", tmp_path / "a\0b"):
        said = refused(capsys, "usage", tissue, "--out", out, *FAST)
        assert "out" in said or "path" in said

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    assert "cannot be written" in refused(capsys, "usage", tissue, "--out", tmp_path / "out", *FAST)


def test_files_that_are_none_are_refused(tmp_path, capsys):
    assert "no such file" in refused(capsys, "usage", tmp_path / "none.h5ad", "--out", tmp_path / "out", *FAST)
    (tmp_path / "text.h5ad").write_text("no HDF5", encoding="utf-8")
    assert "could not be read as h5ad" in refused(
        capsys, "usage", tmp_path / "text.h5ad", "--out", tmp_path / "o", *FAST
    )
    (tmp_path / "folder.zarr").mkdir()
    assert "could not be read as zarr" in refused(
        capsys, "usage", tmp_path / "folder.zarr", "--out", tmp_path / "o", *FAST
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize("change", ["fractional", "negative", "one spot", "one isoform a gene", "no genes"])
def test_data_that_are_no_counts_are_refused(tmp_path, capsys, change):
    adata = simulate_isoforms(n_spots=25, n_genes=3, seed=0)
    counts = adata.layers["counts"].toarray().astype(float)
    if change == "fractional":
        adata.layers["counts"] = counts / 2 + 0.25
    elif change == "negative":
        adata.layers["counts"] = counts - 1
    elif change == "one spot":
        adata = adata[:1].copy()
    elif change == "no genes":
        adata = adata[:, :0].copy()
    else:
        adata = adata[:, ~adata.var["gene_symbol"].duplicated()].copy()
    adata.write_h5ad(tmp_path / "tissue.h5ad")
    said = refused(capsys, "usage", tmp_path / "tissue.h5ad", "--out", tmp_path / "out", *FAST)
    assert len(said.splitlines()) <= 3 and not (tmp_path / "out").exists()


def test_interruption_is_130_and_leaves_no_folder(tissue, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(usage_figures, "analyze", interrupted)
    assert "interrupted" in refused(capsys, "usage", tissue, "--out", tmp_path / "out", *FAST, code=130)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_and_leaves_no_record(tissue, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyrosplice._jobs.results_folder.write_whole", full)
    words = ["usage", tissue, "--no-space", "--covariate", "iid", "--out", tmp_path / "out", *FAST]
    assert "No space left" in refused(capsys, *words)
    assert not (tmp_path / "out" / "run.json").exists()


def test_packages_that_are_not_there_are_asked_for_before_any_work(tissue, tmp_path, capsys, monkeypatch):
    real = command_line.ResultsFolder.open.__globals__["_version"]
    globals_ = command_line.ResultsFolder.open.__globals__
    monkeypatch.setitem(globals_, "_version", lambda name: None if name in ("matplotlib", "pyarrow") else real(name))
    assert "pyrosplice[plot]" in refused(capsys, "usage", tissue, "--out", tmp_path / "out")
    assert "pyarrow" in refused(capsys, "usage", tissue, "--out", tmp_path / "out", "--no-figures", "--parquet")


def test_errors_of_our_own_making_are_not_hidden(tissue, tmp_path, monkeypatch):
    """A message without a traceback is for what a person can mend, never for a fault of the library."""
    monkeypatch.setattr(usage_figures, "analyze", lambda *_, **__: {}["fault"])
    with pytest.raises(KeyError):
        run_command(["usage", str(tissue), "--out", str(tmp_path / "out"), *FAST])


def test_a_console_without_greek_letters_shows_the_rest():
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")
    say(console, "true σ: µ ü")
    assert console.buffer.getvalue() == "true ?: µ ü\n".encode("cp1252")


def test_names_of_files_are_ones_that_every_system_tells_apart():
    names = ["a", "A", "a/b", "a\\b", 'a:b*?"<>|', "ü", "u\u0308", "x" * 300, "x" * 301, "..", "", "层"]
    files = list(file_names(names).values())
    assert len({name.casefold() for name in files}) == len(names)
    for name in files:
        assert re.fullmatch(r"\w{1,90}", name), name
    assert file_names(names)["层"] == "层"


def test_warnings_are_told_once_and_filters_stay_as_they_were(capsys):
    before, told = list(warnings.filters), []
    with command_line.warnings_told("pyrosplice usage", told):
        for _ in range(3):
            warnings.warn("look", UserWarning, stacklevel=1)
        warnings.warn("for programmers", FutureWarning, stacklevel=1)
    assert told == ["look"] and capsys.readouterr().err == "pyrosplice usage: warning: look\n"
    assert warnings.filters == before


@pytest.mark.slow
@pytest.mark.parametrize("words", [["pyrosplice"], ["pyrosplice.demo"]])
def test_the_module_is_a_program(words, tmp_path):
    program = [sys.executable, "-m", *words, *(["demo"] if words == ["pyrosplice"] else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "cp1252"}
    environment.pop("MPLBACKEND", None)
    small = ["--n-spots", "36", "--n-genes", "2"]
    done = subprocess.run(
        [*program, "--out", "out", *small], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"2 genes" in done.stdout and b"step" in done.stderr  # its progress
    assert (tmp_path / "out" / "index.html").is_file() and list((tmp_path / "out").glob("*.png"))
    again = subprocess.run([*program, "--out", "out"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert again.returncode == 1 and b"--force" in again.stderr and b"Traceback" not in again.stderr


def test_the_folder_refuses_by_our_error(tmp_path):
    (tmp_path / "x").write_text("", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="--force"):
        ResultsFolder(OutputOptions(out=tmp_path, figures=False)).open()
