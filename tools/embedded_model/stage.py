"""A scene in the making: what is painted so far, and for every pixel the word of what is seen there."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scene_objects import Color, Painter, Pen

SUPERSAMPLING = 2
PLAIN = np.ones(3, np.float32)


class Stage:
    """Things are placed on a canvas of twice the size; positions and heights are parts of the picture's side."""

    def __init__(self, image: np.ndarray, word: str) -> None:
        """`image` (H, W, 3) float32 in [0, 1], square, all of it showing `word`."""
        self.size = len(image)
        self.labels = np.zeros((self.size, self.size), np.uint8)  # index into `named`
        self.named = [word]
        self.clouds: np.ndarray | None = None  # (H, W) bool, those in the sky, whether something hides them or not
        self.paint(image)

    def paint(self, image: np.ndarray) -> None:
        """Replace the picture, (H, W, 3), not what it is said to show."""
        side = self.size * SUPERSAMPLING
        self.canvas = cv2.resize((image * 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)

    def image(self) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1]."""
        small = cv2.resize(self.canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / 255

    def blur(self, sigma: float) -> None:
        """Move all that there is out of focus; `sigma` as a part of the side."""
        self.paint(cv2.GaussianBlur(self.image(), (0, 0), max(sigma * self.size, 0.3)))

    def cover(self, word: str, mask: np.ndarray) -> None:
        """From now on the pixels of `mask` (H, W) bool show `word`."""
        if word not in self.named:
            self.named.append(word)
        self.labels[mask] = self.named.index(word)

    def word_at(self, x: int, y: int) -> str:
        return self.named[self.labels[y, x]]

    def place(
        self,
        rng: np.random.Generator,
        word: str,
        painter: Painter,
        x: float,
        y: float,
        height: float,
        *,
        tint: Color = PLAIN,
        light_x: float = 0.6,
        roughness: float = 0.03,
        shadow: tuple[float, float] | None = None,
        mirrored: bool | None = None,
    ) -> None:
        """Draw a thing with its foot at (x, y), y downward; `shadow`: width in heights and strength; None: none."""
        side = self.size * SUPERSAMPLING
        tint = tint * rng.uniform(0.92, 1.08)
        flip = bool(rng.random() < 0.5)
        pen = Pen(
            self.canvas, (x * side, y * side), height * side, tint, mirrored=flip if mirrored is None else mirrored
        )
        if shadow is not None:
            pen.shadow(*shadow)
        painter(pen, rng)
        pen.shade(rng, light_x, roughness)
        self.cover(word, cv2.resize(pen.mask, (self.size, self.size), interpolation=cv2.INTER_AREA) > 127)

    def surface(self, word: str, corners: Sequence[tuple[float, float]], texture: Callable[[int], np.ndarray]) -> None:
        """Cover the polygon `corners` (x, y downward) with `texture(size)`, (H, W, 3) in [0, 1]."""
        mask = np.zeros((self.size, self.size), np.uint8)
        points = np.round(np.array(corners) * self.size * 16).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
        alpha = mask[..., None].astype(np.float32) / 255
        self.paint(self.image() * (1 - alpha) + np.clip(texture(self.size), 0, 1) * alpha)
        self.cover(word, mask > 127)

    def masks(self) -> dict[str, np.ndarray]:
        """Every word that is seen, with its pixels, (H, W) bool; they partition the picture, but for the clouds."""
        masks = {name: self.labels == i for i, name in enumerate(self.named) if (self.labels == i).any()}
        if self.clouds is not None and "sky" in masks and (self.clouds & masks["sky"]).sum() > 0.01 * self.size**2:
            masks["clouds"] = self.clouds & masks["sky"]
        return masks
