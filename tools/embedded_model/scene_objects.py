"""Things that stand in a rendered scene: each painter draws one of them, one unit high, with a `Pen`."""

import colorsys
from collections.abc import Callable, Sequence
from itertools import pairwise

import cv2
import numpy as np
from noise import fractal_noise

Color = np.ndarray  # (3,) RGB in [0, 1]
SUBPIXEL_BITS = 4


def hsv(hue: float, saturation: float, value: float) -> Color:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0)), np.float32)


Painter = Callable[["Pen", np.random.Generator], None]


class Pen:
    """Draws shapes on a canvas and on a mask alike, in units of the object: foot at (0, 0), height 1, y upward."""

    def __init__(
        self, canvas: np.ndarray, foot: tuple[float, float], height: float, tint: Color, *, mirrored: bool
    ) -> None:
        """`canvas` (H, W, 3) uint8; `foot` (x, y) and `height` in its pixels; `tint` (3,) multiplies every color."""
        self.canvas = canvas
        self.mask = np.zeros(canvas.shape[:2], np.uint8)
        self.foot, self.height, self.tint = foot, height, tint
        self.sign = -1 if mirrored else 1

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        corners = self._to_pixels(points)
        cv2.fillPoly(self.canvas, [corners], self._paint(color), cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.fillPoly(self.mask, [corners], 255, cv2.LINE_AA, SUBPIXEL_BITS)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, color: Color, turn: float = 0.0) -> None:
        """`turn` in radians, counter-clockwise."""
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        u, v = radius_x * np.cos(t), radius_y * np.sin(t)
        outline = np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], 1)
        self.polygon(outline, color)  # type: ignore[arg-type]

    def disk(self, x: float, y: float, radius: float, color: Color) -> None:
        center = self._to_pixels([(x, y)])[0]
        size = max(8, int(radius * self.height * 2**SUBPIXEL_BITS))
        at = (int(center[0]), int(center[1]))
        cv2.circle(self.canvas, at, size, self._paint(color), -1, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.circle(self.mask, at, size, 255, -1, cv2.LINE_AA, SUBPIXEL_BITS)

    def line(self, points: Sequence[tuple[float, float]], width: float, color: Color) -> None:
        corners = self._to_pixels(points)
        thickness = max(1, round(width * self.height))
        cv2.polylines(self.canvas, [corners], False, self._paint(color), thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.polylines(self.mask, [corners], False, 255, thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def clip_line(self, points: Sequence[tuple[float, float]], width: float, color: Color) -> None:
        """A line on what is drawn so far, cut off where that ends."""
        stroke = np.zeros_like(self.mask)
        thickness = max(1, round(width * self.height))
        cv2.polylines(stroke, [self._to_pixels(points)], False, 255, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        self._cover(stroke, color)

    def clip_ellipse(self, x: float, y: float, radius_x: float, radius_y: float, color: Color) -> None:
        """An ellipse on what is drawn so far, cut off where that ends."""
        t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        spot = np.zeros_like(self.mask)
        outline = self._to_pixels(np.stack([x + radius_x * np.cos(t), y + radius_y * np.sin(t)], 1))  # type: ignore[arg-type]
        cv2.fillPoly(spot, [outline], 255, cv2.LINE_AA, SUBPIXEL_BITS)
        self._cover(spot, color)

    def hairs(self, rng: np.random.Generator, count: int, length: float, jitter: float, *, lean: float | None) -> None:
        """Short hairs all over what is drawn so far, each near the color that lies under it.

        `lean` is their direction in radians, counter-clockwise from the right; None: away from the middle.
        """
        rows, columns = np.nonzero(self.mask[::2, ::2] > 127)
        if not len(rows):
            return
        chosen = rng.integers(len(rows), size=count)
        starts = np.stack([columns[chosen], rows[chosen]], 1) * 2
        if lean is None:
            middle = np.array([columns.mean(), rows.mean()]) * 2
            turn = np.arctan2(starts[:, 1] - middle[1], starts[:, 0] - middle[0])
        else:
            turn = np.full(count, -lean if self.sign > 0 else lean + np.pi)
        turn = turn + rng.normal(0, 0.3, count)
        reach = length * self.height * rng.uniform(0.5, 1.2, count)
        ends = starts + np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None]
        colors = self.canvas[starts[:, 1], starts[:, 0]] * (1 + rng.normal(0, jitter, (count, 1)))
        thickness = max(1, round(0.004 * self.height))
        lines = np.round(np.stack([starts, ends], 1)).astype(int).tolist()
        for (start, end), color in zip(lines, np.clip(colors, 0, 255).tolist(), strict=True):
            cv2.line(self.canvas, start, end, color, thickness, cv2.LINE_AA)
            cv2.line(self.mask, start, end, 255, thickness)

    def _cover(self, drawn: np.ndarray, color: Color) -> None:
        """Paint `color` where both `drawn` (H, W) uint8 and the mask are."""
        left, top, wide, high = cv2.boundingRect(drawn)
        box = (slice(top, top + high), slice(left, left + wide))
        alpha = np.minimum(drawn[box], self.mask[box])[..., None].astype(np.float32) / 255
        paint = np.array(self._paint(color), np.float32)
        self.canvas[box] = (self.canvas[box] * (1 - alpha) + paint * alpha).astype(np.uint8)

    def shadow(self, width: float, strength: float) -> None:
        """Darken the ground under the object; not part of its mask."""
        center, radius = self._to_pixels([(0.12, 0.0)])[0], width * self.height * 2**SUBPIXEL_BITS
        shade = np.zeros(self.canvas.shape[:2], np.uint8)
        axes = (max(16, int(radius)), max(8, int(radius * 0.22)))
        at = (int(center[0]), int(center[1]))
        cv2.ellipse(shade, at, axes, 0, 0, 360, int(255 * strength), -1, cv2.LINE_AA, SUBPIXEL_BITS)
        left, top, wide, high = cv2.boundingRect(shade)
        if not wide:
            return
        pad = 8
        rows, columns = slice(max(top - pad, 0), top + high + pad), slice(max(left - pad, 0), left + wide + pad)
        soft = cv2.blur(shade[rows, columns], (9, 9))[..., None].astype(np.float32) / 255
        self.canvas[rows, columns] = (self.canvas[rows, columns] * (1 - soft)).astype(np.uint8)

    def shade(self, rng: np.random.Generator, light_x: float, roughness: float) -> None:
        """Light the object from the side `light_x` in [-1, 1] and roughen its surface."""
        left, top, wide, high = cv2.boundingRect(self.mask)
        if not wide or not high:
            return
        box = (slice(top, top + high), slice(left, left + wide))
        across = np.linspace(-1, 1, wide, dtype=np.float32)[None] * light_x
        down = np.linspace(0.06, -0.10, high, dtype=np.float32)[:, None]
        grain = fractal_noise(rng, high, wide, octaves=5, persistence=0.8, base=4) * roughness
        gain = 1 + 0.22 * across + down + grain
        inside = self.mask[box][..., None].astype(np.float32) / 255
        patch = self.canvas[box].astype(np.float32)
        self.canvas[box] = np.clip(patch * (1 + inside * (gain[..., None] - 1)), 0, 255).astype(np.uint8)

    def _to_pixels(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        units = np.asarray(points, np.float64)
        pixels = np.stack(
            [self.foot[0] + self.sign * units[:, 0] * self.height, self.foot[1] - units[:, 1] * self.height], 1
        )
        return np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)

    def _paint(self, color: Color) -> tuple[int, int, int]:
        red, green, blue = np.clip(color * self.tint * 255, 0, 255).astype(int).tolist()
        return red, green, blue


def tree(pen: Pen, rng: np.random.Generator) -> None:
    trunk = hsv(0.07, 0.5, rng.uniform(0.25, 0.42))
    pen.polygon([(-0.06, 0), (0.06, 0), (0.035, 0.6), (-0.035, 0.6)], trunk)
    pen.line([(0, 0.3), (0.14, 0.55)], 0.035, trunk * 0.9)
    pen.line([(0, 0.36), (-0.13, 0.58)], 0.03, trunk * 0.9)
    hue = rng.choice([0.22, 0.27, 0.31, 0.34, 0.09, 0.04, 0.93], p=[0.18, 0.22, 0.2, 0.12, 0.13, 0.08, 0.07])
    slender = rng.uniform(0.2, 0.36)
    saturation, value = rng.uniform(0.5, 0.75), rng.uniform(0.45, 0.65)
    for radius, count, brightness, lift in (
        (0.14, 12, 0.6, 0.0),
        (0.09, 18, 0.82, 0.02),
        (0.045, 40, 1.05, 0.04),
        (0.028, 40, 1.3, 0.07),
    ):
        for _ in range(count):
            turn, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
            x, y = slender * reach * np.cos(turn) - lift * 0.6, 0.66 + 0.24 * reach * np.sin(turn) + lift * 0.5
            leaf = hsv(hue + rng.normal(0, 0.012), saturation, value * brightness * rng.uniform(0.85, 1.15))
            pen.disk(x, y, radius * rng.uniform(0.7, 1.2), leaf)


def pine(pen: Pen, rng: np.random.Generator) -> None:
    pen.polygon([(-0.035, 0), (0.035, 0), (0.03, 0.3), (-0.03, 0.3)], hsv(0.07, 0.55, 0.3))
    hue, value, tiers = rng.uniform(0.34, 0.44), rng.uniform(0.26, 0.42), int(rng.integers(5, 8))
    snowy = rng.random() < 0.2
    for i in range(tiers):
        low, high = 0.12 + 0.72 * i / tiers, min(1.0, 0.12 + 0.72 * (i + 2.1) / tiers)
        half = 0.3 * (1 - i / (tiers + 0.6))
        steps = np.linspace(-half, half, 7)
        hem = [(float(x), low + 0.035 * (-1) ** k + rng.normal(0, 0.008)) for k, x in enumerate(steps)]
        pen.polygon([*hem, (0, high)], hsv(hue, 0.6, value * 0.75))
        pen.polygon([*hem[:4], (0, high)], hsv(hue, 0.55, value * (1.1 + 0.05 * i)))
        if snowy:
            pen.polygon(
                [(-half * 0.55, (low + high) / 2.2), (half * 0.3, (low + high) / 2.1), (0, high)], hsv(0, 0, 0.95)
            )


def house(pen: Pen, rng: np.random.Generator) -> None:
    wall = hsv(rng.choice([0.02, 0.08, 0.12, 0.15, 0.55, 0.62]), rng.uniform(0.05, 0.45), rng.uniform(0.75, 1.0))
    roof = hsv(rng.choice([0.0, 0.02, 0.05, 0.6, 0.4]), rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.65))
    eaves, deep = rng.uniform(0.48, 0.6), rng.uniform(0.35, 0.7)
    pen.polygon([(0.2, 0.5), (0.32, 0.5), (0.32, 1.0), (0.2, 1.0)], hsv(0.03, 0.5, 0.5))  # chimney
    pen.polygon([(0.1, 0), (0.1 + deep, 0.03), (0.1 + deep, eaves), (0.1, eaves)], wall * 0.72)
    pen.polygon([(-0.62, 0), (0.1, 0), (0.1, eaves), (-0.26, 0.88), (-0.62, eaves)], wall)
    pen.polygon([(-0.26, 0.94), (deep - 0.1, 0.94), (0.16 + deep, eaves - 0.04), (0.14, eaves - 0.04)], roof)
    pen.line([(-0.7, eaves - 0.05), (-0.26, 0.93), (0.14, eaves - 0.04)], 0.045, roof * 0.75)
    glow = hsv(0.13, 0.45, 1.0) / np.maximum(pen.tint, 0.3) if pen.tint.mean() < 0.6 else hsv(0.56, 0.35, 0.55)
    frame, door = hsv(0, 0, 0.97), hsv(rng.random(), 0.55, 0.45)
    pen.polygon([(-0.35, 0), (-0.17, 0), (-0.17, 0.33), (-0.35, 0.33)], door)
    windows = [(-0.53, 0.2), (-0.07, 0.2), (-0.26, 0.55), (0.1 + 0.3 * deep, 0.22), (0.1 + 0.72 * deep, 0.23)]
    for x, y in windows:
        pen.polygon([(x - 0.08, y - 0.01), (x + 0.08, y - 0.01), (x + 0.08, y + 0.17), (x - 0.08, y + 0.17)], frame)
        pen.polygon([(x - 0.06, y + 0.01), (x + 0.06, y + 0.01), (x + 0.06, y + 0.15), (x - 0.06, y + 0.15)], glow)
        pen.line([(x, y), (x, y + 0.16)], 0.014, frame)


def flower(pen: Pen, rng: np.random.Generator) -> None:
    hue, petals = rng.choice([0.0, 0.03, 0.14, 0.8, 0.9, 0.62, 0.75]), int(rng.integers(6, 11))
    petal, heart = hsv(hue, rng.uniform(0.1, 0.9), 1.0), hsv(rng.uniform(0.08, 0.15), 0.85, rng.uniform(0.4, 1.0))
    for x, top in ((0.0, 0.76), (-0.3, 0.55), (0.3, 0.48))[: int(rng.integers(1, 4))]:
        stem, scale = hsv(0.3, 0.65, rng.uniform(0.4, 0.55)), top / 0.76
        pen.line([(x * 0.2, 0), (x * 0.8, top * 0.5), (x, top)], 0.028, stem)
        pen.ellipse(x * 0.5 + 0.09, top * 0.36, 0.11, 0.035, stem * 1.15, 0.5)
        pen.ellipse(x * 0.5 - 0.09, top * 0.28, 0.11, 0.035, stem * 0.85, 2.6)
        for k in range(petals):
            a = 2 * np.pi * k / petals + x
            reach = 0.13 * scale
            shade = petal * (0.86 + 0.14 * np.sin(a + 2))
            pen.ellipse(x + reach * np.cos(a), top + reach * np.sin(a), 0.105 * scale, 0.05 * scale, shade, a)
        pen.disk(x, top, 0.065 * scale, heart)
        pen.disk(x - 0.015, top + 0.018, 0.03 * scale, heart * 1.25)


def ball(pen: Pen, rng: np.random.Generator) -> None:
    hue, striped = rng.random(), rng.random() < 0.65
    base, second = hsv(hue, 0.8, 0.85), hsv(hue + rng.uniform(0.3, 0.7), rng.uniform(0.0, 0.8), 0.98)
    pen.disk(0, 0.5, 0.5, base)
    if striped:
        for half, color in ((0.4, second), (0.27, base), (0.1, second)):
            pen.ellipse(0, 0.5, half, 0.5, color, 0.4)
    for k in range(4):  # darker toward the lower rim, then the highlight
        pen.line(
            [(0.47 * np.cos(a), 0.5 + 0.47 * np.sin(a)) for a in np.linspace(3.6 + 0.2 * k, 6.0 - 0.2 * k, 12)],
            0.05,
            base * 0.62,
        )
    pen.disk(-0.18, 0.72, 0.09, hsv(hue, 0.12, 1.0))
    pen.disk(-0.2, 0.74, 0.05, hsv(0, 0, 1.0))


def boat(pen: Pen, rng: np.random.Generator) -> None:
    hull = hsv(rng.choice([0.02, 0.06, 0.58, 0.4, 0.0]), rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.75))
    pen.polygon([(-0.46, 0.2), (0.5, 0.22), (0.32, 0), (-0.34, 0)], hull)
    pen.polygon([(-0.46, 0.2), (0.5, 0.22), (0.47, 0.17), (-0.43, 0.15)], hsv(0, 0, 0.95))
    pen.line([(0, 0.2), (0, 1.0)], 0.03, hsv(0.08, 0.5, 0.35))
    sail = hsv(rng.choice([0.1, 0.0, 0.13, 0.58]), rng.choice([0.04, 0.04, 0.6]), 0.98)
    pen.polygon([(0.035, 0.98), (0.42, 0.3), (0.035, 0.28)], sail)
    pen.polygon([(-0.035, 0.86), (-0.32, 0.3), (-0.035, 0.28)], sail * 0.85)
    pen.polygon([(0.035, 0.7), (0.21, 0.62), (0.26, 0.56), (0.035, 0.62)], sail * 0.7)


def person(pen: Pen, rng: np.random.Generator) -> None:
    skin = hsv(rng.uniform(0.05, 0.08), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.95))
    coat, legs = hsv(rng.random(), rng.uniform(0.3, 0.9), 0.75), hsv(rng.uniform(0.5, 0.7), 0.5, 0.3)
    hair = hsv(0.07, 0.6, rng.uniform(0.1, 0.5))
    for side in (-1, 1):
        pen.line([(side * 0.045, 0.45), (side * 0.07, 0.02), (side * 0.07 + 0.05, 0.015)], 0.085, legs)
        pen.line([(side * 0.1, 0.76), (side * 0.17, 0.58), (side * 0.15, 0.44)], 0.07, coat * 0.8)
        pen.disk(side * 0.15, 0.42, 0.034, skin)
    pen.polygon([(-0.12, 0.79), (0.12, 0.79), (0.13, 0.42), (-0.13, 0.42)], coat)
    pen.line([(0, 0.78), (0, 0.83)], 0.06, skin * 0.85)
    pen.disk(0, 0.905, 0.088, hair)
    pen.ellipse(0.01, 0.885, 0.068, 0.075, skin)
    if rng.random() < 0.4:
        pen.ellipse(0, 0.945, 0.14, 0.025, coat * 0.6)
        pen.ellipse(0, 0.97, 0.075, 0.04, coat * 0.6)


