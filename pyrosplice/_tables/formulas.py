"""One door for formulas: from a one-sided formula and a table to the columns of a design.

Columns are found by name whatever they are called (in backticks where a name is not a word), typed once (numbers or
labels), and missing values are refused. Errors of the formula library come as ours.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import DataMismatchWarning, FormulaicError
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Token
from formulaic.transforms import TRANSFORMS
from numpy.typing import NDArray

from pyrosplice._tables.columns import complete_cells, numbers, one_column, typed_column
from pyrosplice._tables.formula_grammar import is_function, parse, plain_message
from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice._tables.names import text_names
from pyrosplice._tables.random_terms import BARS
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
POWERS = ("**", "^")
UNKNOWN_FUNCTION = " Functions are log, exp, poly, bs, C and the like, those of NumPy as np.sqrt(...)."


@dataclass(frozen=True)
class FormulaDesign:
    """The columns that a formula makes of a table, and how it made them.

    Attributes
    ----------
    matrix
        ``(N, P)``, intercept included where the formula has one.
    names
        P column names.
    terms
        For each column the term of the formula that it came from; "1" for the intercept.
    variables
        For each column the table's columns that its term uses.
    levels
        Names of the levels of each column taken as labels.
    numeric
        Columns taken as numbers.
    spec
        formulaic's record, which makes the same columns of other tables.
    aliases
        Words that stand for column names which are none.
    """

    formula: str
    matrix: Array
    names: list[str]
    terms: list[str]
    variables: list[frozenset[str]]
    levels: dict[str, tuple[str, ...]]
    numeric: tuple[str, ...]
    spec: ModelSpec
    aliases: dict[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that the formula uses."""
        return (*self.levels, *self.numeric)

    def again(self, table: pd.DataFrame, argument: str) -> Array:
        """Make the same columns for other rows, ``(N', P)``.

        Raises
        ------
        InvalidArgumentError
            A column that is absent, missing values, a level that the first table did not have, numbers outside of what
            a transformation (a spline) was made for.
        """
        data = {}
        for name in self.columns:
            column = one_column(table, name, argument)
            if name in self.numeric:
                values: Any = numbers(column, name, argument)
            else:
                labels = read_labels(column, f"{argument}: column {name!r}")
                unseen = sorted(set(labels.levels) - set(self.levels[name]))
                if unseen:
                    raise InvalidArgumentError(
                        f"{argument}: column {name!r} has levels that the fit never saw: {unseen}; it saw "
                        f"{list(self.levels[name])}."
                    )
                values = pd.Categorical(labels.names, categories=list(self.levels[name]))
            data[self.aliases.get(name, name)] = values
        frame = pd.DataFrame(data, index=table.index)
        try:
            with _strictly():
                return np.asarray(self.spec.get_model_matrix(frame), dtype=np.float64)
        except (FormulaicError, DataMismatchWarning, ValueError, TypeError) as error:
            said = _restore(plain_message(error), self.aliases)
            raise InvalidArgumentError(f"{argument}: {self.formula!r} cannot be evaluated ({said}).") from error


def read_formula(
    formula: str,
    table: pd.DataFrame,
    argument: str,
    *,
    as_numeric: Sequence[str] | str | None = None,
    random_effects: str = "leave it out",
) -> FormulaDesign:
    """The design of a one-sided formula on the columns of ``table``.

    Parameters
    ----------
    formula
        Such as ``"~ region + log(total)"``; column names with dots or spaces, or that are also functions, in backticks.
    table
        One row a cell.
    argument
        Name of the argument that errors begin with.
    as_numeric
        Columns taken as numbers, all others being labels; None decides by type: numbers are numbers, everything else
        (text, booleans, categoricals, dates) labels.
    random_effects
        What a person who writes ``(1 | donor)`` should do instead, for the message.

    Raises
    ------
    InvalidArgumentError
        No formula, columns that are absent, missing values, a result that is not finite or has no columns.
    """
    text, names, aliases = formula_source(formula, [str(c) for c in table.columns], argument, random_effects)
    if as_numeric is not None:
        as_numeric = tuple(text_names(as_numeric, "as_numeric"))
        for name in as_numeric:
            one_column(table, name, "as_numeric")
    data, levels, numeric = _typed(table, names, as_numeric, argument)
    frame = pd.DataFrame({aliases.get(n, n): values for n, values in data.items()}, index=table.index)
    try:
        with _strictly():  # what is not finite is refused below, by the name of its column
            matrix = Formula(text).get_model_matrix(frame, na_action="ignore")
    except (FormulaicError, DataMismatchWarning, ValueError, TypeError, NameError, SyntaxError) as error:
        said = _restore(plain_message(error), aliases)
        hint = UNKNOWN_FUNCTION if "[NameError" in said else _labels_hint(levels, as_numeric)
        raise InvalidArgumentError(f"{argument}: {formula!r} cannot be evaluated ({said}).{hint}") from error
    if not hasattr(matrix, "columns"):
        raise InvalidArgumentError(f"{argument}: expected a right-hand side such as '~1 + x', found {formula!r}.")
    if matrix.shape[1] == 0:
        raise InvalidArgumentError(f"{argument}: {formula!r} makes no columns.")
    design = design_of(formula, matrix, levels, numeric, aliases, argument)
    _check_finite(design, table, argument)
    return design


