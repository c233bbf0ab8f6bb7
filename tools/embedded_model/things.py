"""Things of rooms and streets: fruit, dishes and furniture, vehicles and buildings, each drawn one unit high."""

import numpy as np
from scene_objects import Color, Painter, Pen, cup, hsv

WHITE, BLACK = hsv(0, 0, 0.97), hsv(0, 0, 0.06)
GLASS = hsv(0.56, 0.3, 0.6)


def _round_body(pen: Pen, x: float, y: float, radius_x: float, radius_y: float, color: Color) -> None:
    """A rounded thing, lit from the upper left."""
    for k in range(6):
        t = k / 5
        tone = np.clip(color * (0.62 + 0.5 * t), 0, 1)
        pen.ellipse(
            x - 0.22 * t * radius_x, y + 0.22 * t * radius_y, radius_x * (1 - 0.72 * t), radius_y * (1 - 0.72 * t), tone
        )
    pen.ellipse(x - 0.36 * radius_x, y + 0.42 * radius_y, radius_x * 0.13, radius_y * 0.1, np.minimum(color + 0.4, 1))


def _box(pen: Pen, left: float, low: float, right: float, high: float, color: Color) -> None:
    pen.polygon([(left, low), (right, low), (right, high), (left, high)], color)


def apple(pen: Pen, rng: np.random.Generator) -> None:
    skin = hsv(rng.choice([0.0, 0.98, 0.02, 0.25, 0.14]), rng.uniform(0.65, 0.9), rng.uniform(0.65, 0.9))
    pen.ellipse(-0.18, 0.42, 0.3, 0.38, skin * 0.62)
    pen.ellipse(0.18, 0.42, 0.3, 0.38, skin * 0.62)
    _round_body(pen, 0, 0.43, 0.45, 0.42, skin)
    for _ in range(14):
        x = rng.uniform(-0.4, 0.4)
        pen.clip_line([(x * 0.4, 0.78), (x, 0.5), (x * 0.6, 0.12)], 0.02, np.clip(skin * rng.uniform(0.8, 1.25), 0, 1))
    pen.ellipse(0, 0.8, 0.14, 0.04, skin * 0.45)
    pen.line([(0, 0.79), (0.03, 0.9), (0.08, 1.0)], 0.04, hsv(0.07, 0.6, 0.25))
    if rng.random() < 0.5:
        pen.ellipse(0.2, 0.93, 0.16, 0.06, hsv(0.3, 0.7, 0.5), 0.4)


def orange(pen: Pen, rng: np.random.Generator) -> None:
    peel = hsv(rng.uniform(0.065, 0.09), 0.9, rng.uniform(0.85, 1.0))
    if rng.random() < 0.3:  # a half, cut
        pen.disk(0, 0.5, 0.5, peel)
        pen.disk(0, 0.5, 0.45, hsv(0.11, 0.2, 1))
        for a in np.linspace(0, 2 * np.pi, 9, endpoint=False):
            tip = [(0.05 * np.cos(a), 0.5 + 0.05 * np.sin(a))]
            arc = [(0.4 * np.cos(a + d), 0.5 + 0.4 * np.sin(a + d)) for d in (-0.27, 0.0, 0.27)]
            pen.polygon([*tip, *arc], hsv(0.085, 0.8, 1.0))
        return
    _round_body(pen, 0, 0.5, 0.5, 0.5, peel)
    for _ in range(50):
        pen.clip_ellipse(rng.uniform(-0.45, 0.45), rng.uniform(0.05, 0.95), 0.012, 0.012, peel * 0.78)
    pen.ellipse(0.06, 0.9, 0.05, 0.03, hsv(0.25, 0.6, 0.35))


def pear(pen: Pen, rng: np.random.Generator) -> None:
    skin = hsv(rng.uniform(0.15, 0.25), rng.uniform(0.5, 0.8), rng.uniform(0.65, 0.88))
    pen.polygon([(-0.34, 0.35), (-0.17, 0.72), (-0.1, 0.86), (0.1, 0.86), (0.17, 0.72), (0.34, 0.35)], skin * 0.8)
    _round_body(pen, 0, 0.31, 0.36, 0.31, skin)
    _round_body(pen, 0, 0.7, 0.18, 0.2, skin)
    pen.polygon([(-0.24, 0.4), (-0.13, 0.7), (0.05, 0.7), (0.15, 0.4)], skin * 1.02)
    for _ in range(30):
        pen.clip_ellipse(rng.uniform(-0.3, 0.3), rng.uniform(0.05, 0.85), 0.01, 0.01, skin * 0.65)
    pen.line([(0, 0.87), (0.05, 1.0)], 0.035, hsv(0.07, 0.6, 0.25))


