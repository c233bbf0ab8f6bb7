"""Dead leaves: overlapping textured shapes with statistics near those of photographs, for the autoencoder."""

from collections.abc import Callable

import cv2
import numpy as np
from noise import fractal_noise
from surface_marks import MARKS, comb


def render_leaves(seed: int, size: int = 256) -> np.ndarray:
    """One picture of random shapes, (H, W, 3) float32 in [0, 1]; the same seed and size give the same picture.

    In most pictures some surfaces are filled with the marks of `surface_marks`, which take up what lies under them.
    """
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 1])
    palette = _choose_palette(rng)
    textures = [_texture(rng, size) for _ in range(2)]
    image = _ground(rng, palette, textures[0])
    smallest, count = rng.uniform(3, 14) * size / 256, int(rng.integers(12, 56))
    radii = np.minimum(smallest * rng.power(1.6, count) ** -1.3, 0.5 * size)
    if rng.random() < 0.5:
        radii = np.sort(radii)[::-1]  # small things before large ones, as in a portrait or a still life
    blurred_at = int(rng.integers(count)) if rng.random() < 0.35 else -1
    marked_at = set(rng.integers(count, size=int(rng.choice(4, p=[0.22, 0.48, 0.2, 0.1]))).tolist())
    for i, radius in enumerate(radii):
        _add_leaf(rng, image, palette, textures, radius)
        if i == blurred_at:  # what lies behind is out of focus
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 5))
        if i in marked_at:
            image = _mark(rng, image, palette)
    for add in DETAILS:
        if rng.random() < 0.3:
            image = add(rng, image, palette)
    return _photograph(rng, image)


