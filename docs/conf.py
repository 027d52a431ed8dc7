"""How Sphinx builds the site: ``make docs`` writes it to ``docs/_build/html``, without a network.

Pages are MyST Markdown. A page with ``{code-cell}`` blocks is a notebook: its cells run when the site is built, and an
error in one fails the build. Tutorials are shown with the outputs that they were stored with, since the test suite runs
them (``tests/test_tutorials.py``). Pages of public names are written from docstrings by ``_ext/api_pages.py``.
"""

import hashlib
import os
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]
# The cells' kernels are processes of their own: they import this checkout too, draw into the page, and show no bars.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MPLBACKEND", None)
os.environ["TQDM_DELAY"] = "3600"  # seconds before a bar is drawn
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # by tqdm, for want of a widget that no page shows


def digest_of_sources() -> str:
    """Short digest of the library and of this file: outputs of cells are kept for as long as neither changes."""
    digest = hashlib.sha256()
    kept = (path for path in sorted((ROOT / "pyrosplice").rglob("*")) if "__pycache__" not in path.parts)
    for path in (Path(__file__), *kept):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


CELLS = HERE / "_build" / "cells" / digest_of_sources()
for stale in CELLS.parent.glob("*"):
    if stale != CELLS:
        shutil.rmtree(stale)

METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = METADATA["name"]
author = METADATA["authors"][0]["name"]
copyright = f"2026, {author}"
version = release = METADATA["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "api_pages",
    "mathml",
    "shell_lines",
    "shown_figures",
    "staged_tutorials",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
nitpicky = False  # types of other libraries have no pages here; links of ours are checked by tools/check_links.py

# Markdown and notebooks
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_excludepatterns = ["tutorials/*"]
nb_execution_cache_path = str(CELLS)
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs of examples are not copied

# Docstrings
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries = False

# What it looks like
html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "github_url": METADATA["urls"]["Repository"],
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 8,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "install": [], "choose": [], "gallery": []}
html_context = {"default_mode": "auto"}