def lemon(pen: Pen, rng: np.random.Generator) -> None:
    peel = hsv(rng.uniform(0.14, 0.16), 0.85, rng.uniform(0.88, 1.0))
    pen.polygon([(-0.78, 0.5), (-0.5, 0.62), (-0.5, 0.38)], peel * 0.75)
    pen.polygon([(0.8, 0.5), (0.5, 0.66), (0.5, 0.34)], peel * 0.85)
    _round_body(pen, 0, 0.5, 0.66, 0.5, peel)
    for _ in range(30):
        pen.clip_ellipse(rng.uniform(-0.6, 0.6), rng.uniform(0.1, 0.9), 0.014, 0.014, peel * 0.82)


def bottle(pen: Pen, rng: np.random.Generator) -> None:
    glass = hsv(rng.choice([0.3, 0.35, 0.08, 0.55, 0.0]), rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.7))
    wide, shoulder = rng.uniform(0.13, 0.19), rng.uniform(0.52, 0.68)
    pen.polygon(
        [
            (-wide, 0.02),
            (wide, 0.02),
            (wide, shoulder),
            (0.055, shoulder + 0.14),
            (0.055, 0.98),
            (-0.055, 0.98),
            (-0.055, shoulder + 0.14),
            (-wide, shoulder),
        ],
        glass,
    )
    pen.ellipse(0, 0.02, wide, 0.025, glass * 0.7)
    pen.polygon(
        [
            (wide * 0.5, 0.03),
            (wide, 0.03),
            (wide, shoulder),
            (0.055, shoulder + 0.14),
            (0.03, shoulder + 0.14),
            (wide * 0.5, shoulder),
        ],
        glass * 0.65,
    )
    if rng.random() < 0.7:
        _box(pen, -wide, 0.18, wide, 0.42, hsv(rng.choice([0.1, 0.0, 0.6]), rng.choice([0.1, 0.7]), 0.92))
        for y in (0.35, 0.3, 0.24):
            pen.clip_line([(-wide * 0.7, y), (wide * 0.6, y)], 0.014, BLACK + 0.2)
    pen.line([(-wide * 0.6, 0.08), (-wide * 0.6, shoulder)], 0.022, np.minimum(glass + 0.35, 1))
    _box(pen, -0.065, 0.93, 0.065, 1.0, hsv(rng.random(), 0.6, 0.5))


def bowl(pen: Pen, rng: np.random.Generator) -> None:
    glaze = hsv(rng.random(), rng.choice([0.05, 0.5, 0.8]), rng.uniform(0.5, 0.95))
    rim = [(0.95 * np.cos(a), 0.8 + 0.8 * np.sin(a)) for a in np.linspace(np.pi, 2 * np.pi, 24)]
    pen.polygon(rim, glaze * 0.9)
    pen.clip_line([(-0.93, 0.62), (0, 0.38), (0.93, 0.62)], 0.08, hsv(rng.random(), 0.6, 0.7))
    pen.polygon([(0.2, 0.02), (0.9, 0.7), (0.95, 0.8), (0.55, 0.78)], glaze * 0.7)
    pen.ellipse(0, 0.8, 0.95, 0.2, glaze)
    pen.ellipse(0, 0.79, 0.86, 0.155, glaze * 0.6)
    if rng.random() < 0.4:
        food = hsv(rng.uniform(0, 0.3), 0.7, 0.8)
        for _ in range(12):
            pen.ellipse(rng.uniform(-0.5, 0.5), 0.8 + rng.uniform(-0.05, 0.1), 0.16, 0.1, food * rng.uniform(0.75, 1.2))


def plate(pen: Pen, rng: np.random.Generator) -> None:
    glaze, band = hsv(rng.random(), rng.choice([0.03, 0.4]), 0.95), hsv(rng.random(), 0.7, 0.7)
    for half, color in (
        (2.2, glaze * 0.75),
        (2.15, glaze),
        (2.0, band),
        (1.9, glaze),
        (1.4, glaze * 0.86),
        (1.36, glaze * 0.97),
    ):
        pen.ellipse(0, 0.5, half, 0.5 * half / 2.2, color)


def book(pen: Pen, rng: np.random.Generator) -> None:
    y = 0.0
    for _ in range(3):
        cover, x = hsv(rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.85)), rng.uniform(-0.12, 0.12)
        pen.polygon(
            [(x - 0.95, y), (x + 0.85, y), (x + 0.95, y + 0.05), (x + 0.95, y + 0.3), (x - 0.95, y + 0.3)], cover
        )
        _box(pen, x - 0.9, y + 0.06, x + 0.97, y + 0.25, hsv(0.12, 0.1, 0.95))
        for k in (0.1, 0.15, 0.2):
            pen.clip_line([(x - 0.88, y + k), (x + 0.95, y + k)], 0.012, hsv(0.1, 0.15, 0.75))
        _box(pen, x - 0.97, y, x - 0.8, y + 0.32, cover * 0.85)
        y += 0.32