def formula_source(
    formula: str, columns: Sequence[str], argument: str, random_effects: str = ""
) -> tuple[str, list[str], dict[str, str]]:
    """What formulaic is given for a formula, the columns that it uses, and the words that stand for some of them."""
    tokens = _tokens(formula, argument, random_effects)
    names, aliases = _columns_of(tokens, columns, argument, formula)
    return " ".join(_source(token, aliases) for token in tokens), names, aliases


def complete_rows(
    formula: str, table: pd.DataFrame, argument: str, *, as_numeric: Sequence[str] | str | None = None
) -> NDArray[np.bool_]:
    """Which rows have a label or a finite number in every column that the formula uses, ``(N,)``."""
    _, names, _ = formula_source(formula, [str(c) for c in table.columns], argument)
    numeric = None if as_numeric is None else text_names(as_numeric, "as_numeric")
    return complete_cells(table, names, argument, as_numeric=numeric)


def _tokens(formula: str, argument: str, random_effects: str) -> list[Token]:
    if not isinstance(formula, str):
        raise InvalidArgumentError(f"{argument}: expected a formula, a text, found {type(formula).__name__}.")
    try:
        tokens = list(tokenize(formula))
    except FormulaicError as error:
        raise InvalidArgumentError(f"{argument}: {formula!r} is not a formula ({plain_message(error)}).") from error
    bars = [token for token in tokens if token.kind is Token.Kind.OPERATOR and token.token in BARS]
    if bars and any(token.token == "(" for token in tokens):
        raise InvalidArgumentError(
            f"{argument}: {formula!r} has a random effect, such as (1 | donor), which a formula here does not take: "
            f"{random_effects}."
        )
    if any(token.token == "." and token.kind is not Token.Kind.PYTHON for token in tokens):
        raise InvalidArgumentError(f"{argument}: '.' in {formula!r} stands for no columns; name them.")
    _refuse_arithmetic(tokens, argument, formula)
    return tokens


def _refuse_arithmetic(tokens: Sequence[Token], argument: str, formula: str) -> None:
    """Raise where arithmetic is meant but formulas nest and cross: to them ``1 / t`` and ``t ** 2`` are t."""
    for before, sign, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        alone = before.kind is not Token.Kind.CONTEXT and sign.token in POWERS
        number = sign.token == "/" and Token.Kind.VALUE in (before.kind, after.kind)
        if sign.kind is Token.Kind.OPERATOR and (alone or number):
            written = f"{before.token} {sign.token} {after.token}"
            raise InvalidArgumentError(
                f"{argument}: {written!r} in {formula!r} is no arithmetic, a formula nests and crosses terms by these "
                f"signs; write I({written.replace('^', '**')})."
            )


