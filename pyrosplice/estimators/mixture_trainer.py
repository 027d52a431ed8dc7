"""The options of a trainer, for an algorithm that needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from pyrosplice.errors import InvalidArgumentError, check_option


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """What of a Lightning trainer means something to EM.

    Attributes
    ----------
    max_epochs
        Most EM iterations.
    accelerator, devices
        ``"auto"`` leaves the data where they are; ``"cpu"``, ``"gpu"`` or ``"cuda"`` moves blocks there. One device.
    precision
        32 or 64 bits for the products; None (default) is that of the data. Sums are always 64 bits.
    enable_progress_bar
        Show the iterations.
    """

    max_epochs: int = 100
    accelerator: str = "auto"
    devices: int | str = 1
    precision: int | str | None = None
    enable_progress_bar: bool = False

    def __post_init__(self) -> None:
        check_option("accelerator", self.accelerator, ("auto", "cpu", "gpu", "cuda"))
        check_option("devices", self.devices, (1, "auto", "1"))
        check_option("precision", self.precision, (None, 32, 64, "32", "64", "32-true", "64-true"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InvalidArgumentError(f"accelerator: {self.accelerator!r}, but PyTorch finds no CUDA device here.")
        if not isinstance(self.max_epochs, int) or self.max_epochs < 1:
            raise InvalidArgumentError(f"max_epochs: expected a positive integer, found {self.max_epochs!r}.")

    @property
    def device(self) -> str | None:
        """The torch device, None for where the data are."""
        return {"auto": None, "cpu": "cpu"}.get(self.accelerator, "cuda")

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the products, None for that of the data."""
        return None if self.precision is None else (torch.float32 if "32" in str(self.precision) else torch.float64)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The options named by a mapping; unknown names are refused."""
        known = sorted(f.name for f in fields(cls))
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InvalidArgumentError(f"trainer_params: unknown keys {unknown}; expected some of {known}.")
        return cls(**given)