def bread(pen: Pen, rng: np.random.Generator) -> None:
    crust, wide = hsv(0.08, 0.65, rng.uniform(0.55, 0.8)), rng.uniform(0.8, 1.3)
    _round_body(pen, 0, 0.45, wide, 0.45, crust)
    for x in np.linspace(-0.6, 0.6, 4) * wide:
        pen.clip_line([(x - 0.14, 0.45), (x + 0.14, 0.88)], 0.09, hsv(0.11, 0.4, 0.92))
    for _ in range(60):
        pen.clip_ellipse(rng.uniform(-wide, wide), rng.uniform(0.05, 0.9), 0.02, 0.016, crust * rng.uniform(0.7, 1.3))


def vase(pen: Pen, rng: np.random.Generator) -> None:
    glaze, y = hsv(rng.random(), rng.uniform(0.05, 0.8), rng.uniform(0.35, 0.95)), np.linspace(0, 1, 14)
    belly, at = rng.uniform(0.26, 0.42), rng.uniform(0.3, 0.6)
    half = 0.12 + belly * np.exp(-(((y - at) / 0.28) ** 2)) + 0.08 * (y > 0.92)
    pen.polygon([*zip(-half, y, strict=True), *zip(half[::-1], y[::-1], strict=True)], glaze)
    for k in range(4):
        t = 0.25 + 0.2 * k
        pen.polygon([*zip(half * t, y, strict=True), *zip(half[::-1], y[::-1], strict=True)], glaze * (0.92 - 0.1 * k))
    for _ in range(int(rng.integers(0, 4))):
        level = rng.uniform(0.1, 0.85)
        pen.clip_line(
            [(-0.6, level + 0.02), (0, level - 0.02), (0.6, level + 0.02)],
            rng.uniform(0.02, 0.08),
            hsv(rng.random(), 0.6, 0.8),
        )
    pen.line([(-0.5 * half[4], y[4]), (-0.55 * half[8], y[8])], 0.04, np.minimum(glaze + 0.35, 1))
    pen.ellipse(0, 1.0, half[-1], 0.035, glaze * 0.45)


def bouquet(pen: Pen, rng: np.random.Generator) -> None:
    """Flowers from a vase whose mouth is at the foot."""
    green, hues = hsv(0.3, 0.6, rng.uniform(0.35, 0.55)), rng.random(3)
    heads = [(rng.normal(0, 0.3), rng.uniform(0.35, 0.92)) for _ in range(int(rng.integers(4, 10)))]
    for x, y in heads:
        pen.line([(0, 0), (x * 0.4, y * 0.55), (x, y)], 0.022, green * rng.uniform(0.8, 1.2))
        pen.ellipse(x * 0.6 + 0.06, y * 0.55, 0.11, 0.04, green * rng.uniform(0.8, 1.3), rng.uniform(-1, 1))
    for x, y in heads:
        blossom(pen, rng, x, y, rng.uniform(0.1, 0.16), hues[int(rng.integers(3))])


def blossom(pen: Pen, rng: np.random.Generator, x: float, y: float, reach: float, hue: float) -> None:
    """One flower seen from the front."""
    count, rings = int(rng.integers(5, 12)), int(rng.integers(1, 3))
    petal = hsv(hue, rng.uniform(0.15, 0.85), rng.uniform(0.8, 1.0))
    flat, lean = rng.uniform(0.6, 1.0), rng.uniform(0, 6)
    for ring in range(rings):
        radius = reach * (1 - 0.4 * ring)
        for k in range(count):
            a = 2 * np.pi * (k + 0.5 * ring) / count + lean
            at = (x + 0.6 * radius * np.cos(a), y + 0.6 * radius * flat * np.sin(a))
            shade = petal * (0.78 + 0.16 * np.sin(a) + 0.14 * ring)
            pen.ellipse(*at, 0.46 * radius, radius * 1.5 / count, shade * 0.85, a)
            pen.ellipse(*at, 0.4 * radius, radius * 1.1 / count, np.minimum(shade * 1.06, 1), a)
    heart = hsv(rng.uniform(0.06, 0.15), 0.85, rng.uniform(0.3, 0.95))
    pen.ellipse(x, y, 0.26 * reach, 0.26 * reach * flat, heart * 0.8)
    for _ in range(10):
        pen.ellipse(
            x + rng.normal(0, 0.1) * reach,
            y + rng.normal(0, 0.09) * reach,
            0.05 * reach,
            0.05 * reach,
            heart * rng.uniform(0.8, 1.4),
        )


