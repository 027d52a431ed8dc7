"""The options of a trainer, for an algorithm that needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from pyrosplice.errors import InvalidArgumentError, check_integer, check_option

WITHOUT_EFFECT = (
    "logger",
    "enable_checkpointing",
    "checkpoint_callback",
    "enable_model_summary",
    "weights_summary",
    "default_root_dir",
    "log_every_n_steps",
    "flush_logs_every_n_steps",
    "progress_bar_refresh_rate",
    "num_sanity_val_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "deterministic",
    "benchmark",
    "inference_mode",
    "detect_anomaly",
    "profiler",
    "use_distributed_sampler",
    "replace_sampler_ddp",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "track_grad_norm",
    "auto_lr_find",
    "auto_scale_batch_size",
    "move_metrics_to_cpu",
    "prepare_data_per_node",
)
"""Words of a Lightning trainer about logs, files, validation and gradients, of which EM has none."""

WITHOUT_EFFECT_AT: dict[str, tuple[Any, ...]] = {
    "strategy": ("auto", None),
    "num_nodes": (1,),
    "num_processes": (1, None),
    "callbacks": (None, [], ()),
    "plugins": (None, [], ()),
    "fast_dev_run": (False,),
    "min_epochs": (None, 0, 1),
    "min_steps": (None, 0),
    "max_steps": (-1, None),
    "max_time": (None,),
    "limit_train_batches": (None, 1.0),
    "overfit_batches": (0,),
    "barebones": (False,),
    "gpus": (None,),
    "tpu_cores": (None,),
    "ipus": (None,),
    "auto_select_gpus": (False,),
    "resume_from_checkpoint": (None,),
    "amp_backend": (None, "native"),
    "amp_level": (None,),
}
"""Words that would change a fit, and the values at which they do not."""


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """What of a Lightning trainer means something to EM.

    Lightning's words about logs, files, validation and gradients (``logger``, ``enable_checkpointing``, …) are
    accepted and have no effect; those that would stop or spread the work in a way that EM does not follow
    (``min_epochs``, ``max_time``, ``callbacks``, …) are accepted at the values that ask for nothing.

    Attributes
    ----------
    max_epochs
        Most EM iterations; 0 keeps the starting values.
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
        if isinstance(self.devices, bool):
            raise InvalidArgumentError(f"devices: expected 1 or 'auto', found {self.devices!r}.")
        check_option("precision", self.precision, (None, 32, 64, "32", "64", "32-true", "64-true"))
        check_option("enable_progress_bar", self.enable_progress_bar, (True, False))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InvalidArgumentError(f"accelerator: {self.accelerator!r}, but PyTorch finds no CUDA device here.")
        object.__setattr__(self, "max_epochs", check_integer("max_epochs", self.max_epochs, least=0))

    @property
    def device(self) -> str | None:
        """The torch device, None for where the data are."""
        return {"auto": None, "cpu": "cpu"}.get(self.accelerator, "cuda")

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the products, None for that of the data."""
        return None if self.precision is None else (torch.float32 if "32" in str(self.precision) else torch.float64)

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Self:
        """The options named by a mapping.

        Raises
        ------
        InvalidArgumentError
            A name that no trainer knows, or a value that EM cannot follow.
        """
        if given is not None and not isinstance(given, Mapping):
            raise InvalidArgumentError(f"trainer_params: expected a mapping or None, found {type(given).__name__}.")
        known = sorted(f.name for f in fields(cls))
        kept = {}
        for name, value in (given or {}).items():
            if name in known:
                kept[name] = value
            elif name in WITHOUT_EFFECT_AT:
                if not any(type(value) is type(at) and value == at for at in WITHOUT_EFFECT_AT[name]):
                    raise InvalidArgumentError(
                        f"trainer_params: {name}={value!r} is not followed by EM; leave it out (options with an "
                        f"effect: {', '.join(known)})."
                    )
            elif name not in WITHOUT_EFFECT:
                raise InvalidArgumentError(f"trainer_params: unknown key {name!r}; expected some of {known}.")
        return cls(**kept)
