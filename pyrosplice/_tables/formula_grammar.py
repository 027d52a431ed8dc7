"""Which formulas are no more than formulas: their grammar, for those that come out of a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
from formulaic.errors import FormulaicError
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Token
from formulaic.transforms import TRANSFORMS

from pyrosplice._tables.random_terms import split_random_terms

UFUNCS = frozenset(name for name in dir(np) if isinstance(getattr(np, name), np.ufunc)) | {"where", "clip", "round"}
SAFE = (
    *(ast.Expression, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.Attribute),
    *(ast.keyword, ast.List, ast.Tuple, ast.Load, ast.unaryop, ast.cmpop, ast.boolop),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow),
)


def is_plain(formula: str, columns: Iterable[str] = ()) -> bool:
    """Whether a formula is names, numbers, operators and known functions only, so that it is safe to evaluate.

    Formulas can hold code. One that comes out of a file is evaluated only if this says yes. Random terms are plain
    where their left-hand sides are; on the right they have names only. ``columns`` are names that may have dots.
    """
    try:
        rest, random = split_random_terms(formula, "formula")
        known = set(columns)
        return all(_is_plain_side(side, known) for side in (rest, *(term.left for term in random)))
    except (FormulaicError, SyntaxError, ValueError, RecursionError):
        return False


def _is_plain_side(formula: str, columns: set[str]) -> bool:
    """Whether a formula without random terms is plain."""
    tokens = list(tokenize(formula))
    if any(a.token in ("**", "^") and len(b.token) > 1 for a, b in pairwise(tokens)):
        return False  # expands to as many terms
    return all(_safe(parse(token.token), columns) for token in tokens if token.kind is Token.Kind.PYTHON)


def _safe(tree: ast.AST, columns: set[str]) -> bool:
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and ast.unparse(node) in columns
        if not isinstance(node, SAFE) or (isinstance(node, ast.Name) and node.id.startswith("__")):
            return False
        if isinstance(node, ast.Attribute) and not (named or is_function(node)):
            return False
        if isinstance(node, ast.Call) and not is_function(node.func):
            return False
        if isinstance(node, ast.BinOp) and not _is_arithmetic(node):
            return False
    return True


def _is_arithmetic(node: ast.BinOp) -> bool:
    """Whether an operation is one on numbers, and no tower of powers that takes all memory."""
    sides = (node.left, node.right)
    if any(isinstance(side, (ast.List, ast.Tuple)) for side in sides):
        return False
    if any(isinstance(side, ast.Constant) and not isinstance(side.value, (int, float)) for side in sides):
        return False
    if not isinstance(node.op, ast.Pow):
        return True
    exponent = ast.unparse(node.right).lstrip("-")
    within = (part for side in sides for part in ast.walk(side))
    towers = any(isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow) for part in within)
    return exponent.replace(".", "").isdigit() and len(exponent) <= 4 and not towers


def is_function(node: ast.AST) -> bool:
    """Whether an expression names a function of the formula language: ``log``, ``C``, ``np.sqrt``, ``contr.sum``."""
    if isinstance(node, ast.Name):
        return node.id in TRANSFORMS and node.id not in ("np", "contr")
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "np":
            return node.attr in UFUNCS
        return node.value.id == "contr" and not node.attr.startswith("_")
    return False


def parse(code: str, aliases: Mapping[str, str] | None = None) -> ast.AST:
    """Syntax tree of a Python expression in which backticks quote names."""
    known = aliases or {}
    return ast.parse(re.sub(r"`([^`]+)`", lambda m: known.get(m[1], "_quoted"), code.strip()), mode="eval")


def plain_message(error: Exception) -> str:
    """Message of an error without the marks that underline in a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error))
    return " ".join(text.split())