def chair(pen: Pen, rng: np.random.Generator) -> None:
    wood, seat = (
        hsv(rng.choice([0.06, 0.08, 0.0, 0.6]), rng.uniform(0.1, 0.7), rng.uniform(0.25, 0.8)),
        hsv(rng.random(), 0.5, 0.7),
    )
    for x, low in ((-0.2, 0.08), (0.2, 0.08), (-0.28, 0.0), (0.28, 0.0)):
        pen.line([(x, 0.48), (x * 1.08, low)], 0.05, wood * (0.75 if low else 1.0))
    for x in (-0.2, 0.2):
        pen.line([(x, 0.5), (x * 1.05, 1.0)], 0.05, wood)
    for y in (0.94, 0.82, 0.7):
        pen.line([(-0.21, y), (0.21, y)], 0.06, wood * 0.92)
    pen.polygon([(-0.22, 0.54), (0.22, 0.54), (0.32, 0.46), (-0.32, 0.46)], seat)
    _box(pen, -0.32, 0.42, 0.32, 0.46, wood * 0.8)


def sofa(pen: Pen, rng: np.random.Generator) -> None:
    cloth, wide = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.35, 0.85)), rng.uniform(0.9, 1.3)
    for x in (-wide * 0.85, wide * 0.85):
        pen.line([(x, 0.12), (x, 0.0)], 0.06, BLACK + 0.1)
    _box(pen, -wide * 0.92, 0.4, wide * 0.92, 0.98, cloth * 0.85)
    for x in (-0.45, 0.45):
        _box(pen, (x - 0.43) * wide, 0.36, (x + 0.43) * wide, 0.55, cloth)
        _box(pen, (x - 0.42) * wide, 0.55, (x + 0.42) * wide, 0.93, cloth * 0.95)
        pen.clip_line([((x - 0.42) * wide, 0.55), ((x + 0.42) * wide, 0.55)], 0.02, cloth * 0.55)
    _box(pen, -wide * 0.95, 0.1, wide * 0.95, 0.36, cloth * 0.75)
    for x in (-wide, wide):
        _box(pen, x - 0.13, 0.1, x + 0.13, 0.62, cloth * 0.92)
        pen.ellipse(x, 0.62, 0.14, 0.08, cloth * 1.05)
    if rng.random() < 0.6:
        pen.polygon([(-0.5, 0.5), (-0.12, 0.54), (-0.16, 0.84), (-0.54, 0.8)], hsv(rng.random(), 0.7, 0.8))


def lamp(pen: Pen, rng: np.random.Generator) -> None:
    """A lamp with a shade, for tables and floors."""
    metal, shade = (
        hsv(0.1, 0.4, rng.uniform(0.2, 0.7)),
        hsv(rng.choice([0.12, 0.1, 0.0, 0.4]), rng.uniform(0.15, 0.6), 0.97),
    )
    pen.line([(0, 0.03), (0, 0.7)], 0.045, metal)
    pen.ellipse(0, 0.03, 0.2, 0.04, metal * 0.8)
    pen.ellipse(0, 0.25, 0.09, 0.14, metal)
    pen.polygon([(-0.34, 0.6), (0.34, 0.6), (0.19, 1.0), (-0.19, 1.0)], shade)
    pen.polygon([(0.1, 0.6), (0.34, 0.6), (0.19, 1.0), (0.06, 1.0)], shade * 0.86)
    pen.ellipse(0, 0.6, 0.34, 0.035, np.minimum(shade * 1.15, 1))


def street_lamp(pen: Pen, rng: np.random.Generator) -> None:
    metal = hsv(0.4, 0.2, rng.uniform(0.12, 0.35))
    pen.line([(0, 0), (0, 0.85)], 0.03, metal)
    _box(pen, -0.035, 0, 0.035, 0.12, metal)
    pen.polygon(
        [(-0.05, 0.84), (0.05, 0.84), (0.08, 0.96), (-0.08, 0.96)], hsv(0.13, 0.35, 1.0) / np.maximum(pen.tint, 0.4)
    )
    pen.polygon([(-0.1, 0.95), (0.1, 0.95), (0, 1.02)], metal)


def window(pen: Pen, rng: np.random.Generator) -> None:
    """Sky and hills behind panes."""
    half, frame = rng.uniform(0.35, 0.6), hsv(0.09, rng.choice([0.03, 0.5]), rng.choice([0.95, 0.5]))
    _box(pen, -half - 0.06, -0.02, half + 0.06, 1.04, frame * 0.85)
    sky = hsv(rng.choice([0.57, 0.58, 0.05, 0.63]), rng.uniform(0.1, 0.6), rng.choice([0.35, 0.9, 1.0]))
    for k in range(8):
        _box(pen, -half, 0.04 + 0.115 * k, half, 1.0, np.clip(sky * (1.1 - 0.04 * k), 0, 1))
    hill = hsv(0.3, 0.5, rng.uniform(0.3, 0.6))
    pen.polygon(
        [
            (-half, 0.02),
            (half, 0.02),
            (half, rng.uniform(0.1, 0.4)),
            (0, rng.uniform(0.2, 0.4)),
            (-half, rng.uniform(0.1, 0.4)),
        ],
        hill * sky.mean(),
    )
    for x in np.linspace(-half, half, int(rng.integers(2, 5))):
        pen.line([(x, 0), (x, 1.0)], 0.045, frame)
    for y in (0.02, rng.uniform(0.4, 0.65), 1.0):
        pen.line([(-half, y), (half, y)], 0.045, frame)
    _box(pen, -half - 0.12, -0.06, half + 0.12, 0.0, np.minimum(frame * 1.1, 1))