def deer(pen: Pen, rng: np.random.Generator) -> None:
    fur = hsv(rng.uniform(0.05, 0.09), rng.uniform(0.45, 0.65), rng.uniform(0.45, 0.7))
    for x, tone in ((-0.23, 0.7), (0.17, 0.7), (-0.17, 1.0), (0.22, 1.0)):
        pen.line([(x, 0.4), (x + 0.01, 0.2), (x, 0.0)], 0.045, fur * tone)
    pen.ellipse(0, 0.44, 0.31, 0.135, fur)
    pen.ellipse(-0.02, 0.365, 0.2, 0.045, fur * 1.4)
    pen.polygon([(0.14, 0.44), (0.28, 0.42), (0.38, 0.72), (0.28, 0.74)], fur)
    pen.ellipse(0.38, 0.73, 0.105, 0.052, fur * 1.05, -0.35)
    pen.disk(0.47, 0.695, 0.02, fur * 0.3)
    pen.disk(0.37, 0.75, 0.014, fur * 0.15)
    pen.ellipse(0.26, 0.78, 0.06, 0.022, fur * 0.85, 2.5)
    pen.disk(-0.31, 0.48, 0.042, hsv(0, 0, 0.95))
    if rng.random() < 0.7:
        horn = hsv(0.1, 0.35, 0.6)
        for lean in (-0.12, 0.06):
            pen.line([(0.33, 0.77), (0.31 + lean, 0.88), (0.36 + 1.4 * lean, 1.0)], 0.022, horn)
            pen.line([(0.32 + lean * 0.8, 0.86), (0.42 + lean, 0.93)], 0.018, horn)


