"""Colors of cells with a command of the shell (a line that begins with ``!``) that goes on in the next line."""

from typing import Any, ClassVar

from pygments.lexer import bygroups, using
from pygments.lexers import get_lexer_by_name
from pygments.lexers.shell import BashLexer
from pygments.token import Operator, Text
from sphinx.application import Sphinx

NOTEBOOKS = type(get_lexer_by_name("ipython3"))


class ShellLines(NOTEBOOKS):
    """The lexer of notebooks, which else ends a command with its first line."""

    name, aliases = "IPython 3 with long commands", ["ipython3"]
    command = (r"^(!)((?:.*\\\n)*.*)(\n?)", bygroups(Operator, using(BashLexer), Text))
    tokens: ClassVar[dict[str, Any]] = {**NOTEBOOKS.tokens, "root": [command, *NOTEBOOKS.tokens["root"]]}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register it with Sphinx."""
    app.add_lexer("ipython3", ShellLines)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
