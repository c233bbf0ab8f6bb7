"""Marks that fill a surface, for the autoencoder: a picture and a palette come in, the picture in such marks goes out.

Hatching, cells, strokes, dots, weave, cracks, tufts: every scale, weak and strong; none of them is a style.
"""

from collections.abc import Callable

import cv2
import numpy as np
from noise import fractal_noise

Mark = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]


def comb(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise that is drawn out along wandering curves, (H, W) of standard deviation 1: fur, hair, wood, bristles."""
    long = int(rng.integers(6, 24))
    noise = rng.standard_normal((2 * size, 2 * size // long), np.float32)
    drawn = cv2.resize(noise, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    u, v = _turned(size, rng.uniform(0, np.pi))
    sway = rng.uniform(0, 0.12) * size * fractal_noise(rng, size, size, octaves=2)
    combed = cv2.remap(drawn, u + size, v + sway + size, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return combed / combed.std()


def hatch(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Lines 1 to 4 pixels wide, 2 to 12 apart, straight or swaying, crossed or not, that may swell with the tone."""
    size = len(image)
    ground, ink = _ground_of(rng, image, palette), _ink_of(rng, palette)
    spacing, angle = np.exp(rng.uniform(np.log(2.2), np.log(12))), rng.uniform(0, np.pi)
    width = min(rng.uniform(0.8, 4), 0.8 * spacing)
    tone = cv2.GaussianBlur(image.mean(2), (0, 0), 1.0)
    swelling, sway = rng.random() < 0.5, rng.uniform(0, 6) * (rng.random() < 0.5)
    cover = np.zeros((size, size), np.float32)
    for layer in range(int(rng.integers(1, 4))):
        across = _turned(size, angle + layer * rng.uniform(0.3, 1.4))[1]
        if sway:
            across = across + sway * fractal_noise(rng, size, size, octaves=2)
        offset = np.abs((across / spacing) % 1 - 0.5) * spacing
        wide = width * (1.5 - 0.45 * layer - 1.6 * tone) if swelling else np.float32(width)
        line = np.clip(wide / 2 - offset + 0.5, 0, 1)
        if not swelling and layer:
            line = line * (tone < rng.uniform(0.3, 0.8))
        if rng.random() < 0.3:  # broken lines
            line = line * np.clip(2 * fractal_noise(rng, size, size, octaves=5, persistence=0.8, base=6) + 1, 0, 1)
        cover = np.maximum(cover, line)
    alpha = cover[..., None] * rng.uniform(0.3, 1)
    return ground * (1 - alpha) + ink * alpha


def cells(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Squares, bricks, hexagons or irregular cells of 4 to 40 pixels, with or without gaps and shading."""
    size, scale = len(image), 2
    side, stretch = np.exp(rng.uniform(np.log(4), np.log(40))), rng.choice([1.0, 1.0, rng.uniform(1.2, 2.5)])
    jitter = rng.choice([0.0, rng.uniform(0.05, 0.15), rng.uniform(0.2, 0.5)])
    points = _grid(rng, size, side, stretch, jitter, shifted=rng.random() < 0.6)
    seeds = np.ones((scale * size, scale * size), np.uint8)
    at = np.clip(points * scale, 0, scale * size - 1).astype(int)
    seeds[at[:, 1], at[:, 0]] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    labels = np.asarray(labels, np.int32)
    small = np.ascontiguousarray(labels[::scale, ::scale])
    count = int(labels.max()) + 1
    if rng.random() < 0.65:
        area = np.maximum(np.bincount(small.ravel(), minlength=count), 1)
        colors = np.stack([np.bincount(small.ravel(), image[..., c].ravel(), count) / area for c in range(3)], 1)
    else:
        colors = palette[rng.integers(len(palette), size=count)]
    colors = colors * (1 + rng.uniform(0, 0.25) * rng.standard_normal((count, 1)))
    colors = (colors + rng.uniform(0, 0.08) * rng.standard_normal((count, 3))).astype(np.float32)
    surface = colors[labels]
    near = distance / (0.7 * side * scale)
    shading = rng.choice([0.0, rng.uniform(-0.5, 0.7)])
    tone = 1 + shading * (0.4 - near)
    if rng.random() < 0.4:  # each is tilted its own way
        tilt = rng.normal(0, 0.25, (count, 2)).astype(np.float32)
        y, x = np.mgrid[0 : scale * size, 0 : scale * size].astype(np.float32) / (scale * side)
        phase = tilt[labels]
        tone = tone + phase[..., 0] * np.sin(x * 2) + phase[..., 1] * np.sin(y * 2)
    surface = surface * tone[..., None].astype(np.float32)
    gap = rng.choice([0.0, rng.uniform(1, 3)])
    if gap:
        edge = np.zeros(labels.shape, np.uint8)
        edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]).astype(np.uint8)
        edge[1:] |= (labels[1:] != labels[:-1]).astype(np.uint8)
        wide = max(1, round(scale * gap * min(1, side / 8)))
        edge = cv2.dilate(edge, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (wide, wide)))
        grout = rng.choice([0.05, 0.2, 0.85, 1.0]) * np.ones(3) if rng.random() < 0.7 else _ink_of(rng, palette)
        surface = np.where(edge[..., None] > 0, grout.astype(np.float32), surface)
    return cv2.resize(surface, (size, size), interpolation=cv2.INTER_AREA)


def scales(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Rows of overlapping disks or blades: fish scales, shingles, feathers, foliage, gravel."""
    size, side = len(image), np.exp(rng.uniform(np.log(5), np.log(30)))
    points = _grid(rng, size, side, rng.uniform(0.7, 1.3), rng.choice([0.05, 0.4]), shifted=True)
    points = points[np.argsort(points[:, 1])] if rng.random() < 0.5 else rng.permutation(points)
    canvas, own = _bytes(image), rng.random() < 0.6
    colors = _colors_at(image, points) if own else palette[rng.integers(len(palette), size=len(points))]
    colors = np.clip(colors * rng.uniform(0.65, 1.3, (len(points), 1)) * 255, 0, 255)
    long, lean, turned = side * rng.uniform(0.5, 1.0), side * rng.uniform(0.3, 0.7), rng.choice([0.0, 15.0, 180.0])
    rim = rng.uniform(0.3, 1.5)
    for point, color in zip(points, colors, strict=True):
        at = (int(point[0]), int(point[1]))
        axes, angle = (max(1, int(lean)), max(1, int(long))), float(rng.normal(0, turned))
        cv2.ellipse(canvas, at, axes, angle, 0, 360, color.tolist(), -1, cv2.LINE_AA)
        cv2.ellipse(canvas, at, axes, angle, 0, 180, np.clip(color * rim, 0, 255).tolist(), 1, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def strokes(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Brush-like strokes of any width, length and bend, with bristles or without, lit as a relief or flat."""
    size = len(image)
    width = np.exp(rng.uniform(np.log(1.5), np.log(14)))
    length, bend = width * np.exp(rng.uniform(np.log(1.5), np.log(8))), rng.uniform(0, 0.4)
    count = int(min(1.6 * size * size / (width * length), 1400))
    points, main = rng.uniform(0, size, (count, 2)), rng.uniform(0, np.pi)
    slow = fractal_noise(rng, 16, 16, octaves=2) * rng.uniform(0, 1.2)
    turn = main + slow[(points[:, 1] * 15.9 / size).astype(int), (points[:, 0] * 15.9 / size).astype(int)]
    turn = turn + rng.normal(0, rng.choice([0.05, 0.3, 1.5]), count)
    along = np.stack([np.cos(turn), np.sin(turn)], 1) * (0.5 * length * rng.uniform(0.5, 1.3, (count, 1)))
    aside = np.stack([-np.sin(turn), np.cos(turn)], 1) * (length * rng.normal(0, bend, (count, 1)))
    lines = np.round(
        np.stack([points - along, points - 0.35 * along + aside, points + 0.35 * along + aside, points + along], 1) * 16
    )
    colors = np.clip(
        (_colors_at(image, points) * rng.uniform(0.85, 1.15, (count, 1)) + rng.normal(0, 0.04, (count, 3))) * 255,
        0,
        255,
    )
    canvas, height = _bytes(image), np.zeros((size, size), np.uint8)
    bristly, lit = rng.random() < 0.5, rng.random() < 0.45
    for line, color, level in zip(
        lines.astype(np.int32), colors.tolist(), rng.integers(60, 256, count).tolist(), strict=True
    ):
        cv2.polylines(canvas, [line], False, color, max(1, round(width)), cv2.LINE_AA, 4)
        if lit:
            cv2.polylines(height, [line], False, level // 2, max(1, round(width)), cv2.LINE_AA, 4)
            cv2.polylines(height, [line], False, level, max(1, round(width * 0.5)), cv2.LINE_AA, 4)
    painted = canvas.astype(np.float32) / 255
    if bristly:
        painted = painted * (1 + rng.uniform(0.03, 0.15) * comb(rng, size))[..., None]
    if lit:
        relief = cv2.GaussianBlur(height.astype(np.float32) / 255, (0, 0), rng.uniform(0.5, 1.2))
        down, right = rng.choice([-1, 1], 2)
        painted = painted * (1 + rng.uniform(0.4, 1.6) * (relief - np.roll(relief, (down, right), (0, 1))))[..., None]
    return painted


def dots(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A screen of dots whose size follows the tone, in one ink or in three."""
    size = len(image)
    period, angle = np.exp(rng.uniform(np.log(3), np.log(14))), rng.uniform(0, np.pi)
    inks = (
        [_ink_of(rng, palette)]
        if rng.random() < 0.5
        else [np.array(c) for c in ((0, 0.6, 0.9), (0.9, 0.1, 0.5), (1, 0.9, 0.1))]
    )
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0)
    printed = np.ones_like(image) * rng.uniform(0.8, 1)
    for i, ink in enumerate(inks):
        density = 1 - (smooth.mean(2) if len(inks) == 1 else smooth[..., i])
        u, v = _turned(size, angle + 0.5 * i)
        grid = (np.cos(u * 2 * np.pi / period) + np.cos(v * 2 * np.pi / period)) / 2
        cover = np.clip((grid - 1 + 2 * density) * 0.4 * period + 0.5, 0, 1)[..., None]
        printed = printed * (1 - cover * (1 - ink))
    return printed


def spots(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Round dabs of one color each."""
    size, radius = len(image), np.exp(rng.uniform(np.log(1.5), np.log(9)))
    points = _grid(rng, size, max(radius * rng.uniform(1.2, 2.2), 3.2), 1.0, 0.35, shifted=True)
    canvas = _bytes(_ground_of(rng, image, palette))
    colors = np.clip(
        (_colors_at(image, points) + rng.normal(0, rng.uniform(0.01, 0.12), (len(points), 3))) * 255, 0, 255
    )
    for point, color in zip(np.round(points * 16).astype(int).tolist(), colors.tolist(), strict=True):
        cv2.circle(canvas, point, int(16 * radius * rng.uniform(0.7, 1.2)), color, -1, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255


def weave(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Canvas, checks or knitting laid over the picture."""
    size = len(image)
    period, strength = np.exp(rng.uniform(np.log(3), np.log(24))), rng.uniform(0.05, 0.5)
    u, v = (field * 2 * np.pi / period for field in _turned(size, rng.choice([0.0, rng.uniform(0, np.pi)])))
    kind = int(rng.integers(3))
    if kind == 0:
        field = np.sin(u) * np.sin(v)
    elif kind == 1:
        field = np.clip(4 * np.sin(u), -1, 1) * np.clip(4 * np.sin(v), -1, 1)
    else:
        over = np.sin(u / 2) * np.sin(v / 2) > 0
        field = np.where(over, np.abs(np.sin(u)), np.abs(np.sin(v))) * 2 - 1
    if rng.random() < 0.4:
        second = _ink_of(rng, palette)
        alpha = (0.5 + 0.5 * field)[..., None] * rng.uniform(0.4, 1)
        return image * (1 - alpha) + second * alpha
    return image * (1 + strength * field)[..., None]


def cracks(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Thin wandering lines: cracks, veins, contour lines."""
    size = len(image)
    field = fractal_noise(
        rng, size, size, octaves=int(rng.integers(2, 6)), persistence=0.5, base=int(rng.integers(3, 14))
    )
    levels = rng.choice([1.0, rng.uniform(1.5, 5)])
    slope = cv2.magnitude(cv2.Sobel(field, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(field, cv2.CV_32F, 0, 1) / 8) + 1e-4
    offset = np.abs((field * levels) % 1 - 0.5) / (slope * levels)
    alpha = np.clip(rng.uniform(0.5, 1.8) - offset + 0.5, 0, 1)[..., None] * rng.uniform(0.3, 1)
    return image * (1 - alpha) + _ink_of(rng, palette) * alpha


def tufts(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Many short thin lines near the color below them: fur, grass, straw, needles."""
    size, count = len(image), int(rng.integers(300, 1500))
    canvas, points = _bytes(image), rng.uniform(0, size, (count, 2))
    turn = rng.uniform(0, 2 * np.pi) + rng.normal(0, rng.choice([0.15, 0.5, 3]), count)
    ends = points + np.stack([np.cos(turn), np.sin(turn)], 1) * rng.uniform(4, 26) * rng.uniform(0.5, 1.2, (count, 1))
    colors = np.clip(_colors_at(image, points) * rng.lognormal(0, rng.uniform(0.1, 0.5), (count, 1)) * 255, 0, 255)
    lines, width = np.round(np.stack([points, ends], 1)).astype(int).tolist(), int(rng.integers(1, 3))
    for (start, end), color in zip(lines, colors.tolist(), strict=True):
        cv2.line(canvas, start, end, color, width, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def grain(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Fine noise, gray or colored, even or coarse as that of chalk on rough paper."""
    size, channels = len(image), int(rng.choice([1, 3]))
    noise = rng.standard_normal((size, size, channels), np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.3, 1.2)).reshape(size, size, channels)
    noise = noise / noise.std()
    if rng.random() < 0.5:
        return image + rng.uniform(0.02, 0.15) * noise
    chalk = np.clip(noise[..., :1] + rng.uniform(-0.5, 1.5), 0, 1)
    return image * chalk + _ink_of(rng, palette) * (1 - chalk)


def slabs(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Hard-edged polygons in flat colors or ramps, large over small."""
    size, canvas = len(image), _bytes(image)
    for _ in range(int(rng.integers(20, 250))):
        center, radius = rng.uniform(0, size, 2), np.exp(rng.uniform(np.log(3), np.log(32)))
        t = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 6))))
        corners = center + radius * np.stack([np.cos(t), np.sin(t)], 1)
        own = image[int(min(center[1], size - 1)), int(min(center[0], size - 1))]
        color = own * rng.uniform(0.7, 1.3) if rng.random() < 0.6 else palette[rng.integers(len(palette))]
        cv2.fillConvexPoly(
            canvas, np.round(corners * 16).astype(np.int32), np.clip(color * 255, 0, 255).tolist(), cv2.LINE_AA, 4
        )
    return canvas.astype(np.float32) / 255


MARKS: tuple[Mark, ...] = (
    *(hatch, hatch, cells, cells, cells, scales, strokes, strokes, dots),
    *(spots, weave, cracks, tufts, grain, slabs),
)


def _turned(size: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (H, W) in pixels along and across `angle`."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def _grid(
    rng: np.random.Generator, size: int, side: float, stretch: float, jitter: float, *, shifted: bool
) -> np.ndarray:
    """Points (N, 2) in the picture, on a turned grid of cells of `side` by `side * stretch`."""
    along, across = np.arange(-0.75 * size, 0.75 * size, side * stretch), np.arange(-0.75 * size, 0.75 * size, side)
    u, v = np.meshgrid(along, across)
    u = u + (np.arange(len(across)) % 2)[:, None] * (side * stretch / 2 * shifted)
    u, v = u + rng.normal(0, jitter * side, u.shape), v + rng.normal(0, jitter * side, v.shape)
    turn = rng.choice([0.0, rng.uniform(0, np.pi)])
    points = np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], -1).reshape(-1, 2)
    points = points + size / 2
    return points[((points >= 0) & (points < size)).all(1)]


def _ground_of(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """What marks stand on: the picture, paler or not, or plain paper."""
    if rng.random() < 0.3:
        return np.ones_like(image) * np.clip(rng.uniform(0.75, 1) * np.array([1, 0.98, 0.92]), 0, 1)
    pale = rng.uniform(0, 0.7)
    return image * (1 - pale) + pale


def _ink_of(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Black, white or a color of the palette, (3,)."""
    return [np.full(3, 0.05), np.full(3, 0.95), palette[int(rng.integers(len(palette)))]][
        int(rng.choice(3, p=[0.4, 0.15, 0.45]))
    ]


def _colors_at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    column, row = np.clip(points, 0, len(image) - 1).astype(int).T
    return image[row, column]


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255, 0, 255).astype(np.uint8)