def cat(pen: Pen, rng: np.random.Generator) -> None:
    fur = hsv(rng.choice([0.07, 0.08, 0.1, 0.6]), rng.choice([0.05, 0.25, 0.65]), rng.choice([0.25, 0.5, 0.7, 0.92]))
    dark, pale = fur * 0.55, np.minimum(fur * 1.3 + 0.1, 1)
    pen.line([(0.2, 0.06), (0.44, 0.1), (0.48, 0.3), (0.42, 0.44)], 0.075, fur * 0.85)
    pen.ellipse(0.02, 0.27, 0.25, 0.29, fur)
    pen.ellipse(0.0, 0.24, 0.12, 0.2, pale)
    for side in (-1, 1):
        pen.ellipse(side * 0.11, 0.05, 0.08, 0.05, pale)
        pen.polygon([(side * 0.08, 0.86), (side * 0.22, 0.8), (side * 0.2, 1.0)], fur)
        pen.polygon([(side * 0.12, 0.87), (side * 0.19, 0.84), (side * 0.18, 0.95)], hsv(0.0, 0.35, 0.75))
    pen.ellipse(0, 0.72, 0.235, 0.19, fur)
    for x in (-0.08, 0.0, 0.08):
        pen.line([(x, 0.88), (x * 0.8, 0.8)], 0.025, dark)
        pen.line([(0.26, 0.3 + x), (0.14, 0.28 + x)], 0.028, dark)
    pen.ellipse(0, 0.64, 0.1, 0.075, pale)
    eyes = hsv(rng.choice([0.18, 0.3, 0.12]), 0.8, 0.9)
    for side in (-1, 1):
        pen.ellipse(side * 0.1, 0.75, 0.05, 0.045, eyes)
        pen.ellipse(side * 0.1, 0.75, 0.015, 0.042, hsv(0, 0, 0.03))
        pen.line([(side * 0.08, 0.64), (side * 0.32, 0.66 + 0.03 * side)], 0.01, pale)
    pen.polygon([(-0.03, 0.68), (0.03, 0.68), (0, 0.645)], hsv(0.98, 0.5, 0.7))


