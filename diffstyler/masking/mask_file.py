"""A mask picture in; the mask that it means, (H, W) in [0, 1], out, or an error where it could mean several."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from diffstyler.errors import DiffstylerError
from diffstyler.images import eight_bit, opened

VALUES_TOLD = 6
COLORED = 32  #: difference of channels that a JPEG of a gray picture does not reach


def read_mask(path: Path, value: int | None = None) -> np.ndarray:
    """What a mask picture selects, (H, W) float32, 1 = in, at the size of its upright picture.

    Where only the alpha channel tells anything, alpha is the mask; else the gray levels are: white = in, black = out,
    grays between. Of exactly two levels, whatever they are, the higher one is in; more colors mean nothing.

    Args:
        path: the picture.
        value: the pixels of this level alone are in: a label, as the file stores it (of a palette its index).

    Raises:
        ImageError: the file is not a readable picture.
        DiffstylerError: alpha and gray differ and both vary, there are more than two colors, or no level is above half
            white.
    """
    with opened(path) as picture:
        if value is not None:
            return (_labels(picture) == value).astype(np.float32)
        alpha = np.asarray(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
        is_gray = picture.mode.startswith(("L", "I", "F")) and picture.mode != "LA"
        levels = np.asarray(picture if is_gray else picture.convert("RGB").convert("L"))
        levels = levels.astype(levels.dtype.newbyteorder("="))
        is_painted = False
        if alpha is not None and (alpha.min() < alpha.max() or not alpha.any()):
            levels, is_painted = _painted(path, levels, alpha), True
        seen = np.unique(levels)
        if len(seen) == 2:
            return (levels == seen[1]).astype(np.float32)
        if not (is_gray or is_painted):
            _check_gray(path, picture)
        shares = np.asarray(eight_bit(Image.fromarray(levels)), np.float32) / 255
        if picture.mode == "P" and not is_painted:  # whose labels are its indices
            seen = np.unique(np.asarray(picture))
    if seen[-1] > 0 and shares.max() < 0.5:
        told = ", ".join(f"{level:g}" for level in seen[:VALUES_TOLD]) + (", …" if len(seen) > VALUES_TOLD else "")
        raise DiffstylerError(
            f"{path}: expected a mask with white = in, got the values {told}; where they are labels, "
            f"'file: {path.name} value {seen[-1]:g}' takes one of them"
        )
    return shares


def _check_gray(path: Path, picture: Image.Image) -> None:
    """Raises: DiffstylerError: it has colors, which say nothing of how much is in."""
    channels = picture.convert("RGB").split()
    differences = [ImageChops.difference(*pair) for pair in pairwise(channels)]
    if max(int(np.asarray(difference).max()) for difference in differences) <= COLORED:
        return
    cure = "save it in gray"
    if picture.mode == "P":
        indices = ", ".join(map(str, np.unique(np.asarray(picture))[:VALUES_TOLD]))
        cure = f"where they are labels (here {indices}, …), 'file: {path.name} value N' takes one of them; else {cure}"
    raise DiffstylerError(f"{path}: expected a mask in gray, white = in, got several colors; {cure}")


def _labels(picture: Image.Image) -> np.ndarray:
    """(H, W), of a palette its indices."""
    levels = np.asarray(picture)
    if levels.ndim == 2:
        return levels
    if picture.mode != "LA" and (levels[..., 1:3] != levels[..., :1]).any():
        raise ValueError("its colors are no labels: expected one channel")
    return levels[..., 0]


def _painted(path: Path, levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """alpha, where the gray ``levels`` of what can be seen say nothing else."""
    seen = levels[alpha > 0] if alpha.any() else levels
    if seen.min() == seen.max() or np.array_equal(levels, alpha):
        return alpha
    raise DiffstylerError(
        f"{path}: expected a mask in gray or in the alpha channel, got another one in each; save it without alpha"
    )
