"""Collecting what is wrong, so that one run of a contract test says all of it."""

from __future__ import annotations

import torch
from torch import Tensor


class ContractError(AssertionError):
    """An error that says what a class written by a user does not do as its contract says."""


class Problems:
    """Findings about ``subject``; :meth:`finish` raises if there are any."""

    def __init__(self, subject: object) -> None:
        self.subject, self.found = type(subject).__name__, list[str]()

    def add(self, words: str) -> None:
        """Note a finding."""
        self.found.append(words)

    def shape(self, what: str, value: Tensor, expected: tuple[int, ...]) -> bool:
        """Note a wrong shape, and return whether it is right."""
        if tuple(value.shape) != expected:
            self.add(f"{what}: expected shape {expected}, found {tuple(value.shape)}.")
        return tuple(value.shape) == expected

    def close(self, words: str, value: Tensor, expected: Tensor, *, tolerance: float) -> None:
        """Note values that differ by more than ``tolerance`` relative to the largest (or NaN)."""
        gap = (value - expected).abs().max()
        if not bool(gap <= tolerance * (1 + expected.abs().max())):
            where = tuple(int(i) for i in torch.unravel_index((value - expected).abs().argmax(), value.shape))
            self.add(
                f"{words}: they differ by {float(gap):.3g} (at {where}: {float(value[where]):.6g} against "
                f"{float(expected[where]):.6g})."
            )

    def finish(self) -> None:
        """Raise :class:`ContractError` with every finding."""
        if self.found:
            lines = "\n".join(f"  {i}. {words}" for i, words in enumerate(self.found, 1))
            raise ContractError(f"{self.subject} breaks its contract:\n{lines}")