def cup(pen: Pen, rng: np.random.Generator) -> None:
    glaze = hsv(rng.random(), rng.choice([0.05, 0.5, 0.8]), rng.uniform(0.7, 1.0))
    band = hsv(rng.random(), 0.7, 0.7)
    pen.ellipse(0, 0.08, 0.62, 0.085, glaze * 0.8)
    pen.ellipse(0, 0.095, 0.5, 0.055, glaze)
    ring = [(0.37 + 0.2 * np.cos(a), 0.52 + 0.2 * np.sin(a)) for a in np.linspace(-1.9, 1.9, 14)]
    pen.line(ring, 0.075, glaze * 0.85)
    pen.polygon([(-0.43, 0.85), (0.43, 0.85), (0.36, 0.35), (0.24, 0.1), (-0.24, 0.1), (-0.36, 0.35)], glaze)
    pen.polygon([(-0.405, 0.65), (0.405, 0.65), (0.38, 0.5), (-0.38, 0.5)], band)
    pen.ellipse(0, 0.85, 0.43, 0.11, glaze * 0.92)
    pen.ellipse(0, 0.845, 0.37, 0.085, hsv(0.06, 0.7, rng.uniform(0.2, 0.4)))
    pen.line([(-0.3, 0.72), (-0.25, 0.35)], 0.04, np.minimum(glaze + 0.3, 1))


