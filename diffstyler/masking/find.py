"""The mask prompts of one picture in; their masks, at the picture's size, out. Algebra, edits and borders live here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.images import ImageError, image_size
from diffstyler.masking.base import Masker, NothingFoundError
from diffstyler.masking.mask_file import read_mask
from diffstyler.masking.prompt import (
    Background,
    Box,
    Edit,
    Everything,
    File,
    MaskPrompt,
    Minus,
    Not,
    Pick,
    Point,
    Points,
    Text,
    Union,
)
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.types import RowProblem, Triple

ALL, HARDLY_ANY = 0.98, 0.002  # shares of a picture that are seldom meant
_log = logging.getLogger(__name__)


def find_masks(
    masker: Masker,
    picture: Image.Image,
    prompts: Sequence[MaskPrompt],
    *,
    feather: float = 0.0,
    empty: float | None = None,
    origin: str = "",
) -> list[torch.Tensor]:
    """One mask for each prompt, (H, W) float32 in [0, 1] on the CPU, at the size of the upright ``picture``.

    Args:
        masker: finds words, points and boxes.
        picture: RGB.
        prompts: of all regions of this picture; ``background`` is what the others, taken together, leave.
        feather: in pixels, for masks that have no soft border of their own.
        empty: what fills a mask that finds nothing; None = that is an error.
        origin: names the picture where a mask is told that covers nearly all of it, or hardly anything.

    Raises:
        NothingFoundError: the picture does not show what a prompt asks for, or a mask is empty.
        DiffstylerError: a coordinate outside the picture, or a mask file of another size.
    """
    taken = torch.zeros(picture.height, picture.width)
    masks: dict[int, torch.Tensor] = {}
    waits = [any(isinstance(node, Background) for node in prompt.walk()) for prompt in prompts]
    for index in sorted(range(len(prompts)), key=waits.__getitem__):
        mask = _found(masker, picture, prompts[index], 1 - taken, empty)
        _tell_extremes(prompts[index], float(mask.mean()), origin)
        masks[index] = _feathered(mask, feather) if bool(((mask == 0) | (mask == 1)).all()) else mask
        if not waits[index]:
            taken = torch.maximum(taken, masks[index])
    return [masks[index] for index in range(len(prompts))]


def check_masks(triples: Sequence[Triple]) -> None:
    """Whether every mask prompt can be right: its grammar, its coordinates, its files.

    Raises:
        DiffstylerError: with all problems, one a paragraph.
    """
    if problems := mask_problems(triples):
        raise DiffstylerError("\n".join(map(str, problems)))


def mask_problems(triples: Sequence[Triple]) -> list[RowProblem]:
    """What is wrong with mask prompts: their grammar, their coordinates, their files. Each prompt on each picture is
    looked at once; contents that cannot be read are not told here."""

    @cache
    def fault(mask: str, content: Path) -> str:
        try:
            check_prompt(parse_mask_prompt(mask), content)
        except ImageError:
            return ""
        except DiffstylerError as error:
            return str(error)
        return ""

    return [
        RowProblem(triple.id, region.origin or triple.origin, "mask", reason)
        for triple in triples
        for region in triple.regions
        if (reason := fault(region.mask, triple.content))
    ]


def check_prompt(prompt: MaskPrompt, content: Path) -> None:
    """Whether every coordinate lies in the ``content`` picture, and every mask file is there and has its size.

    Raises:
        ImageError: the content is not a readable picture.
        DiffstylerError: with what was expected.
    """
    if not any(isinstance(node, (Points, Box, File)) for node in prompt.walk()):
        return
    size = image_size(content)
    for node in prompt.walk():
        for x, y in _places(node):
            for name, coordinate, side in (("x", x, size[0]), ("y", y, size[1])):
                if coordinate.pixels(side) > side:
                    raise DiffstylerError(f"mask '{node}': expected {name} within the picture's {side} pixels")
        if isinstance(node, File):
            try:
                height, width = read_mask(node.path, node.value).shape
            except DiffstylerError as error:
                raise DiffstylerError(f"mask '{node}': {error}") from error
            if (width, height) != size:
                theirs, ours = (f"{w} x {h}" for w, h in ((width, height), size))
                raise DiffstylerError(f"mask '{node}': expected {ours} pixels like the content, got {theirs}")


def _found(
    masker: Masker, picture: Image.Image, prompt: MaskPrompt, background: torch.Tensor, empty: float | None
) -> torch.Tensor:
    """The mask of one prompt, or ``empty`` all over where it finds nothing."""
    try:
        mask = _mask(masker, picture, prompt, background)
        if not mask.any():
            raise NothingFoundError(f"mask '{prompt}' is empty in this picture")
    except NothingFoundError:
        if empty is None:
            raise
        return torch.full((picture.height, picture.width), empty)
    return mask


def _tell_extremes(prompt: MaskPrompt, share: float, origin: str) -> None:
    if HARDLY_ANY <= share <= ALL or isinstance(prompt, Everything):
        return
    where = f"{origin}: " if origin else ""
    meant = "say `everything` if that is meant" if share > ALL else "is it the right place?"
    _log.warning("%smask '%s' covers %.4g %% of the picture; %s", where, prompt, 100 * share, meant)


def _mask(masker: Masker, picture: Image.Image, prompt: MaskPrompt, background: torch.Tensor) -> torch.Tensor:
    def mask_of(inner: MaskPrompt) -> torch.Tensor:
        return _mask(masker, picture, inner, background)

    width, height = picture.size
    if isinstance(prompt, Everything):
        return torch.ones(height, width)
    if isinstance(prompt, Background):
        return background
    if isinstance(prompt, File):
        return torch.from_numpy(read_mask(prompt.path, prompt.value))
    if isinstance(prompt, Text):
        return masker.find_text(picture, prompt.phrase)
    if isinstance(prompt, Pick):
        return _picked(masker.find_objects(picture, prompt.inner.phrase), prompt)
    if isinstance(prompt, Points):
        sides = (prompt.positive, prompt.negative)
        return masker.find_points(picture, *([_pixels(point, picture.size) for point in side] for side in sides))
    if isinstance(prompt, Box):
        x0, y0, x1, y1 = prompt.corners
        return masker.find_box(picture, (*_pixels((x0, y0), picture.size), *_pixels((x1, y1), picture.size)))
    if isinstance(prompt, Union):
        return torch.maximum(mask_of(prompt.left), mask_of(prompt.right))
    if isinstance(prompt, Minus):
        return torch.minimum(mask_of(prompt.left), 1 - mask_of(prompt.right))
    if isinstance(prompt, Not):
        return 1 - mask_of(prompt.inner)
    assert isinstance(prompt, Edit)
    return _EDITS[prompt.kind](mask_of(prompt.inner), prompt.pixels)


def _picked(found: list[torch.Tensor], pick: Pick) -> torch.Tensor:
    """One of the masks of single things, the surest first."""
    if pick.which.isdigit():
        if int(pick.which) > len(found):
            raise NothingFoundError(f"mask '{pick}': {len(found)} of them found")
        return found[int(pick.which) - 1]
    return min(found, key=_PICKS[pick.which])


def _center(mask: torch.Tensor, axis: int) -> float:
    return mask.nonzero()[:, axis].float().mean().nan_to_num(torch.inf).item()


_PICKS = {
    "largest": lambda mask: -mask.sum().item(),
    "smallest": lambda mask: mask.sum().item(),
    "left": lambda mask: _center(mask, 1),
    "right": lambda mask: -_center(mask, 1),
    "top": lambda mask: _center(mask, 0),
    "bottom": lambda mask: -_center(mask, 0),
}


def _grown(mask: torch.Tensor, pixels: float) -> torch.Tensor:
    """All pixels at most so far from the mask (Euclidean)."""
    return ((_signed_distance(mask) >= -pixels) & bool(mask.max() >= 0.5)).float()


def _shrunk(mask: torch.Tensor, pixels: float) -> torch.Tensor:
    return ((_signed_distance(mask) > pixels) | bool(mask.min() >= 0.5)).float()


def _feathered(mask: torch.Tensor, pixels: float) -> torch.Tensor:
    """From 1 to 0 along a smooth step (3u² − 2u³) that reaches ``pixels`` to both sides of the border."""
    if pixels == 0 or bool((mask >= 0.5).all()) or not bool((mask >= 0.5).any()):
        return mask
    share = _signed_distance(mask).div_(2 * pixels).add_(0.5).clamp_(0, 1)
    return (3 - 2 * share).mul_(share).mul_(share)


_EDITS = {"grow": _grown, "shrink": _shrunk, "feather": _feathered}


def _signed_distance(mask: torch.Tensor) -> torch.Tensor:
    """Of each pixel's center to the border of the mask (where it crosses 0.5), positive inside, in pixels."""
    inside = mask.numpy() >= 0.5
    signed = np.full(inside.shape, np.inf, np.float32)
    if inside.all():
        return torch.from_numpy(signed)
    if not inside.any():
        return torch.from_numpy(-signed)
    signed = _distance_to_others(inside)
    signed -= _distance_to_others(~inside)
    signed -= inside
    signed += 0.5
    return torch.from_numpy(signed)


def _distance_to_others(inside: np.ndarray) -> np.ndarray:
    """Of each pixel inside to the nearest one that is not, (H, W) float32; 0 elsewhere."""
    return np.asarray(cv2.distanceTransform(inside.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _places(node: MaskPrompt) -> list[Point]:
    if isinstance(node, Points):
        return [*node.positive, *node.negative]
    return [node.corners[:2], node.corners[2:]] if isinstance(node, Box) else []


def _pixels(point: Point, size: tuple[int, int]) -> tuple[float, float]:
    return point[0].pixels(size[0]), point[1].pixels(size[1])