@contextmanager
def _strictly() -> Iterator[None]:
    """Evaluate formulas without NumPy's warnings; a value that a categorical lacks is an error, not a row of zeros."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error", DataMismatchWarning)
        yield


def _columns_of(
    tokens: Sequence[Token], columns: Sequence[str], argument: str, formula: str
) -> tuple[list[str], dict[str, str]]:
    """Columns that a formula uses, in order, and words for those whose names are none or that are also functions."""
    names: list[str] = []
    quoted: set[str] = set()
    called: set[str] = set()
    for token in tokens:
        if token.kind is Token.Kind.NAME:
            names.append(token.token)
        elif token.kind is Token.Kind.PYTHON:
            ticked = re.findall(r"`([^`]+)`", token.token)
            names += ticked
            quoted.update(ticked)
            names += _names_in(token.token, columns, called, quoted)
    for name in names:
        if name not in columns:
            spaced = next((c for c in columns if c.split() and name == c.split()[0] and c != name), None)
            hint = f" Write `{spaced}` in backticks." if spaced else ""
            raise InvalidArgumentError(
                f"{argument}: no column {name!r} in the table, which has {list(columns)} (formula {formula!r}).{hint}"
            )
    names = list(dict.fromkeys(names))
    odd = [n for n in names if n in quoted or n in called or n in TRANSFORMS or n == "Intercept" or not _is_word(n)]
    return names, {name: f"_column_{i}_" for i, name in enumerate(odd)}


def _is_word(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _names_in(code: str, columns: Iterable[str], called: set[str], quoted: set[str]) -> list[str]:
    """Column names in a Python expression: words that are not the functions called; ``a.b`` where that is a column."""
    try:
        tree = parse(code)
    except SyntaxError:
        return []  # formulaic says what is wrong with it
    dotted = {ast.unparse(node): node for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known = {text: node for text, node in dotted.items() if text in set(columns)}
    quoted.update(known)
    inside = {id(part) for node in known.values() for part in ast.walk(node)}
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = list(known)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or id(node) in inside or node.id == "_quoted":
            continue
        if id(node) in functions or (node.id in TRANSFORMS and node.id not in set(columns)):
            called.add(node.id)
        else:
            names.append(node.id)
    bases = {node.value.id for node in dotted.values() if isinstance(node.value, ast.Name)} & {"np", "contr"}
    called.update(bases)
    return [name for name in names if name not in bases]


def _source(token: Token, aliases: Mapping[str, str]) -> str:
    if token.kind is Token.Kind.NAME:
        return aliases.get(token.token, token.token)
    if token.kind is not Token.Kind.PYTHON:
        return token.token
    code = re.sub(r"`([^`]+)`", lambda m: aliases.get(m[1], m[1]), token.token)
    try:
        tree = ast.parse(code.strip(), mode="eval")
    except SyntaxError:
        return f"{{{code}}}"
    return f"{{{ast.unparse(_Renamed(aliases).visit(tree))}}}"


class _Renamed(ast.NodeTransformer):
    """Puts words in the place of column names, which are not functions that are called."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.aliases = aliases

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [self.visit(argument) for argument in node.keywords]
        if not isinstance(node.func, ast.Name) and not is_function(node.func):
            node.func = self.visit(node.func)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        alias = self.aliases.get(ast.unparse(node))
        return ast.Name(alias, ast.Load()) if alias else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.aliases.get(node.id, node.id), node.ctx)


def _typed(
    table: pd.DataFrame, names: Sequence[str], as_numeric: tuple[str, ...] | None, argument: str
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], tuple[str, ...]]:
    data: dict[str, Any] = {}
    levels: dict[str, tuple[str, ...]] = {}
    for name in names:
        values = typed_column(table, name, argument, as_numeric=as_numeric)
        if isinstance(values, Labels):
            levels[name], data[name] = values.levels, values.categorical
        else:
            data[name] = values
    return data, levels, tuple(name for name in names if name not in levels)


def design_of(
    formula: str,
    matrix: Any,
    levels: dict[str, tuple[str, ...]],
    numeric: tuple[str, ...],
    aliases: dict[str, str],
    argument: str,
) -> FormulaDesign:
    """The record of a model matrix that formulaic made."""
    spec = matrix.model_spec
    terms: dict[int, Any] = {i: term for term, columns in spec.term_indices.items() for i in columns}
    names = [_restore(str(c), aliases) for c in matrix.columns]
    used = [*levels, *numeric]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(
            f"{argument}: {formula!r} makes two columns of the name {twice!r}; rename the table's column."
        )
    words = {name: re.compile(rf"\b{re.escape(aliases.get(name, name))}\b") for name in used}
    return FormulaDesign(
        formula,
        np.asarray(matrix, dtype=np.float64),
        names,
        [_restore(str(terms[i]), aliases) for i in range(len(names))],
        [frozenset(n for n in used if words[n].search(str(terms[i]))) for i in range(len(names))],
        levels,
        numeric,
        spec,
        aliases,
    )


def _check_finite(design: FormulaDesign, table: pd.DataFrame, argument: str) -> None:
    wrong = np.argwhere(~np.isfinite(design.matrix))
    if len(wrong):
        row, column = wrong[0]
        raise InvalidArgumentError(
            f"{argument}: {design.formula!r} gives {design.matrix[row, column]} in column {design.names[column]!r} at "
            f"row {table.index[row]!r} ({len(wrong)} such)."
        )


def _restore(text: str, aliases: Mapping[str, str]) -> str:
    """Column names in the place of the words that stood for them; in backticks inside a call where they are none."""
    for name, alias in aliases.items():
        quoted = (name if _is_word(name) else f"`{name}`").replace("\\", r"\\")
        text = re.sub(rf"(?<=[(+\-*/,= ]){alias}|{alias}(?=[),])", quoted, text)
        text = text.replace(alias, name)
    return text


def _labels_hint(levels: Mapping[str, Any], as_numeric: tuple[str, ...] | None) -> str:
    if as_numeric is None or not levels:
        return ""
    return f" Columns {sorted(levels)} are taken as labels; name those that are numbers in as_numeric."