def rock(pen: Pen, rng: np.random.Generator) -> None:
    stone, count = hsv(rng.uniform(0.05, 0.6), 0.12, rng.uniform(0.4, 0.65)), int(rng.integers(8, 12))
    turns = np.linspace(0, np.pi, count)
    reach = rng.uniform(0.8, 1.1, count)
    rim = [(float(0.75 * r * np.cos(t)), float(r * np.sin(t) * 0.9)) for t, r in zip(turns, reach, strict=True)]
    pen.polygon(rim, stone * 0.6)
    peak = (rng.uniform(-0.2, 0.2), rng.uniform(0.35, 0.6))
    for k, (a, b) in enumerate(pairwise(rim)):
        pen.polygon([a, b, peak], stone * (0.65 + 0.5 * k / count) * rng.uniform(0.9, 1.1))


PAINTERS: dict[str, Painter] = {
    "tree": tree,
    "pine": pine,
    "house": house,
    "flower": flower,
    "ball": ball,
    "boat": boat,
    "person": person,
    "deer": deer,
    "cat": cat,
    "cup": cup,
    "rock": rock,
}
HEIGHTS = {  # how high one stands in the near ground, as a part of the picture's height
    "tree": 0.62,
    "pine": 0.66,
    "house": 0.46,
    "flower": 0.38,
    "ball": 0.22,
    "boat": 0.46,
    "person": 0.46,
    "deer": 0.42,
    "cat": 0.34,
    "cup": 0.26,
    "rock": 0.18,
}
ROUGHNESS = {"tree": 0.1, "pine": 0.1, "rock": 0.12, "deer": 0.06, "cat": 0.08, "house": 0.05}
