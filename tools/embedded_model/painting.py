"""Styles: a picture comes in; the same picture as a painter, a printer or a mosaicist would make it goes out."""

from collections.abc import Callable

import cv2
import numpy as np
from noise import fractal_noise, smear
from scipy.spatial import KDTree

TRAINING_STYLES = (
    "photo",
    "oil",
    "pointillism",
    "hatching",
    "watercolor",
    "poster",
    "woodcut",
    "engraving",
    "pastel",
    "ink",
    "knife",
    "halftone",
    "glass",
    "charcoal",
    "embroidery",
    "pencil",
)
HELD_OUT_STYLES = ("mosaic", "impasto")  # never shown to the model in training: styles for honest tests
STYLES = (*TRAINING_STYLES, *HELD_OUT_STYLES)
PROMPTS = {
    "photo": "a photo of",
    "oil": "an oil painting of",
    "pointillism": "a pointillism painting of",
    "hatching": "a hatching drawing of",
    "watercolor": "a watercolor painting of",
    "poster": "a poster of",
    "woodcut": "a woodcut print of",
    "engraving": "an engraving of",
    "pastel": "a pastel drawing of",
    "ink": "an ink painting of",
    "knife": "a knife painting of",
    "halftone": "a halftone print of",
    "glass": "a stained glass of",
    "charcoal": "a charcoal drawing of",
    "embroidery": "an embroidery of",
    "pencil": "a pencil drawing of",
}
SUBPIXEL_BITS = 4
Color = np.ndarray  # (3,) RGB in [0, 1]


def paint(image: np.ndarray, style: str, seed: int) -> np.ndarray:
    """Render `image` (H, W, 3), float32 in [0, 1], in one of `STYLES`; the result has the same shape and range.

    Each seed is another artist: scale and direction of the marks, inks, paper, strength and saturation differ.
    """
    if style not in PAINTERS:
        raise ValueError(f"no style {style!r}; there are: {', '.join(STYLES)}")
    cv2.setNumThreads(1)
    painted = PAINTERS[style](image.astype(np.float32), np.random.default_rng([seed, list(PAINTERS).index(style)]))
    return np.clip(painted, 0, 1).astype(np.float32)