def curtain(pen: Pen, rng: np.random.Generator) -> None:
    cloth, half = hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.45, 0.95)), 0.16
    pen.polygon([(-half, 0.0), (half * 1.2, 0.02), (half, 1.0), (-half, 1.0)], cloth)
    for x in np.linspace(-half, half, 8):
        pen.clip_line([(x * 1.15, 0.0), (x, 1.0)], 0.018, cloth * rng.uniform(0.68, 0.9))
        pen.clip_line([(x * 1.15 + 0.02, 0.0), (x + 0.02, 1.0)], 0.01, np.minimum(cloth * 1.12, 1))


def picture(pen: Pen, rng: np.random.Generator) -> None:
    """A framed picture on a wall."""
    half, frame = (
        rng.uniform(0.4, 0.75),
        hsv(rng.choice([0.1, 0.07, 0.0]), rng.choice([0.1, 0.6]), rng.uniform(0.15, 0.8)),
    )
    _box(pen, -half, 0, half, 1, frame)
    pen.line([(-half, 0), (-half, 1), (half, 1)], 0.03, np.minimum(frame * 1.3, 1))
    inner = half - 0.09
    _box(pen, -inner, 0.09, inner, 0.91, hsv(rng.random(), rng.uniform(0.1, 0.5), 0.85))
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.uniform(-0.6, 0.6) * inner, rng.uniform(0.25, 0.75)
        color = hsv(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9))
        if rng.random() < 0.5:
            pen.ellipse(x, y, 0.14 * rng.uniform(0.4, 1.2) * half, 0.12, color)
        else:
            pen.polygon(
                [
                    (-inner, 0.09),
                    (inner, 0.09),
                    (inner, rng.uniform(0.2, 0.5)),
                    (x, rng.uniform(0.3, 0.6)),
                    (-inner, rng.uniform(0.2, 0.5)),
                ],
                color,
            )


def table(pen: Pen, rng: np.random.Generator) -> None:
    wood, wide = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.8)), rng.uniform(0.7, 1.2)
    for x, low in ((-0.75, 0.1), (0.75, 0.1), (-0.9, 0.0), (0.9, 0.0)):
        pen.line([(x * wide, 0.8), (x * wide, low)], 0.08, wood * (0.55 if low else 0.8))
    pen.polygon([(-wide * 0.8, 1.0), (wide * 0.8, 1.0), (wide, 0.82), (-wide, 0.82)], wood)
    _box(pen, -wide, 0.72, wide, 0.82, wood * 0.75)
    for _ in range(8):
        y = rng.uniform(0.83, 0.99)
        pen.clip_line([(-wide, y), (wide, y)], 0.008, wood * 0.85)


def _wheel(pen: Pen, x: float, radius: float) -> None:
    pen.disk(x, radius, radius, BLACK + 0.05)
    pen.disk(x, radius, radius * 0.62, hsv(0.6, 0.05, 0.72))
    pen.disk(x, radius, radius * 0.5, hsv(0.6, 0.08, 0.42))
    for a in np.linspace(0, 2 * np.pi, 5, endpoint=False):
        pen.line(
            [(x, radius), (x + 0.5 * radius * np.cos(a), radius + 0.5 * radius * np.sin(a))],
            radius * 0.16,
            hsv(0, 0, 0.8),
        )


def car(pen: Pen, rng: np.random.Generator) -> None:
    body = hsv(rng.random(), rng.choice([0.05, 0.6, 0.85]), rng.choice([0.15, 0.5, 0.75, 0.95]))
    boxy, roof = rng.random() < 0.35, rng.uniform(0.92, 1.05)
    back = -1.2 if boxy else -0.95
    pen.polygon([(back, 0.55), (back + 0.22, roof), (0.35, roof), (0.78, 0.58)], body * 0.92)
    pen.polygon([(back + 0.14, 0.58), (back + 0.3, roof - 0.07), (-0.22, roof - 0.07), (-0.22, 0.58)], GLASS)
    pen.polygon([(-0.14, 0.58), (-0.14, roof - 0.07), (0.3, roof - 0.07), (0.62, 0.58)], GLASS * 0.9)
    pen.polygon([(-0.05, 0.6), (0.1, roof - 0.09), (0.2, roof - 0.09), (0.05, 0.6)], np.minimum(GLASS * 1.4, 1))
    pen.polygon([(-1.42, 0.2), (-1.42, 0.5), (-1.3, 0.6), (0.75, 0.6), (1.3, 0.5), (1.45, 0.38), (1.45, 0.2)], body)
    pen.polygon([(-1.42, 0.2), (-1.42, 0.32), (1.45, 0.32), (1.45, 0.2)], body * 0.7)
    pen.line([(-1.35, 0.56), (0.76, 0.57), (1.28, 0.48)], 0.025, np.minimum(body * 1.3 + 0.12, 1))
    for x in (-0.18, 0.68):
        pen.line([(x, 0.57), (x, 0.24)], 0.012, body * 0.5)
    pen.line([(-0.4, 0.5), (-0.28, 0.5)], 0.03, body * 0.5)
    pen.ellipse(1.36, 0.44, 0.09, 0.055, hsv(0.13, 0.2, 1.0))
    pen.ellipse(-1.38, 0.46, 0.05, 0.06, hsv(0.0, 0.85, 0.8))
    for x in (-0.88, 0.9):
        pen.disk(x, 0.24, 0.28, BLACK)
        _wheel(pen, x, 0.23)