def _mark(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Fill the whole picture, one side of a line or a blob with marks of one kind."""
    size = len(image)
    marked = np.clip(MARKS[int(rng.integers(len(MARKS)))](rng, image, palette), 0, 1).astype(np.float32)
    kind = int(rng.integers(3))
    if kind == 0:
        return marked
    if kind == 1:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        turn = rng.uniform(0, 2 * np.pi)
        side = (x - rng.uniform(0.3, 0.7) * size) * np.cos(turn) + (y - rng.uniform(0.3, 0.7) * size) * np.sin(turn)
        alpha = np.clip(side + 0.5, 0, 1)
    else:
        alpha = _outline(rng, (size, size), rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.2, 0.6) * size)
    return (image + (marked - image) * alpha[..., None]).astype(np.float32)


def _choose_palette(rng: np.random.Generator) -> np.ndarray:
    """Colors (N, 3) that belong together: about one or two hues, from black to white."""
    count = int(rng.integers(4, 12))
    anchors = rng.random((2, 3))
    mix, value = rng.random((count, 1)), rng.beta(1.1, 0.8, (count, 1))
    colors = anchors[0] * mix + anchors[1] * (1 - mix) + rng.normal(0, rng.uniform(0.03, 0.3), (count, 3))
    gray = colors.mean(1, keepdims=True)
    colors = gray + (colors - gray) * rng.uniform(0.1, 1.2)
    return np.clip(colors / max(colors.max(), 0.3) * (0.04 + value) * 1.35, 0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A field (H, W) of mean about 0 and standard deviation 1: cloth, stone, fur, gravel or weave."""
    kind = int(rng.integers(5))
    if kind == 0:
        return fractal_noise(rng, size, size, octaves=8, persistence=rng.uniform(0.45, 0.95))
    if kind == 1:  # fur, hair, grass, wood: noise combed along a wandering direction
        return comb(rng, size) + 0.5 * fractal_noise(rng, size, size, octaves=4)
    if kind == 2:  # gravel, foliage: lit bumps
        bumps = fractal_noise(rng, size, size, octaves=3, persistence=0.6, base=int(rng.integers(12, 40)))
        lit = cv2.Sobel(np.abs(bumps), cv2.CV_32F, 1, 1, ksize=3) + 0.4 * cv2.Sobel(bumps, cv2.CV_32F, 0, 1, ksize=3)
        return lit / (lit.std() + 1e-6)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    turn, period = rng.uniform(0, np.pi), rng.uniform(3.5, 24)
    warp = rng.uniform(0, 1.5) * fractal_noise(rng, size, size, octaves=3)
    wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period + warp)
    if kind == 3:  # stripes and folds
        return np.sign(wave) * np.abs(wave) ** rng.uniform(0.3, 1.2) + 0.3 * fractal_noise(rng, size, size)
    across = np.sin((y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period + warp)
    return wave * across * 1.4 + 0.4 * fractal_noise(rng, size, size, octaves=8, persistence=0.8)


def _ground(rng: np.random.Generator, palette: np.ndarray, texture: np.ndarray) -> np.ndarray:
    size = len(texture)
    slow = np.clip(0.5 + 0.4 * fractal_noise(rng, size, size, octaves=int(rng.integers(1, 6)), base=1), 0, 1)[..., None]
    ground = palette[0] * slow + palette[1] * (1 - slow)
    return (ground * (1 + rng.uniform(0, 0.2) * texture[..., None])).clip(0, 1).astype(np.float32)


def _add_leaf(
    rng: np.random.Generator, image: np.ndarray, palette: np.ndarray, textures: list[np.ndarray], radius: float
) -> None:
    """Draw one shape of about `radius` pixels onto `image`, in place."""
    size = len(image)
    center, reach = rng.uniform(0, size, 2), int(radius * 1.5) + 3
    left, top = (int(max(0, c - reach)) for c in center)
    right, bottom = (int(min(size, c + reach)) for c in center)
    if right - left < 2 or bottom - top < 2:
        return
    alpha = _outline(rng, (bottom - top, right - left), center - (left, top), radius)
    x, y, wide, high = cv2.boundingRect((alpha > 0).astype(np.uint8))
    if not wide:
        return
    pad = int(0.15 * radius) + 3
    rows, columns = slice(max(y - pad, 0), y + high + pad), slice(max(x - pad, 0), x + wide + pad)
    alpha = np.ascontiguousarray(alpha[rows, columns])
    top, left = top + rows.start, left + columns.start
    bottom, right = top + alpha.shape[0], left + alpha.shape[1]
    if rng.random() < 0.25:
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.5, max(0.6, radius * 0.08)))
    u = ((np.arange(left, right) - center[0]) / radius).astype(np.float32)[None]
    v = ((np.arange(top, bottom) - center[1]) / radius).astype(np.float32)[:, None]
    color = palette[rng.integers(len(palette))] + rng.normal(0, 0.04, 3).astype(np.float32)
    second = palette[rng.integers(len(palette))]
    turn = rng.uniform(0, 2 * np.pi)
    right_of, below = float(np.cos(turn)), float(np.sin(turn))
    ramp = u * right_of + v * below
    tone = 1 + rng.uniform(-0.45, 0.45) * ramp
    if rng.random() < 0.4:  # a rounded body
        tone = tone + rng.uniform(0.1, 0.45) * (0.5 - u**2 - v**2)
    surface = color
    if rng.random() < 0.3:
        blend = np.clip(0.5 + 0.7 * ramp, 0, 1)[..., None]
        surface = color * blend + second * (1 - blend)
    if rng.random() < 0.65:
        grain = textures[rng.integers(len(textures))][top:bottom, left:right]
        tone = tone + rng.gamma(1.5, 0.07) * grain
    surface = surface * tone[..., None]
    if rng.random() < 0.25:  # a specular highlight
        spread = rng.uniform(0.05, 0.3)
        glint = np.exp(-((u - 0.4 * right_of) ** 2 + (v - 0.4 * below) ** 2) / spread**2)
        surface = surface + rng.uniform(0.2, 0.9) * glint[..., None]
    patch, alpha = image[top:bottom, left:right], alpha[..., None]
    if rng.random() < 0.4:  # a cast shadow
        cast = cv2.GaussianBlur(np.roll(alpha[..., 0], (2, 2), (0, 1)), (0, 0), max(1.0, radius * 0.12))
        patch *= 1 - rng.uniform(0.2, 0.6) * cast[..., None]
    patch += (np.clip(surface, 0, 1) - patch) * alpha


