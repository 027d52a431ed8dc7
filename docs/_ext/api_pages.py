"""Reference pages, one a public name: written from ``__all__`` of each public room, so that none can be missing."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import pyrosplice

PACKAGE = pyrosplice.__name__
# what fits and tests return, of modules that nobody imports from
RESULTS = (
    "pyrosplice._expression.estimator.Estimator",
    "pyrosplice._expression.results.ExpressionTest",
    "pyrosplice._expression.comparisons.ExpressionTests",
    "pyrosplice._expression.continuous.ContinuousTest",
    "pyrosplice._expression.fit.Partition",
    "pyrosplice._expression.partition.TestPartition",
    "pyrosplice._usage.analysis.calibration_check.CalibrationCheck",
    "pyrosplice._usage.refinement.MarginalLikelihood",
    "pyrosplice.glmm._effect_posterior.RandomEffectPosterior",
    "pyrosplice.testing._rank_statistics.PosteriorCalibration",
)
RESULTS_TEXT = "Objects that fits and tests give. They are made by the library, and not imported by name."
# what a page of a class says something about; scikit-learn's own descriptors are not among them
MEMBERS = (FunctionType, property, cached_property, classmethod, staticmethod)


def public_modules() -> list[str]:
    """Names of all public modules of the package, itself first."""
    inside = [module.name for module in pkgutil.iter_modules(pyrosplice.__path__)]
    return [PACKAGE, *sorted(f"{PACKAGE}.{name}" for name in inside if not name.startswith("_"))]


def public_names(module: ModuleType) -> list[str]:
    """Full names of what a module offers: of its ``__all__``, or else of what it defines; namespaces are opened."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in defined if not name.startswith("_")])
    return [full for name in names for full in opened(f"{module.__name__}.{name}", getattr(module, name))]


def opened(name: str, value: object) -> Iterator[str]:
    """A name, or the names in a namespace (those of ``pyrosplice.api``)."""
    if isinstance(value, SimpleNamespace):
        yield from (f"{name}.{inner}" for inner in vars(value) if not inner.startswith("_"))
    elif inspect.isclass(value) or callable(value):
        yield name


def resolve(name: str) -> object:
    """Object of a full name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def own_members(value: type, documented: Mapping[type, str]) -> tuple[list[str], str | None]:
    """Public members that a class has of its own or of private bases, and the public base that has the others."""
    members: dict[str, None] = {}
    for base in value.__mro__:
        if base is not value and base in documented:
            return sorted(members), documented[base]
        if base.__module__.split(".")[0] == PACKAGE:
            own = {name: member for name, member in vars(base).items() if isinstance(member, MEMBERS)}
            members |= dict.fromkeys(name for name in own if not name.startswith("_"))
    return sorted(members), None


def name_page(name: str, documented: Mapping[type, str]) -> str:
    """Text of the page of a class or function."""
    value, short = resolve(name), name.rpartition(".")[2]
    lines = [short, "=" * len(short), "", f".. currentmodule:: {name.rpartition('.')[0]}", ""]
    if not inspect.isclass(value):
        return "\n".join([*lines, f".. autofunction:: {name}", ""])
    members, base = own_members(value, documented)
    with_words = [member for member in members if inspect.getdoc(inspect.getattr_static(value, member))]
    lines += [f".. autoclass:: {name}", "   :members: " + ", ".join(with_words) if with_words else "", ""]
    if base is not None:
        lines += [f"What is not listed here is that of :class:`~{base}`.", ""]
    return "\n".join(lines)


def room_page(module: ModuleType, names: list[str]) -> str:
    """Text of the page of a module: its docstring, and a table of its names."""
    title = module.__name__
    return table_page(title, [f".. automodule:: {title}", "   :no-members:"], names)


def table_page(title: str, lead: list[str], names: list[str]) -> str:
    """Text of a page with a table of names, and theirs below it."""
    lines = [title, "=" * len(title), "", *lead, ""]
    lines += [".. autosummary::", "   :nosignatures:", ""]
    lines += [*(f"   {name.removeprefix(title + '.')}" for name in names), ""]
    lines += [".. toctree::", "   :hidden:", "", *(f"   names/{name}" for name in names), ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """All reference pages by file name."""
    modules = [importlib.import_module(name) for name in public_modules()]
    rooms = {module: public_names(module) for module in modules}
    documented = {value: name for names in rooms.values() for name in names if inspect.isclass(value := resolve(name))}
    documented |= {resolve(name): name for name in RESULTS}
    texts = {f"{module.__name__}.rst": room_page(module, names) for module, names in rooms.items()}
    texts["results.rst"] = table_page("Results", [RESULTS_TEXT], list(RESULTS))
    listed = [name for names in (*rooms.values(), RESULTS) for name in names]
    return texts | {f"names/{name}.rst": name_page(name, documented) for name in listed}


def write(app: Sphinx) -> None:
    """Write the pages that are new or changed, and take away those that are gone."""
    folder, texts = Path(app.srcdir) / "api", pages()
    (folder / "names").mkdir(exist_ok=True)
    for stale in folder.rglob("*.rst"):
        if stale.relative_to(folder).as_posix() not in texts:
            stale.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def link_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Target of a name that a docstring says in short, or by the private file it is defined in, where only one fits."""
    if node.get("refdomain") != "py" or not node.get("reftarget"):
        return None
    target = node["reftarget"]
    ending = "." + ".".join(
        target.split(".")[-2:] if node["reftype"] == "meth" and "." in target else target.split(".")[-1:]
    )
    objects = env.domaindata["py"]["objects"]
    found = [name for name in objects if ("." + name).endswith(ending)]
    if len(found) != 1:
        return None
    entry = objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, found[0])


def split_attributes(lines: list[str]) -> list[str]:
    """Lines of a numpy docstring in which attributes that share a description have an entry each.

    Napoleon does so for parameters; of attributes it takes all names but the last for a type.
    """
    starts = [i for i in range(len(lines) - 1) if set(lines[i + 1].strip()) == {"-"} and lines[i].strip()]
    begin = next((i + 2 for i in starts if lines[i].strip() == "Attributes"), len(lines))
    end = next((i for i in starts if i > begin), len(lines))
    heads = [i for i in range(begin, end) if lines[i].strip() and not lines[i].startswith(" ")]
    entries: list[str] = []
    for head, following in pairwise([*heads, end]):
        names, colon, kind = lines[head].partition(" : ")
        for name in names.split(", "):
            entries += [name + colon + kind, *lines[head + 1 : following]]
    return [*lines[:begin], *entries, *lines[end:]]


def process_docstring(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Prepare a docstring for napoleon."""
    lines[:] = split_attributes(lines)


def escape_types(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keep the last underscore of a type (``numpy.object_``) that napoleon wrote from being read as a link."""
    for i, line in enumerate(lines):
        if field := re.match(r"(:vartype [^:]*: )(.*)", line):
            lines[i] = field[1] + re.sub(r"(?<=\w)_(?!\w)", r"\\_", field[2])


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before they are looked for."""
    app.connect("builder-inited", write)
    app.connect("missing-reference", link_by_last_name)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)  # napoleon comes at 500
    app.connect("autodoc-process-docstring", escape_types, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