def bus(pen: Pen, rng: np.random.Generator) -> None:
    body, long = (
        hsv(rng.choice([0.0, 0.13, 0.3, 0.6, 0.08]), rng.uniform(0.5, 0.85), rng.uniform(0.6, 0.95)),
        rng.uniform(1.1, 1.4),
    )
    double = rng.random() < 0.3
    _box(pen, -long, 0.12, long, 1.0, body)
    _box(pen, -long, 0.12, long, 0.3, body * 0.75)
    pen.line([(-long, 0.98), (long, 0.98)], 0.04, np.minimum(body * 1.2, 1))
    for low, high in ((0.36, 0.58), (0.68, 0.9)) if double else ((0.5, 0.85),):
        for x in np.linspace(-long + 0.06, long - 0.32, 6):
            _box(pen, x, low, x + 0.28, high, GLASS * rng.uniform(0.7, 1.1))
        _box(pen, long - 0.2, low - 0.05, long, high + 0.02, GLASS)
    _box(pen, long * 0.55, 0.14, long * 0.55 + 0.2, 0.8, GLASS * 0.7)
    pen.line([(-long, 0.38), (long, 0.38)], 0.035, hsv(rng.random(), 0.2, 0.95))
    pen.disk(long - 0.03, 0.24, 0.045, hsv(0.13, 0.2, 1))
    for x in (-long * 0.62, long * 0.42):
        pen.disk(x, 0.14, 0.18, BLACK)
        _wheel(pen, x, 0.15)


def train(pen: Pen, rng: np.random.Generator) -> None:
    body, steam = hsv(rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8)), rng.random() < 0.5
    pen.line([(-3.4, 0.02), (3.4, 0.02)], 0.05, hsv(0.07, 0.2, 0.35))
    for k in range(1, 4):  # carriages
        left, color = -1.25 - 1.35 * k + 0.5, body * (0.9 if k % 2 else 1.0)
        _box(pen, left, 0.2, left + 1.28, 0.86, color)
        _box(pen, left, 0.84, left + 1.28, 0.92, color * 0.5)
        for x in np.linspace(left + 0.1, left + 1.0, 4):
            _box(pen, x, 0.5, x + 0.18, 0.74, hsv(0.13, 0.3, 0.95) if pen.tint.mean() < 0.6 else GLASS)
        for x in (left + 0.28, left + 1.0):
            _wheel(pen, x, 0.13)
    if steam:
        pen.polygon([(-0.75, 0.2), (-0.1, 0.2), (-0.1, 0.98), (-0.75, 0.98)], body * 0.8)
        _box(pen, -0.62, 0.6, -0.25, 0.85, GLASS)
        _box(pen, -0.82, 0.95, -0.02, 1.03, BLACK)
        _box(pen, -0.1, 0.3, 1.15, 0.72, body)
        for x in (0.2, 0.6):
            pen.line([(x, 0.3), (x, 0.72)], 0.03, hsv(0.12, 0.6, 0.8))
        pen.polygon([(0.85, 0.7), (1.05, 0.7), (1.12, 1.05), (0.78, 1.05)], BLACK + 0.05)
        pen.disk(0.4, 0.74, 0.11, hsv(0.12, 0.6, 0.8))
        pen.polygon([(1.15, 0.3), (1.45, 0.06), (1.05, 0.06)], hsv(0, 0.7, 0.5))
        for x in (-0.45, 0.05, 0.5, 0.95):
            _wheel(pen, x, 0.18)
    else:
        pen.polygon([(-0.75, 0.15), (1.35, 0.15), (1.4, 0.35), (0.95, 0.88), (-0.75, 0.92)], body)
        pen.polygon([(0.7, 0.62), (1.12, 0.6), (0.92, 0.82), (0.7, 0.84)], GLASS * 0.6)
        for x in np.linspace(-0.65, 0.3, 4):
            _box(pen, x, 0.55, x + 0.2, 0.76, GLASS)
        pen.line([(-0.75, 0.4), (1.36, 0.36)], 0.07, hsv(rng.random(), 0.7, 0.95))
        for x in (-0.45, 0.1, 0.9):
            _wheel(pen, x, 0.12)