def _photo(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


def _oil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat strokes with crisp borders (a Kuwahara filter), rich color, and the relief of the bristles."""
    unit = _choose_unit(image, rng)
    flat = _kuwahara(_saturate(image, rng.uniform(1.0, 1.6)), max(2, round(4 * unit)))
    bristles = smear(rng.standard_normal(image.shape[:2], np.float32), _flow(image, 4 * unit, rng), round(10 * unit))
    relief = bristles - np.roll(bristles, 1, 0)
    strength = rng.uniform(0.5, 1.8)
    grain = strength * (0.04 * bristles / bristles.std() + 0.022 * relief / relief.std())
    return flat * _choose_tint(rng, 0.05) * (1 + grain)[..., None]


def _pointillism(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round dots of pure color on a primed canvas, their hues scattered about the color they stand for."""
    unit = _choose_unit(image, rng)
    vivid = _saturate(cv2.GaussianBlur(image, (0, 0), 0.8 * unit), rng.uniform(1.2, 1.8))
    primer = rng.uniform(0.05, 0.3) * _choose_tint(rng, 0.1)
    canvas = _to_bytes(_enlarge(rng.uniform(0.5, 0.8) * cv2.GaussianBlur(vivid, (0, 0), 6 * unit) + primer))
    loose, dense = rng.uniform(0.7, 1.8), rng.uniform(0.75, 1.1)
    for spacing, radius, scatter in ((8.5, 6.2, 0.045), (7.0, 4.2, 0.055)):
        points = _jittered_grid(rng, len(image), spacing * unit, 0.45)
        colors = _colors_at(vivid, points)
        colors = colors + rng.normal(0, loose * scatter, colors.shape) + rng.normal(0, 0.03, (len(colors), 1))
        radii = dense * radius * unit * rng.uniform(0.75, 1.15, len(points))
        _draw_dots(canvas, points, radii, colors)
    return _shrink(canvas)


def _hatching(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pen and ink on toned paper: layers of short crossing strokes for the shadows, lines along the outlines."""
    size, unit = len(image), _choose_unit(image, rng)
    tone = _stretch(cv2.GaussianBlur(_luminance(image), (0, 0), 1.5 * unit))
    paper, ink = _choose_paper(rng), _choose_ink(rng)
    sheet = _to_bytes(_enlarge(np.full((size, size), 1.0, np.float32)))
    slant, width, layers = rng.uniform(-0.8, 0.8), rng.uniform(2, 3.6), int(rng.integers(2, 5))
    for level, angle, gray in ((0.74, 0.75, 130), (0.5, -0.7, 112), (0.33, 0.2, 96), (0.18, 1.4, 80))[:layers]:
        points = _jittered_grid(rng, size, 6.8 * unit, 0.2, stretch=2.1, turn=angle + slant)
        dark = tone[_rows_of(points, size), _columns_of(points, size)] < level + rng.normal(0, 0.035, len(points))
        strokes = _curved_strokes(rng, points[dark], angle + slant, 11 * unit)
        cv2.polylines(sheet, strokes, False, gray, max(1, round(width * unit)), cv2.LINE_AA, SUBPIXEL_BITS)
    wash = 0.5 + 0.5 * cv2.GaussianBlur(tone, (0, 0), 2 * unit)
    cover = _shrink(sheet) * wash * (1 - rng.uniform(0.4, 0.95) * _outlines(image, unit))
    grain = 1 + 0.012 * fractal_noise(rng, size, size, octaves=4, persistence=0.9, base=16)
    return _lay_ink(paper, ink, cover * grain)


def _watercolor(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pale washes that wander off their outlines, pool dark along their borders and granulate in the paper."""
    size, unit = len(image), _choose_unit(image, rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    drift = [rng.uniform(1, 3) * unit * fractal_noise(rng, size, size, octaves=3, base=8) for _ in range(2)]
    moved = cv2.remap(image, x + drift[0], y + drift[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    washes = _kuwahara(cv2.GaussianBlur(moved, (0, 0), unit), max(2, round(5 * unit)))
    light = rng.uniform(0.12, 0.36)
    pale = light + (1 - light) * np.clip(_saturate(washes, rng.uniform(1.1, 1.7)), 0, 1) ** 0.7
    steps = cv2.GaussianBlur(washes, (0, 0), 0.8 * unit) - cv2.GaussianBlur(washes, (0, 0), 3.5 * unit)
    pooled = np.clip(np.abs(steps).max(2) * rng.uniform(2, 5), 0, 0.5)
    blooms = rng.uniform(0.03, 0.11) * fractal_noise(rng, size, size, octaves=4, base=3)
    grain = rng.uniform(0.01, 0.04) * fractal_noise(rng, size, size, octaves=3, persistence=0.9, base=48)
    density = (1 + pooled + blooms + grain)[..., None]
    return np.clip(pale, 0.02, 0.985) ** density * _choose_tint(rng, 0.03)


def _poster(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A screen print: few flat inks on cream paper, hard borders, at times dark contours."""
    unit = _choose_unit(image, rng)
    smooth = cv2.bilateralFilter(_to_bytes(image), 7, 50, 6 * unit)
    smooth = cv2.medianBlur(cv2.medianBlur(smooth, _odd(6 * unit)), _odd(4 * unit))
    lab = cv2.cvtColor(_enlarge(smooth.astype(np.float32) / 255), cv2.COLOR_RGB2LAB)
    count, step = int(rng.integers(3, 7)), rng.uniform(16, 36)
    levels = np.clip(np.floor(_stretch(lab[..., 0] / 100) * (count - 0.001)), 0, count - 1)
    tones = np.linspace(rng.uniform(5, 25), rng.uniform(85, 97), count).astype(np.float32)[levels.astype(int)]
    chroma = np.round(lab[..., 1:] * rng.uniform(1.2, 2.3) / step) * step
    flat = cv2.cvtColor(np.dstack([tones, chroma]).astype(np.float32), cv2.COLOR_LAB2RGB)
    flat = cv2.medianBlur(_to_bytes(np.clip(flat, 0, 1)), min(_odd(5 * unit), 9))
    line = (rng.choice([0.0, 0.5, 0.95]) * _outlines(smooth.astype(np.float32) / 255, 1.5 * unit))[..., None]
    return _shrink(flat) * _choose_paper(rng) * (1 - line) + _choose_ink(rng) * line


def _woodcut(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gouged lines that follow the forms, their number set by the tone; in one ink, or over blocks of flat color."""
    size, unit = len(image), _choose_unit(image, rng)
    tone = _stretch(cv2.GaussianBlur(_luminance(image), (0, 0), 1.2 * unit))
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), 0.8 + 0.5 * unit)
    cuts = smear(noise / noise.std(), _flow(image, 5 * unit, rng), round(14 * unit))
    cuts = _enlarge(cuts / (cuts.std() + 1e-6))
    lit = np.clip((_enlarge(tone) - rng.uniform(0.42, 0.58)) * rng.uniform(5, 8), -2.6, 2.6)
    key = _shrink(_to_bytes(np.clip((cuts + lit) * 2.2 + 0.5, 0, 1)))
    key = key * (1 - 0.9 * _outlines(image, 1.3 * unit))
    paper = _choose_paper(rng)
    if rng.random() < 0.45:
        return _lay_ink(paper, _choose_ink(rng), key)
    blocks = _to_palette(_saturate(image, rng.uniform(1.2, 1.9)), int(rng.integers(3, 7)), 5 * unit, rng)
    return _lay_ink(paper * (0.25 + 0.75 * blocks), _choose_ink(rng), key)


def _engraving(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Parallel lines that swell in the shadows and bend with the forms, crossed by others where it is dark."""
    size, unit = len(image), _choose_unit(image, rng)
    tone = _enlarge(_stretch(cv2.GaussianBlur(_luminance(image), (0, 0), 0.8 * unit)))
    form = cv2.GaussianBlur(tone, (0, 0), 8 * unit) * rng.uniform(-4, 4)
    y, x = np.mgrid[0 : 2 * size, 0 : 2 * size].astype(np.float32)
    period, angle = max(4.6 * unit, 3.2) * 2, rng.uniform(0, np.pi)
    cover, gain = np.ones_like(tone), rng.uniform(0.85, 1.15)
    for layer, (light, cross) in enumerate(
        ((1.0, 0.0), (0.55, rng.uniform(0.7, 1.6)), (0.28, rng.uniform(-0.8, -0.4)))
    ):
        turn = angle + cross
        phase = (x * np.cos(turn) + y * np.sin(turn)) * (2 * np.pi / period) + form * (1 - 0.3 * layer)
        wide = np.clip(1.02 - tone * gain / light, 0, 0.85)
        cover *= 1 - np.clip((np.cos(phase) - np.cos(np.pi * wide)) * period * 0.3 + 0.5, 0, 1) * (wide > 0.05)
    return _lay_ink(_choose_paper(rng), _choose_ink(rng), _shrink(_to_bytes(cover)))


def _pastel(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soft broad strokes of chalk that catch the grain of a tinted paper only where it stands high."""
    size, unit = len(image), _choose_unit(image, rng)
    vivid, turn = _saturate(image, rng.uniform(1.0, 1.7)) ** rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    canvas, cover = (
        _to_bytes(_enlarge(cv2.GaussianBlur(vivid, (0, 0), 3 * unit))),
        np.zeros((2 * size, 2 * size), np.uint8),
    )
    points = rng.permutation(_jittered_grid(rng, size, 4.2 * unit, 0.4))
    colors = np.clip((_colors_at(vivid, points) + rng.normal(0, 0.03, (len(points), 3))) * 255, 0, 255).astype(int)
    width = max(3, round(6 * unit))
    for stroke, color in zip(_curved_strokes(rng, points, turn, 9 * unit), colors.tolist(), strict=True):
        cv2.polylines(canvas, [stroke], False, color, width, cv2.LINE_AA, SUBPIXEL_BITS)
        cv2.polylines(cover, [stroke], False, int(rng.integers(60, 256)), width, cv2.LINE_AA, SUBPIXEL_BITS)
    grain = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), rng.uniform(0.6, 1.1))
    pressure = _shrink(cover) * rng.uniform(1.7, 3.2) + 0.5 * grain / grain.std()
    chalk = np.clip(pressure, 0.1, 1)[..., None]
    return _choose_tinted_paper(rng) * (1 - chalk) + _shrink(canvas) * chalk


def _ink(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brush and ink: a few wet washes of one ink with soft dark rims, bare paper in the lights, brushed contours."""
    size, unit = len(image), _choose_unit(image, rng)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    drift = [2.5 * unit * fractal_noise(rng, size, size, octaves=4, base=6) for _ in range(2)]
    moved = cv2.remap(image, x + drift[0], y + drift[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    tone = _stretch(_luminance(_kuwahara(cv2.GaussianBlur(moved, (0, 0), unit), max(2, round(5 * unit)))))
    tone = tone + 0.04 * fractal_noise(rng, size, size, octaves=4, base=4)
    count, wash = int(rng.integers(3, 6)), np.zeros_like(tone)
    for level in np.linspace(0.2, rng.uniform(0.62, 0.85), count):
        sheet = np.clip((level - tone) * rng.uniform(12, 40) + 0.5, 0, 1)
        soft = cv2.GaussianBlur(sheet, (0, 0), 2.5 * unit)
        wash += sheet * (0.75 / count) * (1 + 0.8 * (1 - soft))
    dry = smear(rng.standard_normal((size, size), np.float32), _flow(image, 4 * unit, rng), round(12 * unit))
    stroke = cv2.GaussianBlur(_outlines(moved, 2 * unit), (0, 0), 0.6 * unit)
    line = np.clip(stroke * 1.4 - 0.25 * np.abs(dry / dry.std()), 0, 1) * rng.uniform(0.2, 1)
    grain = 0.03 * fractal_noise(rng, size, size, octaves=3, persistence=0.9, base=40)
    return _lay_ink(_choose_paper(rng), _choose_ink(rng), np.clip(1 - np.maximum(wash, line) + grain, 0, 1))


def _knife(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A palette knife: flat slabs of paint with hard edges, broad ones below, small ones where there is detail."""
    size, unit = len(image), _choose_unit(image, rng)
    vivid, main = _saturate(image, rng.uniform(1.1, 1.7)), rng.uniform(0, np.pi)
    canvas, turned = _to_bytes(_enlarge(cv2.GaussianBlur(vivid, (0, 0), 4 * unit))), rng.uniform(0.1, 0.9)
    detail = cv2.GaussianBlur(cv2.absdiff(vivid, cv2.GaussianBlur(vivid, (0, 0), 4 * unit)).max(2), (0, 0), 2 * unit)
    for spacing, least in ((15, -1.0), (9, 0.02), (5.5, 0.05)):
        points = rng.permutation(_jittered_grid(rng, size, spacing * unit, 0.4))
        points = points[detail[_rows_of(points, size), _columns_of(points, size)] > least]
        blurred = cv2.GaussianBlur(vivid, (0, 0), 0.15 * spacing * unit)
        colors = _colors_at(blurred, points) * rng.uniform(0.9, 1.1, (len(points), 1)) + rng.normal(
            0, 0.02, (len(points), 3)
        )
        turn = main + rng.normal(0, turned, len(points))
        along = (
            np.stack([np.cos(turn), np.sin(turn)], 1) * (spacing * unit * rng.uniform(0.8, 1.5, len(points)))[:, None]
        )
        across = (
            np.stack([-np.sin(turn), np.cos(turn)], 1)
            * (spacing * unit * rng.uniform(0.45, 0.75, len(points)))[:, None]
        )
        bent = 1 + rng.normal(0, 0.15, (len(points), 4, 1))
        corners = points[:, None] + bent * np.stack(
            [-along - across, along - across, along + across, across - along], 1
        )
        slabs = np.round(corners * 2 * 2**SUBPIXEL_BITS).astype(np.int32)
        for slab, color in zip(slabs, np.clip(colors * 255, 0, 255), strict=True):
            cv2.fillConvexPoly(canvas, slab, color.tolist(), cv2.LINE_AA, SUBPIXEL_BITS)
            rim = np.clip(color * 1.12 + 8, 0, 255).tolist()
            cv2.line(canvas, slab[0].tolist(), slab[1].tolist(), rim, 2, cv2.LINE_AA, SUBPIXEL_BITS)
    return _shrink(canvas)


def _halftone(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dots of one to three inks on paper, each ink on a grid of its own angle and a little out of register."""
    size, unit = len(image), _choose_unit(image, rng)
    tone = _stretch(cv2.GaussianBlur(_luminance(image), (0, 0), 0.8 * unit))
    hues = cv2.GaussianBlur(_saturate(image, rng.uniform(1.1, 1.7)), (0, 0), unit)
    inks = INKS_OF_PRINTERS[int(rng.integers(len(INKS_OF_PRINTERS)))]
    period, angle = 2 * max(4.8 * unit, 3.6), rng.uniform(0, np.pi)
    y, x = np.mgrid[0 : 2 * size, 0 : 2 * size].astype(np.float32)
    printed = np.ones((size, size, 3), np.float32) * _choose_paper(rng)
    for i, ink in enumerate(inks):
        color = np.array(ink, np.float32)
        absorbed = (1 - color) / (1 - color).sum()
        density = (
            1 - tone if len(inks) == 1 else np.clip(0.25 * (1 - tone) + 0.85 * ((1 - hues) * absorbed).sum(2), 0, 1)
        )
        turn, shift = angle + 0.52 * i, rng.uniform(-3, 3, 2) * unit
        u = ((x + shift[0]) * np.cos(turn) + (y + shift[1]) * np.sin(turn)) * (2 * np.pi / period)
        v = ((y + shift[1]) * np.cos(turn) - (x + shift[0]) * np.sin(turn)) * (2 * np.pi / period)
        grid = (np.cos(u) + np.cos(v)) / 2
        edge = _enlarge(1 - 2 * np.clip(density * 1.05 - 0.02, 0, 1))
        dots = _shrink(_to_bytes(np.clip((grid - edge) * 0.22 * period + 0.5, 0, 1)))[..., None]
        printed = printed * (1 - dots * (1 - color))
    return printed


def _glass(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stained window: large panes that follow the picture, glowing, streaked, in dark leading."""
    size, unit = len(image), len(image) / 256
    side, vivid = rng.uniform(26, 50) * unit, _saturate(image, rng.uniform(1.4, 2.2))
    points = _jittered_grid(rng, size, side, 0.25)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    lab = cv2.cvtColor(cv2.GaussianBlur(vivid, (0, 0), 2 * unit), cv2.COLOR_RGB2LAB) / 100
    places = np.dstack([x / side, y / side, lab * rng.uniform(1.5, 4)]).reshape(-1, 5)
    seeds = np.hstack(
        [points / side, places.reshape(size, size, 5)[_rows_of(points, size), _columns_of(points, size), 2:]]
    )
    distance = (seeds**2).sum(1)[None].astype(np.float32) - 2 * places @ seeds.T.astype(np.float32)
    pane = cv2.medianBlur((distance.argmin(1).reshape(size, size) % 256).astype(np.uint8), _odd(7 * unit))
    counts = np.maximum(np.bincount(pane.ravel(), minlength=256), 1)
    colors = np.stack([np.bincount(pane.ravel(), vivid[..., c].ravel(), 256) / counts for c in range(3)], 1)
    colors = np.clip(colors * rng.uniform(0.85, 1.2, (256, 1)) + rng.uniform(0, 0.08), 0, 1)
    drawn = rng.uniform(0.15, 0.6)  # what is painted on the panes
    lit = (1 - drawn) * colors[pane] + drawn * cv2.GaussianBlur(vivid, (0, 0), unit)
    streaks = smear(
        rng.standard_normal((size, size), np.float32), np.full((size, size), rng.uniform(0, 3.1), np.float32), 8
    )
    lit = lit * (1 + 0.07 * streaks / streaks.std() + 0.07 * fractal_noise(rng, size, size, octaves=4))[..., None]
    large = cv2.medianBlur(cv2.resize(pane, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST), 5)
    border = cv2.morphologyEx(large, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    wide = _odd(rng.uniform(4, 9) * unit)
    lead = cv2.dilate(border.astype(np.uint8) * 255, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (wide, wide)))
    cover = cv2.GaussianBlur(_shrink(lead), (0, 0), 0.5)[..., None]
    return lit * (1 - cover) + rng.uniform(0.03, 0.16) * cover


def _charcoal(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Broad dusty marks of one slant, rubbed in the half-tones, with heavy broken contours, on rough paper."""
    size, unit = len(image), _choose_unit(image, rng)
    tone = _stretch(cv2.GaussianBlur(_luminance(image), (0, 0), 1.5 * unit))
    tooth = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), rng.uniform(0.6, 1.2))
    slant = np.full((size, size), rng.uniform(0, np.pi), np.float32) + 0.2 * fractal_noise(rng, size, size, octaves=2)
    marks = smear(rng.standard_normal((size, size), np.float32), slant, round(12 * unit))
    marks = cv2.GaussianBlur(marks, (0, 0), 0.7 * unit)
    dark = 0.4 + (rng.uniform(0.45, 0.65) - tone) * rng.uniform(3, 4.5)
    dust = np.clip(dark + 0.3 * tooth / tooth.std() + rng.uniform(0.1, 0.35) * marks / marks.std(), 0, 1)
    rubbed = cv2.GaussianBlur(np.clip(1 - tone * 1.15, 0, 1), (0, 0), 4 * unit) * rng.uniform(0.2, 0.6)
    contour = np.clip(_outlines(image, 2.2 * unit) * 1.2 + 0.2 * tooth / tooth.std() - 0.1, 0, 1) * rng.uniform(0.3, 1)
    cover = 1 - np.clip(np.maximum.reduce([dust * 0.9, rubbed, contour]), 0, 1)
    paper = _choose_paper(rng) if rng.random() < 0.6 else _choose_tinted_paper(rng)
    return _lay_ink(paper, np.full(3, rng.uniform(0.06, 0.2), np.float32), cover)


def _embroidery(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of short thin threads, few colors, their direction the same within an area; cloth shows in between."""
    size, unit = len(image), _choose_unit(image, rng)
    colored = _to_palette(_saturate(image, rng.uniform(1.1, 1.7)), int(rng.integers(8, 20)), 3 * unit, rng)
    y, x = np.mgrid[0 : 2 * size, 0 : 2 * size].astype(np.float32)
    weave = 1 + 0.12 * np.sin(x * np.pi / 2.2) * np.sin(y * np.pi / 2.2)
    canvas = _to_bytes(_choose_tinted_paper(rng) * weave[..., None])
    steps = int(rng.integers(2, 6))
    angle = np.round(_flow(image, 10 * unit, rng) * steps / np.pi) * np.pi / steps
    unit = max(unit, 0.75 * size / 256)
    points = rng.permutation(_jittered_grid(rng, size, 2.7 * unit, 0.2, stretch=1.8))
    colors = _colors_at(colored, points) * rng.uniform(0.82, 1.15, (len(points), 1))
    at = angle[_rows_of(points, size), _columns_of(points, size)]
    width = max(2, round(3.4 * unit))
    for stroke, color in zip(_curved_strokes(rng, points, at, 9 * unit), np.clip(colors * 255, 0, 255), strict=True):
        cv2.polylines(canvas, [stroke], False, (color * 0.55).tolist(), width + 2, cv2.LINE_8, SUBPIXEL_BITS)
        cv2.polylines(canvas, [stroke], False, color.tolist(), width, cv2.LINE_AA, SUBPIXEL_BITS)
    return _shrink(canvas)


def _pencil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fine even strokes of graphite or of colored pencils that leave the paper's tooth, with thin outlines."""
    size, unit = len(image), _choose_unit(image, rng)
    slant = np.full((size, size), rng.uniform(0, np.pi), np.float32)
    marks = [smear(rng.standard_normal((size, size), np.float32), slant + k, round(11 * unit)) for k in (0, 0.9)]
    strokes = marks[0] / marks[0].std() + 0.6 * marks[1] / marks[1].std()
    tooth = rng.standard_normal((size, size), np.float32)
    line = rng.uniform(0.4, 0.9) * _outlines(image, 0.9 * unit)
    paper, tone = _choose_paper(rng), _stretch(cv2.GaussianBlur(_luminance(image), (0, 0), unit))
    press = np.clip((1.05 - tone) * rng.uniform(0.8, 1.3) + 0.16 * strokes + 0.07 * tooth, 0, 1)
    if rng.random() < 0.5:
        return _lay_ink(paper, np.full(3, rng.uniform(0.15, 0.3), np.float32), 1 - np.maximum(press * 0.85, line))
    hues = _saturate(cv2.GaussianBlur(image, (0, 0), unit), rng.uniform(1.3, 2))
    pigment = hues / np.maximum(hues.max(2, keepdims=True), 0.2)
    saturation = 1 - pigment.min(2)
    layer = np.clip(np.maximum(press, saturation * (0.8 + 0.2 * strokes)), 0, 1)[..., None]
    colored = paper * (1 - layer) + pigment * (1 - 0.75 * press[..., None]) * layer
    return colored * (1 - line[..., None] * 0.8)


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
    "woodcut": _woodcut,
    "engraving": _engraving,
    "pastel": _pastel,
    "ink": _ink,
    "knife": _knife,
    "halftone": _halftone,
    "glass": _glass,
    "charcoal": _charcoal,
    "embroidery": _embroidery,
    "pencil": _pencil,
}
INKS_OF_PRINTERS: tuple[tuple[tuple[float, float, float], ...], ...] = (
    ((0.1, 0.1, 0.12),),
    ((0.1, 0.2, 0.55),),
    ((0.0, 0.65, 0.9), (0.9, 0.1, 0.5), (1.0, 0.9, 0.1)),
    ((0.0, 0.45, 0.75), (1.0, 0.4, 0.6), (1.0, 0.85, 0.1)),
    ((0.1, 0.3, 0.45), (1.0, 0.35, 0.25)),
    ((0.05, 0.5, 0.35), (1.0, 0.5, 0.2), (0.25, 0.2, 0.5)),
    ((0.2, 0.15, 0.4), (1.0, 0.75, 0.2)),
)


def _choose_unit(image: np.ndarray, rng: np.random.Generator) -> float:
    """Pixels for one unit of a mark's size: this artist's marks are 0.6 to 1.8 times the usual ones."""
    return len(image) / 256 * float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))


def _choose_tint(rng: np.random.Generator, spread: float) -> Color:
    return (1 + rng.uniform(-spread, spread, 3)).astype(np.float32)


def _choose_paper(rng: np.random.Generator) -> Color:
    """White, cream, or lightly tinted."""
    return (rng.uniform(0.88, 1.0) * (1 - rng.uniform(0, 0.22) * np.array([0.05, 0.35, 1.0]) * rng.random())).astype(
        np.float32
    )


def _choose_tinted_paper(rng: np.random.Generator) -> Color:
    """Gray, tan, blue or dark."""
    return np.clip(rng.choice([0.25, 0.5, 0.7, 0.85]) + rng.uniform(-0.13, 0.13, 3), 0.05, 1).astype(np.float32)


def _choose_ink(rng: np.random.Generator) -> Color:
    """Black, sepia, blue, or any dark color."""
    base = np.array([(0.08, 0.07, 0.09), (0.25, 0.13, 0.06), (0.06, 0.1, 0.28), (0.4, 0.08, 0.06), (0.05, 0.22, 0.15)])
    chosen = base[int(rng.choice(5, p=[0.45, 0.2, 0.2, 0.08, 0.07]))]
    return np.clip(chosen * rng.uniform(0.6, 1.4) + rng.uniform(0, 0.06, 3), 0, 1).astype(np.float32)


def _lay_ink(paper: np.ndarray, ink: Color, light: np.ndarray) -> np.ndarray:
    """`light` (H, W): 1 where the `paper`, (3,) or (H, W, 3), is bare, 0 where the ink covers it."""
    return (ink + (paper - ink) * light[..., None]).astype(np.float32)


def _to_palette(image: np.ndarray, count: int, width: float, rng: np.random.Generator) -> np.ndarray:
    """The picture in `count` colors of its own, in calm areas at least about `width` pixels wide."""
    calm = cv2.medianBlur(_to_bytes(image), min(_odd(width), 11)).astype(np.float32) / 255
    some = np.ascontiguousarray(calm[::8, ::8].reshape(-1, 3))
    cv2.setRNGSeed(int(rng.integers(1 << 30)))
    until = (cv2.TERM_CRITERIA_MAX_ITER, 6, 0.0)
    _, _, colors = cv2.kmeans(some, count, None, until, 1, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    distance = (colors**2).sum(1)[None] - 2 * calm.reshape(-1, 3) @ colors.T
    return colors[distance.argmin(1)].reshape(image.shape)


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
