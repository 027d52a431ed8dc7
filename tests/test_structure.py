"""The check of the package's structure finds what it is for."""

import ast

import pytest

check_structure = pytest.importorskip("tools.check_structure", reason="grimp is a tool of developers")


def test_imports_inside_functions_are_found():
    outside = "import pyrosplice\n"
    method = "def f():\n    import numpy\n    class A:\n        def g(self):\n            from pyrosplice import io\n"
    source = outside + method + "async def h():\n    from . import io\n"
    found = set(check_structure.imports_inside_functions({"a.py": ast.parse(source)}))
    assert found == {"a.py: pyrosplice", "a.py: ."}


def test_public_names_that_stand_twice_are_found():
    files = {"a/x.py": "def f(): ...\nclass A: ...\nONE = 1", "b/x.py": "def f(): ...\ndef _g(): ...\nONE = 1"}
    trees = {name: ast.parse(text) for name, text in files.items()}
    trees["b/__init__.py"] = trees["a/__init__.py"] = ast.parse("def _g(): ...")
    assert check_structure.twice(check_structure.public_names(trees)) == ["f"]
    assert check_structure.twice(check_structure.file_names(trees)) == ["x"]


def test_what_is_new_and_what_is_gone_is_wrong(capsys):
    assert check_structure.report("names", ["a", "b"], ["a", "b"]) == 0
    assert check_structure.report("names", ["a", "c"], ["a", "b"]) == 2
    assert "new: c" in capsys.readouterr().out


def test_what_is_too_long_is_found_without_its_docstring():
    body, docstring = "    x = 1\n" * 40, '    """One.\n' + "\n" * 50 + '    """\n'
    source = f"def f():\n{docstring}{body}\nclass A:\n    async def g(self):\n" + "        x = 1\n" * 41
    assert list(check_structure.long_functions({"a.py": ast.parse(source)})) == ["a.py: g: 41"]
    assert list(check_structure.long_files({"a.py": "x = 1\n" * 400, "b.py": "x = 1\n" * 401})) == ["b.py: 401"]


def test_examples_of_docstrings_do_not_count_as_lines_of_a_file():
    example = "\n    Examples\n    --------\n    >>> 1\n    1\n"
    section = "\n    Notes\n    -----\n    Two.\n"
    short = 'def f():\n    """One."""\n'
    assert check_structure.lines_of_examples(short) == 0
    for tail in ("", section):
        whole = f'def f():\n    """One.\n\n    Three.\n{tail}    """\n'
        shown = f'def f():\n    """One.\n\n    Three.\n{example}{tail}    """\n'
        assert shown.count("\n") - check_structure.lines_of_examples(shown) == whole.count("\n")
    shown = f'class A:\n    """One.\n{example}    """\n'
    assert shown.count("\n") - check_structure.lines_of_examples(shown) == short.count("\n")
    tables = '"""One.\n\n---------\nExamples\n---------\n"""\n'
    assert check_structure.lines_of_examples("x = 1\nExamples = 2\n" + tables) == 0
    long = "x = 1\n" * 396 + shown
    assert list(check_structure.long_files({"a.py": long})) == []
    assert list(check_structure.long_files({"a.py": "x = 1\n" * 3 + long})) == ["a.py: 401"]


def test_first_words_of_files_that_are_a_folder_are_found():
    files = ["a/_unit_x.py", "a/unit_y.py", "a/unit.py", "b/unit_z.py", "a/units.py"]
    assert check_structure.first_words(files) == ["a/unit_*: 3"]
