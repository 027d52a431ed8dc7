"""Whether the package is still one house: import circles, names that stand twice, files and functions of one screen.

    python tools/check_structure.py

Prints what it counts, and exits with 1 where something is new. Names that stood twice when this check was written are
listed in ``structure.toml`` beside this file; the lists may only become shorter.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import grimp
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

PACKAGE = "pyrosplice"
ROOT = Path(__file__).resolve().parents[1]
KNOWN = Path(__file__).with_name("structure.toml")
MOST_LINES_OF_FILE, MOST_LINES_OF_FUNCTION = (
    400,
    40,
)  # without docstrings' examples; of a function without its docstring
MOST_OF_A_FIRST_WORD = 2  # files of a folder whose names start with the same word; more of them are a folder


def main() -> int:
    """Print every count, with what is wrong below it; the number of things that are wrong."""
    sys.path.insert(0, str(ROOT))
    known = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / PACKAGE).rglob("*.py")
    }
    files = {file: ast.parse(text) for file, text in texts.items()}
    circles, inside = import_circles(), sorted(imports_inside_functions(files))
    print(f"import circles: {len(circles)}")
    print(*(f"  {', '.join(circle)}" for circle in circles), sep="\n", end="\n" if circles else "")
    wrong = len(circles)
    wrong += report("imports of the package inside functions", inside, known["imports_inside_functions"])
    wrong += report("file names that stand twice", twice(file_names(files)), known["file_names"])
    wrong += report("names of functions and classes that stand twice", twice(public_names(files)), known["names"])
    wrong += report(f"files over {MOST_LINES_OF_FILE} lines without examples", list(long_files(texts)), [])
    wrong += report(f"functions over {MOST_LINES_OF_FUNCTION} lines", list(long_functions(files)), [])
    wrong += report(f"first words of over {MOST_OF_A_FIRST_WORD} files of a folder", first_words(files), [])
    return wrong


def import_circles() -> list[list[str]]:
    """Modules that import each other, in groups; imports for type checkers count as well."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    modules = sorted(graph.modules)
    place = {module: i for i, module in enumerate(modules)}
    ties = [(place[a], place[b]) for a in modules for b in graph.find_modules_directly_imported_by(a)]
    rows, columns = np.array(ties).T
    matrix = coo_array((np.ones(len(ties)), (rows, columns)), shape=(len(modules), len(modules)))
    _, group = connected_components(matrix, directed=True, connection="strong")
    members = defaultdict(list)
    for module, own in zip(modules, group, strict=True):
        members[int(own)].append(module)
    return [circle for circle in members.values() if len(circle) > 1]


def imports_inside_functions(files: Mapping[str, ast.Module]) -> Iterator[str]:
    """Files and modules of imports of the package that are not at the top of their file."""
    for file, tree in files.items():
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for node in (inner for function in functions for inner in ast.walk(function)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            relative = isinstance(node, ast.ImportFrom) and node.level > 0
            yield from (f"{file}: {name}" for name in names if relative or name.split(".")[0] == PACKAGE)


def file_names(files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names of files, without the underscore of private ones, and where each is."""
    yield from ((Path(file).stem.lstrip("_"), file) for file in files if not Path(file).stem.startswith("__"))


def public_names(files: Mapping[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Public names of functions and classes at the top of a file, and where each is."""
    for file, tree in files.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, file


def twice(named: Iterable[tuple[str, str]]) -> list[str]:
    """Names that stand in several places."""
    places = defaultdict(set)
    for name, file in named:
        places[name].add(file)
    return sorted(name for name, own in places.items() if len(own) > 1)


def long_files(texts: Mapping[str, str]) -> Iterator[str]:
    """Files that are too long for one concept, with their numbers of lines but those of examples."""
    lengths = {file: len(text.splitlines()) - lines_of_examples(text) for file, text in texts.items()}
    yield from (f"{file}: {length}" for file, length in lengths.items() if length > MOST_LINES_OF_FILE)


def lines_of_examples(text: str) -> int:
    """Count the lines that the sections ``Examples`` of docstrings take, with the empty line before each."""
    described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, described))
    return sum(map(length_of_examples, (ast.get_docstring(node) or "" for node in nodes)))


def length_of_examples(docstring: str) -> int:
    """Count the lines from the empty one before ``Examples`` to the next section, or to the end.

    Quotes that stand on a line of their own for nothing but the example, below a single sentence, count as well.
    """
    lines = docstring.splitlines()
    headers = [i for i in range(len(lines) - 1) if lines[i].strip() and re.fullmatch(r"-{3,}", lines[i + 1].strip())]
    start = next((i for i in headers if lines[i].strip() == "Examples"), None)
    if start is None:
        return 0
    end = min((i - 1 for i in headers if i > start), default=len(lines))
    return end - start + 1 + (start == 2 and end == len(lines))


def long_functions(files: Mapping[str, ast.Module]) -> Iterator[str]:
    """Functions whose lines after the docstring are too many, with the number of these lines."""
    for file, tree in files.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            body = node.body if ast.get_docstring(node) is None else node.body[1:]
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > MOST_LINES_OF_FUNCTION:
                yield f"{file}: {node.name}: {length}"


def first_words(files: Iterable[str]) -> list[str]:
    """First words that too many files of a folder share, as ``folder/word_*``, with how many they are."""
    words = Counter(f"{Path(file).parent}/{Path(file).stem.lstrip('_').split('_')[0]}" for file in files)
    return [f"{word}_*: {count}" for word, count in words.items() if count > MOST_OF_A_FIRST_WORD]


def report(what: str, found: list[str], known: list[str]) -> int:
    """Print how many were found, those that are new, and those that are listed and gone; the number of both."""
    new, gone = sorted(set(found) - set(known)), sorted(set(known) - set(found))
    print(f"{what}: {len(found)}" + (f" ({len(found) - len(new)} known)" if known else ""))
    print(*(f"  new: {name}" for name in new), sep="\n", end="\n" if new else "")
    print(*(f"  gone, take it out of {KNOWN.name}: {name}" for name in gone), sep="\n", end="\n" if gone else "")
    return len(new) + len(gone)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
