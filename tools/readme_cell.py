"""Run the first cell of the README with the package that is installed, as a person does who has nothing else.

    python tools/readme_cell.py FOLDER_OF_THE_CHECKOUT

For ``make release``: exits with an error where the package that was imported is that of the checkout.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def first_cell(readme: Path) -> str:
    """Text of the first Python cell of a page."""
    cell = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    if cell is None:
        raise SystemExit(f"{readme}: no Python cell")
    return cell[1]


def main(arguments: list[str]) -> int:
    """Run the cell; 1 where it was not the installed package that ran."""
    checkout = Path(arguments[0]).resolve()
    exec(compile(first_cell(checkout / "README.md"), "README.md", "exec"), {"__name__": "readme"})
    imported = Path(sys.modules["pyrosplice"].__file__ or "").resolve()
    inside = imported.is_relative_to((checkout / "pyrosplice").resolve())
    print(f"README's cell ran with pyrosplice {sys.modules['pyrosplice'].__version__} of {imported.parent}")
    return int(inside)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
