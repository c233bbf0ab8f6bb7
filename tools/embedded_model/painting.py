"""Styles: a picture comes in; the same picture as a painter, a printer or a mosaicist would make it goes out."""

from collections.abc import Callable

import cv2
import numpy as np
from noise import fractal_noise, smear
from scipy.spatial import KDTree

TRAINING_STYLES = ("photo", "oil", "pointillism", "hatching", "watercolor", "poster")
HELD_OUT_STYLES = ("mosaic", "impasto")  # never shown to the model in training: styles for honest tests
STYLES = (*TRAINING_STYLES, *HELD_OUT_STYLES)
PROMPTS = {
    "photo": "a photo of",
    "oil": "an oil painting of",
    "pointillism": "a pointillism painting of",
    "hatching": "a hatching drawing of",
    "watercolor": "a watercolor painting of",
    "poster": "a poster of",
}
SUBPIXEL_BITS = 4


def paint(image: np.ndarray, style: str, seed: int) -> np.ndarray:
    """Render `image` (H, W, 3), float32 in [0, 1], in one of `STYLES`; the result has the same shape and range."""
    if style not in PAINTERS:
        raise ValueError(f"no style {style!r}; there are: {', '.join(STYLES)}")
    cv2.setNumThreads(1)
    painted = PAINTERS[style](image.astype(np.float32), np.random.default_rng([seed, STYLES.index(style)]))
    return np.clip(painted, 0, 1).astype(np.float32)


