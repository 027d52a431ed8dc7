"""Whether the gallery shows its figures: a cell that runs and draws nothing into the page is no error to a notebook."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)
PAGE = "gallery"


def count(app: Sphinx, doctree: nodes.document) -> None:
    """Warn where a section of the gallery that has no sections in it shows no figure."""
    if app.env.docname != PAGE:
        return
    for section in doctree.findall(nodes.section):
        inner = any(True for child in section.children if isinstance(child, nodes.section))
        if not inner and not any(True for _ in section.findall(nodes.image)):
            log.warning("no figure in the section %r", section[0].astext(), location=section)


def setup(app: Sphinx) -> dict[str, bool]:
    """Look at each page as it is read."""
    app.connect("doctree-read", count)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
