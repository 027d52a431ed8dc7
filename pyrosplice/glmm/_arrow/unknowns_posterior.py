r"""Laplace's Gaussian posterior of coefficients and all effects together, given the parameters.

Around the mode, with S the Schur complement of the border, A_d the block of private group d and C_d its coupling,

.. math::
    z_{\text{border}} \sim N(\hat z, S^{-1}), \qquad
    z_d \mid z_{\text{border}} \sim N(\hat z_d - A_d^{-1} C_d (z_{\text{border}} - \hat z_{\text{border}}),\; A_d^{-1}),

and the inner effects given both, which move along with b by the linear response that eliminated them. Every draw comes
with the log of the model's joint density over the Gaussian's, which is constant where the posterior is Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._linalg.blocks import nan_where_indefinite
from pyrosplice.glmm._arrow.arrow import ArrowUnknowns
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace
from pyrosplice.glmm._latents import Latents

Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnknownsDraw:
    """One draw of b genes: all unknowns, and the log ratio ``(b,)`` of joint density to proposal (NaN: no mode)."""

    unknowns: ArrowUnknowns
    latents: Latents
    log_ratio: Array


@dataclass(frozen=True)
class CoefficientMoments:
    """Mean (b, k) and covariance (b, k, k) of coefficients and of the effects u of one level of every effect."""

    mean: Array
    covariance: Array


class ArrowPosterior:
    """Gaussian posterior of the unknowns of some genes at given parameters.

    Parameters
    ----------
    laplace
        Laplace's value there, under the restricted likelihood.
    """

    def __init__(self, laplace: ArrowLaplace):
        self.laplace = laplace
        self._arrow, self._system = laplace.search.arrow, laplace.mode.system
        border = self._system.factor.border_covariance
        root = self._arrow.root
        self._rooted = border if root is None else root @ border @ root.T

    def draws(self, n_draws: int, generator: torch.Generator) -> Iterator[UnknownsDraw]:
        """Draw all unknowns together."""
        laplace, system, arrow = self.laplace, self._system, self._arrow
        outer, map_, found = laplace.mode.outer, system.factor.map, laplace.mode.found
        border = nan_where_indefinite(torch.from_numpy(system.factor.border_covariance)).numpy()
        private = nan_where_indefinite(torch.from_numpy(_symmetric(system.factor.inverse))).numpy()
        best = laplace.search.log_joint(outer, map_, laplace.unknowns, laplace.latents)
        one, to_mode = np.ones(len(found)), arrow.blocks_of(map_, system.step)
        for inner, form in system.elimination.deviations(n_draws, generator):
            noise = ArrowUnknowns(_normal(border.shape[:2], generator), _normal(private.shape[:3], generator))
            step = ArrowUnknowns((border @ noise.border[..., None])[..., 0], np.zeros_like(noise.private))
            own = (private @ noise.private[..., None])[..., 0]
            pulled = np.einsum("bdmn,bn->bdm", system.factor.through, arrow.rooted(step.border))
            step = ArrowUnknowns(step.border, own - pulled)
            unknowns = laplace.unknowns.moved(step, one)
            moved = torch.from_numpy(to_mode + arrow.blocks_of(map_, step))
            latents = laplace.mode.latents.moved(system.elimination.advance(moved)).moved(inner)
            square = noise.dot(noise) + form.numpy()
            ratio = laplace.search.log_joint(outer, map_, unknowns, latents) - best + 0.5 * square + laplace.value
            yield UnknownsDraw(unknowns, latents, np.where(found, ratio, np.nan))

    def together(self, levels: Sequence[int]) -> CoefficientMoments:
        """Moments of the coefficients and of the effects of these levels, one of each effect, −1 for none.

        Effects of no level are zero, without variance. Q = 1: coefficients first, then the columns of each effect.
        """
        arrow, n = self._arrow, self._arrow.n_coefficients
        b, size = len(self._rooted), arrow.n_border
        rows = [np.broadcast_to(np.eye(size)[:n], (b, n, size))]
        blocks, mean, scales = [np.zeros((b, n, n))], [self.laplace.unknowns.border[:, :n]], [np.eye(n)[None]]
        places = [(-1, np.arange(n))]
        for e, (level, scale) in enumerate(zip(levels, arrow.scales(self.laplace.mode.outer.psi), strict=True)):
            row, block, place = self._of_level(e, level)
            rows.append(row)
            blocks.append(block)
            places.append(place)
            scales.append(scale if level >= 0 else np.zeros_like(scale))
            mean.append(arrow.effects(e, self.laplace.unknowns)[:, max(level, 0)])
        through, turn = np.concatenate(rows, 1), _block_diagonal(scales, b)
        covariance = through @ self._rooted @ np.swapaxes(through, 1, 2) + self._private(blocks, places)
        whole = np.einsum("bkl,bl->bk", turn, np.concatenate(mean, 1))
        return CoefficientMoments(whole, turn @ covariance @ np.swapaxes(turn, 1, 2))

    def _of_level(self, e: int, level: int) -> tuple[Array, Array, tuple[int, NDArray[np.int64]]]:
        """How effects of a level follow the border (b, w, B), standardised, their variance beside, and their place."""
        arrow, width = self._arrow, self._arrow.widths[e]
        home, b = arrow.homes[e], len(self._rooted)
        none = np.zeros((b, width, arrow.n_border))
        group, place = int(home.group[max(level, 0)]), home.place[max(level, 0)] + np.arange(width)
        if not home.private:
            none[:, np.arange(width), place] = 1.0
            return none, np.zeros((b, width, width)), (-1, place)
        if group < 0:  # a level of no observation has the law of the prior
            return none, np.broadcast_to(np.eye(width), (b, width, width)), (-1, place)
        own = self._system.factor.inverse[:, group][:, place[:, None], place]
        return -self._system.factor.through[:, group, place], own, (group, place)

    def _private(self, blocks: list[Array], places: list[tuple[int, NDArray[np.int64]]]) -> Array:
        """Covariance beside that through the border: within a group, of one level and between those of two effects."""
        sizes = np.cumsum([0, *(block.shape[1] for block in blocks)])
        out = np.zeros((len(blocks[0]), sizes[-1], sizes[-1]))
        for e, block in enumerate(blocks):
            out[:, sizes[e] : sizes[e + 1], sizes[e] : sizes[e + 1]] = block
            for f, (group, place) in enumerate(places):
                if f != e and group >= 0 and group == places[e][0]:
                    cross = self._system.factor.inverse[:, group][:, places[e][1][:, None], place]
                    out[:, sizes[e] : sizes[e + 1], sizes[f] : sizes[f + 1]] = cross
        return out


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Array:
    drawn: Array = torch.randn(shape, generator=generator, dtype=torch.float64).numpy()
    return drawn


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def _block_diagonal(parts: list[Array], n_genes: int) -> Array:
    sizes = np.cumsum([0, *(part.shape[-1] for part in parts)])
    out = np.zeros((n_genes, sizes[-1], sizes[-1]))
    for part, first, last in zip(parts, sizes[:-1], sizes[1:], strict=True):
        out[:, first:last, first:last] = part
    return out
