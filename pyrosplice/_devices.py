"""The device that a person asks to compute on, checked before any work."""

from __future__ import annotations

import warnings

import torch

from pyrosplice.errors import InvalidArgumentError


def as_device(device: str | torch.device) -> torch.device:
    """The device to compute on: one that numbers can be moved to and from.

    Raises
    ------
    InvalidArgumentError
        No device of torch, or not present on this machine.
    """
    try:
        chosen = torch.device(device)
        if chosen.type == "mps":
            warnings.warn("device 'mps' has no float64, which the fits need: computing on the CPU.", stacklevel=3)
            return torch.device("cpu")
        _ = torch.ones(1, dtype=torch.float64, device=chosen).cpu()
    except (AssertionError, RuntimeError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise InvalidArgumentError(
            f"device: expected one that torch can use here, such as 'cpu', found {device!r} ({said})."
        ) from error
    return chosen
