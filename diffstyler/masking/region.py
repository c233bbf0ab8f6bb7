"""Points in a picture -> the region around them, by color and edges: what a point means where no masker knows objects.

Distances grow along paths that change color or leave the points' own (a geodesic distance); the region ends where they
suddenly grow most per area won, as in maximally stable regions (Matas et al. 2002); GrabCut (Rother et al. 2004) then
moves that border to the picture's edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from torch.nn import functional

Point = tuple[float, float]

DISTANCE_SIDE, CUT_SIDE = 256, 512  # pixels of the long side, for the distances and for GrabCut
DISK = 0.012  # radius of what surely belongs to a point, of the short side
PER_PIXEL, PER_COLOR = 0.3, 0.1  # of the distance, besides the color's change: each pixel, and each ΔE from the point's
SMALLEST, LARGEST, LARGEST_FROM_OTHERS = 0.004, 0.5, 0.75  # shares of the picture; the last with negative points
LARGER = 0.04  # exponent of the area: of two borders that are as clear, the outer one
CERTAIN, POSSIBLE = 0.6, 1.6  # of the border's distance: inside GrabCut keeps all, outside it takes nothing
ROUNDS = 3  # of GrabCut


def grow_region(picture: Image.Image, positive: Sequence[Point], negative: Sequence[Point]) -> torch.Tensor:
    """(H, W) float32, 1 = in: the regions around the positive points, without those nearer to negative ones.

    Args:
        picture: RGB.
        positive: (x, y) in pixels, at least one.
        negative: likewise.
    """
    small = _scaled(picture, DISTANCE_SIDE)
    smooth = cv2.bilateralFilter(small, 7, 30, 3).astype(np.float32) / 255
    lab = cv2.cvtColor(smooth, cv2.COLOR_BGR2Lab)
    places, others = _disks(picture, positive, small.shape), _disks(picture, negative, small.shape)
    distance = np.min([_distance(lab, place) for place in places], axis=0)
    if others:
        distance[np.min([_distance(lab, place) for place in others], axis=0) <= distance] = np.inf
    border = _clearest_border(distance, seeds=int(np.any(places, axis=0).sum()), most=bool(negative))
    inside = _cut(picture, distance, border, positive, negative)
    whole = functional.interpolate(torch.from_numpy(inside).float()[None, None], picture.size[::-1], mode="bilinear")
    return (whole[0, 0] >= 0.5).float()


def _distance(lab: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Of each pixel to a place, (h, w), along the cheapest path over eight neighbors."""
    height, width = lab.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    unlike = np.linalg.norm(lab - np.median(lab[place], axis=0), axis=2)
    ends, costs = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one = np.s_[: height - down, max(-right, 0) : width - max(right, 0)]
        other = np.s_[down:, max(right, 0) : width + min(right, 0)]
        change = np.linalg.norm(lab[one] - lab[other], axis=2)
        costs.append(change + np.hypot(down, right) * (PER_PIXEL + PER_COLOR * (unlike[one] + unlike[other]) / 2))
        ends.append((index[one], index[other]))
    rows, columns = (np.concatenate([side.ravel() for side in sides]) for sides in zip(*ends, strict=True))
    values = np.concatenate([cost.ravel() for cost in costs])
    graph = coo_matrix((values, (rows, columns)), shape=(index.size, index.size)).tocsr()
    return dijkstra(graph, directed=False, indices=index[place], min_only=True).reshape(height, width)


def _clearest_border(distance: np.ndarray, *, seeds: int, most: bool) -> float:
    """The distance around which the region wins least area, (h, w) -> one number."""
    reached = np.sort(distance[np.isfinite(distance)])
    if len(reached) <= seeds:
        return 0.0
    largest = min((LARGEST_FROM_OTHERS if most else LARGEST) * distance.size, len(reached) - 1)
    areas = np.geomspace(max(1, min(max(SMALLEST * distance.size, seeds), largest)), largest, 60).astype(int)
    inner, outer = reached[areas[:-4]], reached[areas[4:]]
    clear = np.log((outer + 1) / (inner + 1)) * areas[:-4] ** LARGER
    best = int(clear.argmax())
    return float(np.sqrt(inner[best] * outer[best]))


def _cut(
    picture: Image.Image, distance: np.ndarray, border: float, positive: Sequence[Point], negative: Sequence[Point]
) -> np.ndarray:
    """(h, w) bool: GrabCut within the band around the border, and of it what is connected with a positive point."""
    image = _scaled(picture, CUT_SIDE)
    far = 2 * POSSIBLE * border + 1
    spread = cv2.resize(
        np.minimum(distance, far).astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR
    )
    guess = np.full(spread.shape, cv2.GC_BGD, np.uint8)
    for reach, kind in ((POSSIBLE, cv2.GC_PR_BGD), (1, cv2.GC_PR_FGD), (CERTAIN, cv2.GC_FGD)):
        guess[spread <= reach * border] = kind
    places, others = (_disks(picture, points, image.shape) for points in (positive, negative))
    for place in places:
        guess[place] = cv2.GC_FGD
    for place in others:
        guess[place] = cv2.GC_BGD
    if (guess == cv2.GC_BGD).any() or (guess == cv2.GC_PR_BGD).any():
        cv2.setRNGSeed(0)  # of its color clusters
        colors = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, guess, None, *colors, ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    inside = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD))
    parts = np.asarray(ndimage.label(inside)[0])  # type: ignore[index]
    return np.isin(parts, np.unique(parts[np.any(places, axis=0)])) & inside


def _scaled(picture: Image.Image, side: int) -> np.ndarray:
    """(h, w, 3) uint8 in OpenCV's order BGR, the long side at most ``side``."""
    scaled = picture.copy()
    scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(scaled)[:, :, ::-1])


def _disks(picture: Image.Image, points: Sequence[Point], shape: tuple[int, ...]) -> list[np.ndarray]:
    """For each point what surely belongs to it, (h, w) bool."""
    height, width = shape[:2]
    y, x = np.ogrid[:height, :width]
    radius = max(1, DISK * min(height, width))

    def disk(point: Point) -> np.ndarray:
        column = min(int(point[0] / picture.width * width), width - 1)
        row = min(int(point[1] / picture.height * height), height - 1)
        return (y - row) ** 2 + (x - column) ** 2 <= radius**2

    return [disk(point) for point in points]
