"""The picture of a tissue below its spots, where the AnnData has one as scanpy and squidpy keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from anndata import AnnData

from pyrosplice.errors import InvalidArgumentError, check_known, check_number, check_share


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueImage:
    """Picture of a tissue, for :func:`usage_map`; :func:`tissue_image` reads it from an AnnData.

    Attributes
    ----------
    pixels
        ``(rows, columns)`` gray, or ``(rows, columns, 3 or 4)`` RGB or RGBA: whole numbers 0 to 255, or in [0, 1].
    scale
        Pixels of the picture a unit of the spots' coordinates.
    spot_diameter
        Of a spot, in units of the coordinates; None where it is not known.
    alpha
        Opacity of the picture, in [0, 1].

    Raises
    ------
    InvalidArgumentError
        The pixels are no picture, a number is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.plotting import TissueImage
    >>> TissueImage(pixels=np.zeros((20, 10, 3)), scale=0.1).extent
    (0.0, 100.0, 200.0, 0.0)
    """

    pixels: np.ndarray
    scale: float
    spot_diameter: float | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        pixels = np.asarray(self.pixels)
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
            raise InvalidArgumentError(f"pixels: expected (rows, columns[, 3 or 4]), found shape {pixels.shape}.")
        whole = np.issubdtype(pixels.dtype, np.integer)
        if not whole and not (np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1):
            raise InvalidArgumentError("pixels: expected whole numbers 0 to 255 or real ones in [0, 1], found others.")
        if whole and not (pixels.min() >= 0 and pixels.max() <= 255):
            raise InvalidArgumentError(f"pixels: expected 0 to 255, found {pixels.min()} to {pixels.max()}.")
        for name, value in (("scale", self.scale), ("spot_diameter", self.spot_diameter)):
            if value is not None and not check_number(name, value):
                raise InvalidArgumentError(f"{name}: expected a positive number, found {value!r}.")
        check_share("alpha", self.alpha, ends=True)
        object.__setattr__(self, "pixels", pixels.astype(np.uint8) if whole else pixels)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the picture in the spots' coordinates, whose y runs downwards."""
        rows, columns = self.pixels.shape[:2]
        return 0.0, columns / self.scale, rows / self.scale, 0.0


def tissue_image(
    adata: AnnData,
    *,
    library: str | None = None,
    image: str = "hires",
    spatial_key: str = "spatial",
    alpha: float = 1.0,
) -> TissueImage:
    """Read the picture of a tissue and the size of its spots from ``adata.uns[spatial_key]``.

    Parameters
    ----------
    adata
        As scanpy and squidpy read Visium: ``uns["spatial"][library]`` with ``images`` and ``scalefactors``.
    library
        Which library; may be left out where there is one.
    image
        Which of its pictures.
    spatial_key
        Key in ``adata.uns``, that of the coordinates in ``adata.obsm``.
    alpha
        Opacity, in [0, 1].

    Raises
    ------
    InvalidArgumentError
        There is no such library or picture, there are several libraries and none is named, or the picture's scale
        factor ``tissue_<image>_scalef`` is missing.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> from pyrosplice.plotting import tissue_image
    >>> section = {"images": {"hires": np.zeros((4, 4))}, "scalefactors": {"tissue_hires_scalef": 0.5}}
    >>> tissue_image(anndata.AnnData(np.zeros((2, 1)), uns={"spatial": {"S1": section}})).extent
    (0.0, 8.0, 8.0, 0.0)
    """
    check_known("spatial_key", spatial_key, list(adata.uns), "one of adata.uns")
    libraries = _mapping(adata.uns[spatial_key], f"adata.uns[{spatial_key!r}]")
    if library is None:
        if len(libraries) != 1:
            raise InvalidArgumentError(f"library: expected one of {list(libraries)}, found None.")
        library = next(iter(libraries))
    check_known("library", library, list(libraries), "one of")
    where = f"adata.uns[{spatial_key!r}][{library!r}]"
    section = _mapping(libraries[library], where)
    images = _mapping(section.get("images", {}), f"{where}['images']")
    check_known("image", image, list(images), "one of")
    factors = _mapping(section.get("scalefactors", {}), f"{where}['scalefactors']")
    check_known("scale factor", f"tissue_{image}_scalef", list(factors), f"one of {where}['scalefactors']")
    diameter = factors.get("spot_diameter_fullres")
    read = TissueImage(pixels=np.asarray(images[image]), scale=float(factors[f"tissue_{image}_scalef"]), alpha=alpha)
    return read if diameter is None else replace(read, spot_diameter=float(diameter))


def _mapping(found: object, where: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise InvalidArgumentError(f"{where}: expected a mapping, as squidpy keeps it, found {type(found).__name__}.")
    return found