def bicycle(pen: Pen, rng: np.random.Generator) -> None:
    frame = hsv(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9))
    for x in (-0.52, 0.55):
        ring = [(x + 0.33 * np.cos(a), 0.34 + 0.33 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 28)]
        for a in np.linspace(0, np.pi, 7, endpoint=False):
            dx, dy = 0.32 * np.cos(a), 0.32 * np.sin(a)
            pen.line([(x - dx, 0.34 - dy), (x + dx, 0.34 + dy)], 0.006, hsv(0, 0, 0.6))
        pen.line(ring, 0.045, BLACK)
        pen.disk(x, 0.34, 0.035, BLACK + 0.3)
    pen.line([(-0.52, 0.34), (-0.05, 0.32), (-0.2, 0.78), (-0.52, 0.34)], 0.04, frame)
    pen.line([(-0.05, 0.32), (0.42, 0.74), (-0.18, 0.74)], 0.04, frame)
    pen.line([(0.55, 0.34), (0.38, 0.92), (0.5, 0.98)], 0.04, frame * 0.85)
    pen.line([(-0.34, 0.84), (-0.08, 0.84)], 0.07, BLACK)
    pen.line([(-0.2, 0.78), (-0.2, 0.83)], 0.03, BLACK + 0.2)
    pen.disk(-0.05, 0.32, 0.065, hsv(0, 0, 0.4))
    pen.line([(-0.05, 0.32), (0.05, 0.2), (0.1, 0.2)], 0.03, BLACK + 0.1)


def airplane(pen: Pen, rng: np.random.Generator) -> None:
    paint, trim = hsv(rng.random(), rng.choice([0.03, 0.1, 0.6]), rng.uniform(0.75, 0.98)), hsv(rng.random(), 0.75, 0.7)
    pen.polygon([(-0.05, 0.52), (-0.75, 0.95), (-0.58, 0.95), (0.4, 0.54)], paint * 0.7)
    pen.polygon([(-1.35, 0.52), (-1.62, 1.0), (-1.4, 1.0), (-0.98, 0.55)], trim)
    nose = [(1.15 + 0.35 * np.cos(a), 0.5 + 0.13 * np.sin(a)) for a in np.linspace(-np.pi / 2, np.pi / 2, 12)]
    pen.polygon([(-1.55, 0.56), (-1.2, 0.39), *nose, (-1.2, 0.63)], paint)
    pen.polygon([(-1.5, 0.53), (-1.2, 0.39), (1.2, 0.37), (1.42, 0.44), (-1.2, 0.46)], paint * 0.75)
    pen.clip_line([(-1.6, 0.57), (1.5, 0.53)], 0.035, trim)
    for x in np.linspace(-0.95, 1.05, 15):
        pen.ellipse(x, 0.565, 0.022, 0.028, GLASS * 0.6)
    pen.polygon([(1.24, 0.54), (1.42, 0.52), (1.32, 0.6), (1.2, 0.6)], GLASS * 0.5)
    pen.ellipse(0.05, 0.33, 0.17, 0.06, paint * 0.6)
    pen.polygon([(0.35, 0.48), (-0.05, 0.46), (-0.85, 0.04), (-0.62, 0.04)], paint * 0.88)
    pen.polygon([(-1.15, 0.52), (-1.4, 0.5), (-1.72, 0.34), (-1.58, 0.34)], paint * 0.8)


def ship(pen: Pen, rng: np.random.Generator) -> None:
    hull, band = (
        hsv(rng.choice([0.0, 0.6, 0.35, 0.07]), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.6)),
        hsv(rng.random(), 0.6, 0.8),
    )
    pen.polygon([(-1.3, 0.4), (1.5, 0.46), (1.2, 0.0), (-1.15, 0.0)], hull)
    pen.polygon([(-1.3, 0.4), (1.5, 0.46), (1.45, 0.38), (-1.27, 0.33)], WHITE * 0.95)
    pen.polygon([(-1.17, 0.06), (1.24, 0.06), (1.2, 0.0), (-1.15, 0.0)], hsv(0.0, 0.7, 0.5))
    for level, (left, right) in enumerate(((-1.0, 0.85), (-0.8, 0.6), (-0.55, 0.4))[: int(rng.integers(1, 4))]):
        low = 0.41 + 0.15 * level
        _box(pen, left, low, right, low + 0.15, WHITE * (0.98 - 0.06 * level))
        for x in np.arange(left + 0.08, right - 0.05, 0.15):
            _box(pen, x, low + 0.05, x + 0.08, low + 0.11, GLASS * 0.6)
    for x in (-0.35, 0.1)[: int(rng.integers(1, 3))]:
        pen.polygon([(x - 0.1, 0.55), (x + 0.12, 0.55), (x + 0.08, 1.0), (x - 0.12, 1.0)], band)
        pen.polygon([(x - 0.115, 0.9), (x + 0.09, 0.9), (x + 0.08, 1.0), (x - 0.12, 1.0)], BLACK)
    pen.line([(1.0, 0.44), (1.02, 0.9)], 0.02, BLACK + 0.2)