def _photo(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


def _oil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat strokes with crisp borders (a Kuwahara filter), rich color, and the relief of the bristles."""
    unit = len(image) / 256
    flat = _kuwahara(_saturate(image, 1.3), max(2, round(4 * unit)))
    bristles = smear(rng.standard_normal(image.shape[:2], np.float32), _flow(image, 4 * unit, rng), round(10 * unit))
    relief = bristles - np.roll(bristles, 1, 0)
    warm = np.array([1.03, 1.0, 0.93], np.float32)
    return flat * warm * (1 + 0.04 * bristles / bristles.std() + 0.022 * relief / relief.std())[..., None]


def _pointillism(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round dots of pure color on a primed canvas, their hues scattered about the color they stand for."""
    unit = len(image) / 256
    vivid = _saturate(cv2.GaussianBlur(image, (0, 0), 0.8 * unit), 1.5)
    canvas = _to_bytes(_enlarge(0.75 * cv2.GaussianBlur(vivid, (0, 0), 6 * unit) + 0.2))
    for spacing, radius, scatter in ((8.5, 6.2, 0.045), (7.0, 4.2, 0.055)):
        points = _jittered_grid(rng, len(image), spacing * unit, 0.45)
        colors = _colors_at(vivid, points)
        colors = colors + rng.normal(0, scatter, colors.shape) + rng.normal(0, 0.03, (len(colors), 1))
        radii = radius * unit * rng.uniform(0.75, 1.15, len(points))
        _draw_dots(canvas, points, radii, colors)
    return _shrink(canvas)


def _hatching(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pen and ink on toned paper: layers of short crossing strokes for the shadows, lines along the outlines."""
    size, unit = len(image), len(image) / 256
    tone = _stretch(cv2.GaussianBlur(_luminance(image), (0, 0), 1.5 * unit))
    paper, ink = np.array([0.96, 0.93, 0.85]), np.array([0.16, 0.12, 0.14])
    sheet = _to_bytes(_enlarge(np.full((size, size), 1.0, np.float32)))
    slant = rng.uniform(-0.15, 0.15)
    for level, angle, gray in ((0.74, 0.75, 130), (0.5, -0.7, 112), (0.33, 0.2, 96), (0.18, 1.4, 80)):
        points = _jittered_grid(rng, size, 6.8 * unit, 0.2, stretch=2.1, turn=angle + slant)
        dark = tone[_rows_of(points, size), _columns_of(points, size)] < level + rng.normal(0, 0.035, len(points))
        strokes = _curved_strokes(rng, points[dark], angle + slant, 11 * unit)
        cv2.polylines(sheet, strokes, False, gray, max(1, round(3 * unit)), cv2.LINE_AA, SUBPIXEL_BITS)
    wash = 0.5 + 0.5 * cv2.GaussianBlur(tone, (0, 0), 2 * unit)
    cover = _shrink(sheet) * wash * (1 - 0.85 * _outlines(image, unit))
    grain = 1 + 0.012 * fractal_noise(rng, size, size, octaves=4, persistence=0.9, base=16)
    return (ink + (paper - ink) * (cover * grain)[..., None]).astype(np.float32)


def _watercolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pale washes that wander off their outlines, pool dark along their borders and granulate in the paper."""
    size, unit = len(image), len(image) / 256
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    drift = [2.2 * unit * fractal_noise(rng, size, size, octaves=3, base=8) for _ in range(2)]
    moved = cv2.remap(image, x + drift[0], y + drift[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    washes = _kuwahara(cv2.GaussianBlur(moved, (0, 0), unit), max(2, round(5 * unit)))
    pale = 0.26 + 0.74 * np.clip(_saturate(washes, 1.45), 0, 1) ** 0.7
    steps = cv2.GaussianBlur(washes, (0, 0), 0.8 * unit) - cv2.GaussianBlur(washes, (0, 0), 3.5 * unit)
    pooled = np.clip(np.abs(steps).max(2) * 3.2, 0, 0.4)
    blooms = 0.055 * fractal_noise(rng, size, size, octaves=4, base=3)
    grain = 0.022 * fractal_noise(rng, size, size, octaves=3, persistence=0.9, base=48)
    density = (1 + pooled + blooms + grain)[..., None]
    return np.clip(pale, 0.02, 0.985) ** density


def _poster(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A screen print: few flat inks on cream paper, hard borders, dark contours."""
    unit = len(image) / 256
    smooth = cv2.bilateralFilter(_to_bytes(image), 9, 50, 6 * unit)
    smooth = cv2.medianBlur(cv2.medianBlur(smooth, _odd(6 * unit)), _odd(4 * unit))
    lab = cv2.cvtColor(_enlarge(smooth.astype(np.float32) / 255), cv2.COLOR_RGB2LAB)
    lightness = _stretch(lab[..., 0] / 100)
    levels = np.clip(np.floor(lightness * 4.999), 0, 4)
    tones = np.array([12, 34, 56, 76, 93], np.float32)[levels.astype(int)]
    chroma = np.round(lab[..., 1:] * 1.9 / 26) * 26
    flat = cv2.cvtColor(np.dstack([tones, chroma]).astype(np.float32), cv2.COLOR_LAB2RGB)
    flat = cv2.medianBlur(_to_bytes(np.clip(flat, 0, 1)), _odd(5 * unit))
    ink = np.array([0.10, 0.09, 0.18], np.float32) * rng.uniform(0.5, 1.3)
    tinted = _shrink(flat) * np.array([1.0, 0.97, 0.88], np.float32)
    line = (0.9 * _outlines(smooth.astype(np.float32) / 255, 1.5 * unit))[..., None]
    return tinted * (1 - line) + ink * line


def _mosaic(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tesserae: small stones of one color each, set in dark grout."""
    size, unit = len(image), len(image) / 256
    points = _jittered_grid(rng, size, 10.5 * unit, 0.28)
    y, x = np.mgrid[0:size, 0:size]
    distances, nearest = KDTree(points).query(np.stack([x.ravel(), y.ravel()], 1), k=2)
    stone = nearest[:, 0]  # type: ignore[index]
    counts = np.maximum(np.bincount(stone, minlength=len(points)), 1)
    colors = np.stack([np.bincount(stone, image[..., c].ravel(), len(points)) / counts for c in range(3)], 1)
    colors = _saturate(colors[None].astype(np.float32), 1.35)[0] * rng.uniform(0.85, 1.15, (len(points), 1))
    gap = (distances[:, 1] - distances[:, 0]).reshape(size, size)
    face = np.clip(gap / (2.0 * unit) - 0.15, 0, 1)[..., None]
    tilt = rng.normal(0, 0.02 / unit, (len(points), 2))
    offset = np.stack([x.ravel(), y.ravel()], 1) - points[stone]
    glint = 1 + (offset * tilt[stone]).sum(1).reshape(size, size, 1)
    return colors[stone].reshape(size, size, 3) * glint * face + np.array([0.2, 0.18, 0.17]) * (1 - face)


def _impasto(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Long thick strokes along the forms, each a ridge of paint that catches the light."""
    size, unit = len(image), len(image) / 256
    vivid, angle = _saturate(image, 1.5), _flow(image, 6 * unit, rng)
    canvas, height = _to_bytes(_enlarge(vivid * 0.8)), np.zeros((2 * size, 2 * size), np.uint8)
    points = rng.permutation(_jittered_grid(rng, size, 5.5 * unit, 0.5))
    colors = np.clip((_colors_at(vivid, points) + rng.normal(0, 0.07, (len(points), 3))) * 255, 0, 255).astype(int)
    at = angle[_rows_of(points, size), _columns_of(points, size)]
    for stroke, color in zip(_curved_strokes(rng, points, at, 15 * unit), colors.tolist(), strict=True):
        width = int(rng.integers(5, 9) * unit) + 2
        cv2.polylines(canvas, [stroke], False, color, width, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.polylines(height, [stroke], False, int(rng.integers(50, 150)), width, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.polylines(
            height, [stroke], False, int(rng.integers(150, 256)), max(1, width // 2), cv2.LINE_AA, SUBPIXEL_BITS
        )
    relief = cv2.GaussianBlur(_shrink(height), (0, 0), 0.8 * unit)
    light = relief - np.roll(np.roll(relief, 1, 0), 1, 1)
    return _shrink(canvas) * (1 + 1.3 * light)[..., None]


PAINTERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "photo": _photo,
    "oil": _oil,
    "pointillism": _pointillism,
    "hatching": _hatching,
    "watercolor": _watercolor,
    "poster": _poster,
    "mosaic": _mosaic,
    "impasto": _impasto,
}


def _kuwahara(image: np.ndarray, radius: int) -> np.ndarray:
    """At each pixel the mean of the calmest of the four squares (side radius + 1) that have it in a corner."""
    window = (radius + 1, radius + 1)
    mean = cv2.blur(image, window, anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
    variance = (cv2.blur(image**2, window, anchor=(0, 0), borderType=cv2.BORDER_REFLECT) - mean**2).sum(2)
    best, result = np.full(variance.shape, np.inf, np.float32), mean
    for down in (0, radius):
        for right in (0, radius):
            shift = np.array([[1, 0, right], [0, 1, down]], np.float32)
            size = variance.shape[::-1]
            here = cv2.warpAffine(variance, shift, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
            color = cv2.warpAffine(mean, shift, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
            result = np.where((here < best)[..., None], color, result)
            best = np.minimum(here, best)
    return result


def _flow(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Angle (H, W) in radians along which the picture changes least (structure tensor); wanders where all is flat."""
    gray = _luminance(image)
    gx, gy = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    wander = 0.9 * fractal_noise(rng, *gray.shape, octaves=2, base=3)
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), sigma) for product in (gx * gx, gy * gy, gx * gy))
    weak = 2e-3
    return 0.5 * np.arctan2(2 * xy + weak * np.sin(2 * wander), xx - yy - weak * np.cos(2 * wander)) + np.pi / 2


def _outlines(image: np.ndarray, width: float) -> np.ndarray:
    """Soft lines (H, W) in [0, 1] along the strong edges of `image`."""
    calm = cv2.bilateralFilter(_to_bytes(image), 7, 60, 4 * width)
    edges = np.maximum.reduce([cv2.Canny(np.ascontiguousarray(calm[..., c]), 45, 110) for c in range(3)])
    return np.clip(cv2.GaussianBlur(edges.astype(np.float32) / 255, (0, 0), 0.65 * width) * 1.7, 0, 1)


def _jittered_grid(
    rng: np.random.Generator, size: int, spacing: float, jitter: float, *, stretch: float = 1.0, turn: float = 0.0
) -> np.ndarray:
    """Points (N, 2), x then y, about one per `spacing` by `stretch * spacing` cell of a grid turned by `turn`."""
    reach = size * 0.75
    along, across = np.arange(-reach, reach, spacing * stretch), np.arange(-reach, reach, spacing)
    u, v = (axis.ravel() for axis in np.meshgrid(along, across))
    u = (
        u
        + (np.arange(len(u)) // len(along) % 2) * spacing * stretch / 2
        + rng.normal(0, jitter * spacing * stretch, u.shape)
    )
    v = v + rng.normal(0, jitter * spacing, v.shape)
    points = np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], 1) + size / 2
    return points[((points > -spacing) & (points < size + spacing)).all(1)]


def _curved_strokes(
    rng: np.random.Generator, points: np.ndarray, angle: float | np.ndarray, length: float
) -> list[np.ndarray]:
    """Slightly bent three-point lines about `points` (N, 2), in the fixed-point pixels of the doubled canvas."""
    count = len(points)
    turn = angle + rng.normal(0, 0.1, count)
    half = 0.5 * length * rng.uniform(0.65, 1.35, count)
    bend = rng.normal(0, 0.06, count) * length
    along, across = np.stack([np.cos(turn), np.sin(turn)], 1), np.stack([-np.sin(turn), np.cos(turn)], 1)
    ends = half[:, None] * along
    corners = np.stack([points - ends, points + bend[:, None] * across, points + ends], 1)
    return list(np.round(corners * 2 * 2**SUBPIXEL_BITS).astype(np.int32))


def _draw_dots(canvas: np.ndarray, points: np.ndarray, radii: np.ndarray, colors: np.ndarray) -> None:
    """Draw disks in random-looking (grid) order on the doubled canvas (2H, 2W, 3) uint8, in place."""
    scale = 2 * 2**SUBPIXEL_BITS
    centers, sizes = np.round(points * scale).astype(int).tolist(), np.round(radii * scale).astype(int).tolist()
    inks = np.clip(colors * 255, 0, 255).astype(int).tolist()
    for center, size, color in zip(centers, sizes, inks, strict=True):
        cv2.circle(canvas, center, size, color, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _colors_at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    return image[_rows_of(points, len(image)), _columns_of(points, len(image))]


def _rows_of(points: np.ndarray, size: int) -> np.ndarray:
    return np.clip(points[:, 1], 0, size - 1).astype(int)


def _columns_of(points: np.ndarray, size: int) -> np.ndarray:
    return np.clip(points[:, 0], 0, size - 1).astype(int)


def _luminance(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)


def _saturate(image: np.ndarray, gain: float) -> np.ndarray:
    gray = _luminance(image)[..., None]
    return np.clip(gray + (image - gray) * gain, 0, 1)


def _stretch(field: np.ndarray) -> np.ndarray:
    """Half equalize a field, so that dark pictures get light tones too."""
    low, high = np.percentile(field[::4, ::4], [2, 98])
    return np.clip(0.5 * field + 0.5 * (field - low) / max(high - low, 0.05), 0, 1)


def _enlarge(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)


def _shrink(canvas: np.ndarray) -> np.ndarray:
    return cv2.resize(canvas, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def _odd(width: float) -> int:
    return max(3, int(width) // 2 * 2 + 1)