def _outline(rng: np.random.Generator, shape: tuple[int, int], center: np.ndarray, radius: float) -> np.ndarray:
    """Coverage (H, W) float32 in [0, 1] of an ellipse, a polygon, a smooth blob or a bar."""
    mask = np.zeros(shape, np.uint8)
    kind = int(rng.integers(4))
    if kind == 0:
        axes = (radius, radius * rng.uniform(0.25, 1))
        turn = rng.uniform(0, np.pi)
        t = np.linspace(0, 2 * np.pi, 40)
        points = np.stack([axes[0] * np.cos(t), axes[1] * np.sin(t)], 1) @ _rotation(turn)
    elif kind == 1:
        t = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        points = radius * rng.uniform(0.5, 1.4, (len(t), 1)) * np.stack([np.cos(t), np.sin(t)], 1)
    elif kind == 2:
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        wobble = sum(rng.normal(0, 0.35 / k) * np.cos(k * t + rng.uniform(0, 6)) for k in range(1, 6))
        points = radius * np.clip(0.8 + wobble, 0.2, 1.5)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    else:
        half = radius * np.array([1.2, rng.uniform(0.06, 0.6)])
        points = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ _rotation(rng.uniform(0, np.pi))
    cv2.fillPoly(mask, [np.round((points + center) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _add_hairs(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Locks of long thin curves: hair, whiskers, grass, wires."""
    size = len(image)
    drawn, t = (image * 255).astype(np.uint8), np.linspace(0, 1, 9)[:, None]
    for _ in range(int(rng.integers(1, 6))):
        start, middle, end = rng.uniform(-0.1, 1.1, (3, 2)) * size
        color, spread = palette[rng.integers(len(palette))] * 255, rng.uniform(3, 25)
        for _ in range(int(rng.integers(2, 40))):
            a, b, c = (
                start + rng.normal(0, spread, 2),
                middle + rng.normal(0, spread, 2),
                end + rng.normal(0, spread, 2),
            )
            curve = a * (1 - t) ** 2 + 2 * b * t * (1 - t) + c * t**2
            ink = np.clip(color * rng.uniform(0.6, 1.4), 0, 255).tolist()
            points = np.round(curve * 16).astype(np.int32)
            cv2.polylines(drawn, [points], False, ink, int(rng.integers(1, 3)), cv2.LINE_AA, 4)
    return drawn.astype(np.float32) / 255


def _add_script(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Rows of letter-like strokes."""
    drawn = (image * 255).astype(np.uint8)
    ink = (palette[rng.integers(len(palette))] * 255).tolist()
    x, y = rng.uniform(0, 0.5, 2) * len(image)
    scale = rng.uniform(0.25, 1.1)
    for row in range(int(rng.integers(1, 6))):
        letters = "".join(chr(c) for c in rng.integers(33, 127, int(rng.integers(5, 24))))
        face, thickness = int(rng.integers(0, 8)), int(rng.integers(1, 3))
        cv2.putText(drawn, letters, (int(x), int(y + row * 34 * scale)), face, scale, ink, thickness, cv2.LINE_AA)
    return drawn.astype(np.float32) / 255


def _add_light(rng: np.random.Generator, image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Light and shade that fall across everything."""
    slow = fractal_noise(rng, *image.shape[:2], octaves=2, base=1)
    return image * np.clip(1 + rng.uniform(0.05, 0.35) * slow, 0.2, 1.8)[..., None]


DETAILS: tuple[Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray], ...] = (
    _add_hairs,
    _add_script,
    _add_light,
)


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a lens and a sensor do: blur or sharpening, contrast, exposure, grain."""
    if rng.random() < 0.55:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3))
    if rng.random() < 0.35:
        image = image + rng.uniform(0.2, 0.8) * (image - cv2.GaussianBlur(image, (0, 0), 1.2))
    image = np.clip(image * rng.uniform(0.8, 1.2), 0, 1)
    if rng.random() < 0.6:
        image = cv2.pow(image, rng.uniform(0.7, 1.4))
    if rng.random() < 0.5:
        image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(0, 0.02)
    return np.clip(image, 0, 1).astype(np.float32)