def lighthouse(pen: Pen, rng: np.random.Generator) -> None:
    first, second = hsv(rng.choice([0.0, 0.6, 0.98]), rng.choice([0.1, 0.8]), 0.85), WHITE
    pen.ellipse(0, 0.0, 0.42, 0.07, hsv(0.08, 0.15, 0.4))
    bands = int(rng.integers(3, 6))
    for k in range(bands):
        low, high = 0.78 * k / bands, 0.78 * (k + 1) / bands
        at = [0.15 - 0.08 * y / 0.78 for y in (low, high)]
        color = first if k % 2 else second
        pen.polygon([(-at[0], low), (at[0], low), (at[1], high), (-at[1], high)], color)
        pen.polygon([(at[0] * 0.35, low), (at[0], low), (at[1], high), (at[1] * 0.35, high)], color * 0.78)
    _box(pen, -0.11, 0.78, 0.11, 0.805, BLACK + 0.1)
    _box(pen, -0.06, 0.805, 0.06, 0.91, hsv(0.13, 0.5, 1.0) / np.maximum(pen.tint, 0.4))
    for x in (-0.06, 0.0, 0.06):
        pen.line([(x, 0.8), (x, 0.91)], 0.012, BLACK)
    pen.polygon([(-0.09, 0.91), (0.09, 0.91), (0, 1.0)], hsv(0.0, 0.7, 0.5))
    _box(pen, -0.03, 0.0, 0.03, 0.09, BLACK + 0.15)


def facade(pen: Pen, rng: np.random.Generator, corners: np.ndarray) -> None:
    """A building's front in the quadrangle `corners` (4, 2): top left, top right, bottom right, bottom left."""
    hue = rng.choice([0.02, 0.06, 0.1, 0.13, 0.58, 0.0, 0.33])
    wall = hsv(hue, rng.uniform(0.03, 0.5), rng.uniform(0.45, 0.97))
    pen.polygon([(float(x), float(y)) for x, y in corners], wall)
    high = np.linalg.norm(corners[0] - corners[3]) + np.linalg.norm(corners[1] - corners[2])
    wide = np.linalg.norm(corners[0] - corners[1])
    rows, columns = (
        int(np.clip(high / 2 / rng.uniform(0.07, 0.11), 2, 9)),
        int(np.clip(wide / rng.uniform(0.05, 0.09), 2, 7)),
    )

    def at(u: float, v: float) -> tuple[float, float]:
        point = (corners[0] * (1 - u) + corners[1] * u) * v + (corners[3] * (1 - u) + corners[2] * u) * (1 - v)
        return float(point[0]), float(point[1])

    def pane(left: float, low: float, right: float, top: float, color: Color) -> None:
        pen.polygon([at(left, low), at(right, low), at(right, top), at(left, top)], color)

    night = pen.tint.mean() < 0.62
    frame, fill = np.minimum(wall * rng.choice([0.6, 1.35]), 1), rng.uniform(0.45, 0.75)
    for row in range(rows):
        for column in range(columns):
            lit = rng.random() < (0.45 if night else 0.03)
            glass = hsv(0.12, 0.5, 1.0) / np.maximum(pen.tint, 0.35) if lit else GLASS * rng.uniform(0.45, 1.0)
            left, low = (column + 0.5 - fill / 2) / columns, (row + 0.25) / rows
            right, top = left + fill / columns, low + 0.55 / rows
            if row == 0:
                low, top = 0.01, 0.78 / rows
                glass = hsv(rng.random(), 0.5, 0.4) if rng.random() < 0.5 else glass
            pane(left - 0.08 / columns, low - 0.04 / rows, right + 0.08 / columns, top + 0.04 / rows, frame)
            pane(left, low, right, top, glass)
    pane(0, 1 - 0.12 / rows, 1, 1, wall * 0.72)
    pane(0, 0.94 / rows, 1, 1.0 / rows, wall * 0.8)


TABLE_THINGS: dict[str, Painter] = {
    "apple": apple,
    "orange": orange,
    "pear": pear,
    "lemon": lemon,
    "bottle": bottle,
    "bowl": bowl,
    "plate": plate,
    "cup": cup,
    "book": book,
    "bread": bread,
}
TABLE_HEIGHTS = {
    "apple": 0.17,
    "orange": 0.16,
    "pear": 0.22,
    "lemon": 0.13,
    "bottle": 0.46,
    "bowl": 0.15,
    "plate": 0.07,
    "cup": 0.17,
    "book": 0.16,
    "bread": 0.15,
}
VEHICLES: dict[str, Painter] = {"car": car, "bus": bus, "train": train, "bicycle": bicycle}
