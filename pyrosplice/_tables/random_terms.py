"""Random terms of a formula, as lme4 writes them: taken out before the rest is read as fixed effects.

``(left | by)`` gives every level of ``by`` an effect of its own of each column of ``left``. lme4's rules: ``left``
has an intercept unless ``0 +`` or ``- 1`` removes it, ``a:b`` is every combination of two factors, ``a/b`` is
``a + a:b``, and ``||`` leaves the columns uncorrelated (Bates, Mächler, Bolker and Walker 2015, J. Stat. Softw. 67(1)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from formulaic.errors import FormulaicError
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Token

from pyrosplice.errors import InvalidArgumentError

BARS = ("|", "||")
EXAMPLE = "(1 | donor)"


@dataclass(frozen=True)
class RandomTerm:
    """One random term: the columns on the left of its bar, and one grouping factor.

    Attributes
    ----------
    left
        A one-sided formula, ``"~ 1 + condition"``.
    by
        Columns of the table whose combinations are the levels.
    correlated
        False for ``||``.
    """

    left: str
    by: tuple[str, ...]
    correlated: bool = True


def split_random_terms(formula: str, argument: str) -> tuple[str, tuple[RandomTerm, ...]]:
    """The rest of a formula, a formula again, and its random terms in the order in which they are written.

    Only random terms are looked at: a formula without any comes back as it is, whatever it is. ``a/b`` gives two terms.

    Raises
    ------
    InvalidArgumentError
        A bar outside of parentheses, a term that lacks a side, that has two bars, that is subtracted or crossed with
        others, or whose grouping factor is more than names joined by ``:`` and ``/``.
    """
    if not isinstance(formula, str):
        raise InvalidArgumentError(f"{argument}: expected a formula, a text, found {type(formula).__name__}.")
    try:
        tokens = list(tokenize(formula))
    except FormulaicError:
        return formula, ()  # the door of fixed effects says what is wrong with it
    bars = [token.token for token in tokens if token.kind is Token.Kind.OPERATOR and "|" in token.token]
    if not bars:
        return formula, ()
    depth = _enclosing(tokens)
    reader = _Reader(formula, argument, tokens, depth)
    opened, closed = (sum(1 for token in tokens if _is(token, sign)) for sign in "()")
    if min(depth) < 0 or opened != closed:
        raise reader.wrong("has parentheses that do not match")
    strange = next((bar for bar in bars if bar not in BARS), None)
    if strange is not None:
        raise reader.wrong(f"has {strange!r}; expected one or two bars between two sides, as in {EXAMPLE}")
    groups = list(reader.groups())
    inside = {place for first, last in groups for place in range(first, last)}
    if any(_is(token, *BARS) for place, token in enumerate(tokens) if place not in inside):
        raise reader.wrong(f"has a bar outside of parentheses; write {EXAMPLE}")
    terms = tuple(term for first, last in groups for term in reader.terms(first, last))
    return reader.rest(groups), terms


@dataclass(frozen=True)
class _Reader:
    """One formula: its tokens, and how many parentheses are open around each."""

    formula: str
    argument: str
    tokens: Sequence[Token]
    depth: Sequence[int]

    def wrong(self, words: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self.argument}: {self.formula!r} {words}.")

    def groups(self) -> Iterator[tuple[int, int]]:
        """Places of the parentheses around every random term: outermost ones with a bar inside."""
        for place, token in enumerate(self.tokens):
            if _is(token, "(") and self.depth[place] == 0:
                last = self._closes(place)
                if any(_is(inner, *BARS) for inner in self.tokens[place:last]):
                    yield place, last

    def terms(self, first: int, last: int) -> list[RandomTerm]:
        """Read what stands between two parentheses."""
        before, after = self.tokens[max(first - 1, 0)], self.tokens[min(last + 1, len(self.tokens) - 1)]
        text = self._written(first, last + 1)
        if (first and not _is(before, "+", "~")) or not _is(after, "+", "-", ")"):
            raise self.wrong(f"has {text!r} beside other signs than '+'; random terms are added to the others")
        while _is(self.tokens[first + 1], "(") and self._closes(first + 1) == last - 1:
            first, last = first + 1, last - 1
        bars = [place for place in range(first, last) if _is(self.tokens[place], *BARS)]
        if len(bars) > 1:
            raise self.wrong(f"has {text!r}, which has {len(bars)} bars; write one term for each grouping factor")
        bar = bars[0]
        if bar in (first + 1, last - 1):
            raise self.wrong(f"has {text!r}, with nothing on one side of the bar; expected as in {EXAMPLE}")
        if self.depth[bar] != self.depth[first] + 1:
            raise self.wrong(f"has {text!r}, whose bar is in parentheses of its own; write {EXAMPLE}")
        left = f"~ {self._written(first + 1, bar)}"
        return [RandomTerm(left, by, _is(self.tokens[bar], "|")) for by in self._factors(bar + 1, last, text)]

    def rest(self, groups: Sequence[tuple[int, int]]) -> str:
        """Everything else, without the '+' before each random term or, where it comes first, the one after it."""
        left_out: set[int] = set()
        for first, last in groups:
            left_out.update(range(first, last + 1))
            before, after = first - 1, last + 1
            if before >= 0 and before not in left_out and _is(self.tokens[before], "+"):
                left_out.add(before)
            elif after < len(self.tokens) and _is(self.tokens[after], "+"):
                left_out.add(after)
        text = "".join(
            self._written(place, place + 1, strip=False) for place in range(len(self.tokens)) if place not in left_out
        )
        return f"{text.strip()} 1".lstrip() if text.strip()[-1:] in ("", "~") else text.strip()

    def _written(self, first: int, last: int, *, strip: bool = True) -> str:
        """What the person wrote of the tokens from ``first`` up to ``last``, with backticks, braces and blanks."""
        start = self.tokens[first].source_start
        stop = self.tokens[last].source_start if last < len(self.tokens) else None
        return self.formula[start:stop].strip() if strip else self.formula[start:stop]

    def _factors(self, first: int, last: int, text: str) -> list[tuple[str, ...]]:
        """Grouping factors of ``a``, ``a:b`` (which binds first), ``a/b`` and parentheses around those."""
        if _is(self.tokens[first], "(") and self._closes(first) == last - 1:
            return self._factors(first + 1, last - 1, text)
        for sign in ("/", ":"):
            places = [p for p in range(first, last) if _is(self.tokens[p], sign) and self.depth[p] == self.depth[first]]
            if places and first < places[-1] < last - 1:
                outer, inner = (self._factors(*ends, text) for ends in ((first, places[-1]), (places[-1] + 1, last)))
                if len(inner) > 1 or (sign == ":" and len(outer) > 1):
                    self._refuse_factor(text)
                crossed = tuple(dict.fromkeys((*outer[-1], *inner[0])))
                return [*outer, crossed] if sign == "/" else [crossed]
        if last - first != 1 or self.tokens[first].kind is not Token.Kind.NAME:
            self._refuse_factor(text)
        return [(self.tokens[first].token,)]

    def _refuse_factor(self, text: str) -> NoReturn:
        raise self.wrong(
            f"has {text!r}; on the right of a bar, expected names of columns joined by ':' (their combinations) or "
            "'/' (nested), names that are no words in backticks, and one term for each of several factors"
        )

    def _closes(self, first: int) -> int:
        """Place of the parenthesis that closes the one at ``first``."""
        return next(p for p in range(first + 1, len(self.tokens)) if self.depth[p] == self.depth[first])


def _enclosing(tokens: Sequence[Token]) -> list[int]:
    """How many parentheses are open around each token; a parenthesis is not inside itself."""
    depth, out = 0, []
    for token in tokens:
        depth -= _is(token, ")")
        out.append(depth)
        depth += _is(token, "(")
    return out


def _is(token: Token, *signs: str) -> bool:
    return token.kind in (Token.Kind.OPERATOR, Token.Kind.CONTEXT) and token.token in signs
