"""Faces and animals: people from the shoulders up in parts of their own words, heads and bodies of animals."""

from dataclasses import dataclass

import numpy as np
from scene_objects import Color, Painter, Pen, hsv, person

WHITE, BLACK = hsv(0, 0, 0.97), hsv(0, 0, 0.04)


@dataclass(frozen=True)
class Sitter:
    """Someone who is portrayed; units as for `Pen`: the shoulders reach down to 0, the top of the head is near 1."""

    skin: Color
    hair: Color
    cloth: Color
    eyes: Color
    wide: float  # half the width of the face
    turn: float  # how far the features move to a side
    long: bool  # long hair
    bald: bool
    beard: bool
    glasses: bool
    hat: int  # 0: none, 1: with a brim, 2: a cap
    smile: float

    @classmethod
    def choose(cls, rng: np.random.Generator) -> "Sitter":
        hairs = [
            (0.07, 0.6, 0.12),
            (0.07, 0.65, 0.3),
            (0.09, 0.6, 0.5),
            (0.12, 0.5, 0.85),
            (0.04, 0.8, 0.5),
            (0, 0, 0.7),
        ]
        long = bool(rng.random() < 0.5)
        return cls(
            skin=hsv(rng.uniform(0.035, 0.08), rng.uniform(0.28, 0.62), rng.choice([0.38, 0.55, 0.72, 0.86, 0.96])),
            hair=hsv(*hairs[int(rng.integers(len(hairs)))]) * rng.uniform(0.8, 1.15),
            cloth=hsv(rng.random(), rng.uniform(0.1, 0.85), rng.uniform(0.2, 0.95)),
            eyes=hsv(rng.choice([0.07, 0.07, 0.3, 0.58]), 0.6, rng.uniform(0.2, 0.55)),
            wide=rng.uniform(0.185, 0.225),
            turn=rng.uniform(-0.045, 0.045),
            long=long,
            bald=bool(not long and rng.random() < 0.12),
            beard=bool(not long and rng.random() < 0.35),
            glasses=bool(rng.random() < 0.2),
            hat=int(rng.choice(3, p=[0.68, 0.2, 0.12])),
            smile=rng.uniform(0.0, 0.03),
        )

    def parts(self) -> list[tuple[str, Painter]]:
        """(word, painter), in the order in which they are drawn."""
        drawn: list[tuple[str, Painter]] = []
        if not self.bald:
            drawn.append(("hair", self.back_of_hair))
        drawn += [("face", self.neck), ("shirt", self.shirt), ("face", self.face)]
        if self.beard:
            drawn.append(("hair", self.beard_hair))
        if not self.bald:
            drawn.append(("hair", self.front_of_hair))
        if self.hat:
            drawn.append(("hat", self.hat_on_top))
        return drawn

    def back_of_hair(self, pen: Pen, rng: np.random.Generator) -> None:
        pen.ellipse(0, 0.72, self.wide * 1.18, 0.255, self.hair * 0.75)
        if self.long:
            low = rng.uniform(0.1, 0.36)
            for side in (-1, 1):
                x = side * self.wide
                pen.polygon([(x * 1.22, 0.75), (x * 1.4, low), (x * 0.6, low - 0.03), (x * 0.5, 0.7)], self.hair * 0.8)
        pen.hairs(rng, 500, 0.07, 0.12, lean=-1.57)

    def neck(self, pen: Pen, rng: np.random.Generator) -> None:
        half = self.wide * 0.52
        pen.polygon([(-half, 0.55), (half, 0.55), (half * 1.3, 0.26), (0, 0.2), (-half * 1.3, 0.26)], self.skin * 0.78)

    def shirt(self, pen: Pen, rng: np.random.Generator) -> None:
        wide, drop = rng.uniform(0.44, 0.56), rng.uniform(0.2, 0.27)
        pen.polygon(
            [
                (-wide, -0.1), (-wide, 0.12), (-wide * 0.75, 0.25), (-0.13, 0.345), (0, drop),
                (0.13, 0.345), (wide * 0.75, 0.25), (wide, 0.12), (wide, -0.1),
            ],
            self.cloth,
        )  # fmt: skip
        kind = int(rng.integers(4))
        if kind == 0:  # a jacket over a white shirt
            pen.polygon([(-0.11, 0.335), (0.11, 0.335), (0.0, -0.1)], WHITE)
            pen.polygon([(-0.02, 0.23), (0.02, 0.23), (0.03, -0.1), (-0.03, -0.1)], hsv(rng.random(), 0.7, 0.5))
            for side in (-1, 1):
                pen.polygon([(side * 0.14, 0.345), (side * 0.22, 0.2), (side * 0.02, -0.1)], self.cloth * 0.8)
        elif kind == 1:
            for y in np.arange(-0.06, 0.3, 0.07):
                pen.clip_line([(-wide, y - 0.03), (0, y), (wide, y - 0.03)], 0.025, self.cloth * 0.55 + 0.2)
        else:
            pen.clip_line([(-0.14, 0.345), (0, drop - 0.01), (0.14, 0.345)], 0.03, self.cloth * 0.7)
        for _ in range(5):
            x, y = rng.uniform(-0.4, 0.4), rng.uniform(-0.05, 0.2)
            pen.clip_line([(x, y), (x * 1.15, y - 0.14)], 0.012, self.cloth * 0.8)

    def face(self, pen: Pen, rng: np.random.Generator) -> None:
        wide, dx, skin = self.wide, self.turn, self.skin
        pen.ellipse(-wide * 1.02, 0.66, 0.035, 0.06, skin * 0.85)
        pen.ellipse(wide * 1.02, 0.66, 0.035, 0.06, skin * 0.85)
        pen.ellipse(0, 0.7, wide, 0.225, skin)
        pen.polygon(
            [
                (-wide * 0.98, 0.68),
                (wide * 0.98, 0.68),
                (wide * 0.8, 0.53),
                (wide * 0.35, 0.445),
                (-wide * 0.35, 0.445),
                (-wide * 0.8, 0.53),
            ],
            skin,
        )
        pen.ellipse(dx, 0.455, wide * 0.4, 0.03, skin)
        lit = 1 if rng.random() < 0.5 else -1
        pen.polygon(
            [(lit * wide, 0.74), (lit * wide * 0.95, 0.62), (lit * wide * 0.4, 0.45), (lit * wide * 0.72, 0.62)],
            skin * 0.88,
        )
        blush = np.clip(skin * np.array([1.02, 0.95, 0.94], np.float32), 0, 1)
        for side in (-1, 1):
            pen.ellipse(dx + side * wide * 0.55, 0.585, 0.055, 0.035, blush)
            x, y = dx + side * wide * 0.44, 0.685
            pen.ellipse(x, y + 0.005, 0.058, 0.034, skin * 0.78)
            pen.ellipse(x, y, 0.045, 0.022, hsv(0.1, 0.04, 0.96))
            pen.disk(x + dx * 0.2, y, 0.0215, self.eyes)
            pen.disk(x + dx * 0.2, y, 0.011, BLACK)
            pen.disk(x + dx * 0.2 - 0.007, y + 0.008, 0.005, WHITE)
            pen.line([(x - 0.05, y + 0.004), (x, y + 0.026), (x + 0.05, y + 0.004)], 0.011, skin * 0.3)
            pen.line(
                [(x - 0.055, y + 0.05), (x + side * 0.01, y + 0.068), (x + 0.055, y + 0.05)], 0.02, self.hair * 0.6
            )
            pen.ellipse(dx * 1.4 + side * 0.024, 0.572, 0.013, 0.008, skin * 0.45)
            if self.glasses:
                ring = [(x + 0.068 * np.cos(a), y + 0.055 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 20)]
                pen.line(ring, 0.008, BLACK)
        pen.line([(dx + 0.01, 0.69), (dx * 1.5 + 0.03, 0.59), (dx * 1.4 + 0.015, 0.575)], 0.014, skin * 0.8)
        pen.line([(dx * 1.2, 0.68), (dx * 1.5, 0.6)], 0.018, np.minimum(skin * 1.12, 1))
        lip, at = np.clip(skin * np.array([0.92, 0.55, 0.55], np.float32), 0, 1), (dx * 1.2, 0.515)
        rise = self.smile
        upper = [(-0.075, rise), (-0.03, 0.014), (0, 0.008), (0.03, 0.014), (0.075, rise)]
        lower = [(0.04, -0.018), (0, -0.026), (-0.04, -0.018)]
        pen.polygon([(at[0] + x, at[1] + y) for x, y in (*upper, *lower)], lip)
        pen.ellipse(at[0], at[1] - 0.013, 0.035, 0.008, np.minimum(lip * 1.2, 1))
        middle = [
            (at[0] + x, at[1] - 0.002 + (rise - 0.002) * (x / 0.07) ** 2) for x in (-0.05, -0.025, 0, 0.025, 0.05)
        ]
        pen.line(middle, 0.016 if rise > 0.018 else 0.007, hsv(0.08, 0.04, 0.95) if rise > 0.018 else lip * 0.5)
        pen.line([(at[0] - 0.03, 0.478), (at[0] + 0.03, 0.478)], 0.008, skin * 0.86)

    def beard_hair(self, pen: Pen, rng: np.random.Generator) -> None:
        wide, dx = self.wide, self.turn
        pen.polygon(
            [
                (-wide * 0.97, 0.63), (-wide * 0.6, 0.55), (dx - 0.09, 0.545), (dx - 0.09, 0.49),
                (dx + 0.09, 0.49), (dx + 0.09, 0.545), (wide * 0.6, 0.55), (wide * 0.97, 0.63),
                (wide * 0.8, 0.5), (wide * 0.35, 0.41), (-wide * 0.35, 0.41), (-wide * 0.8, 0.5),
            ],
            self.hair * 0.9,
        )  # fmt: skip
        pen.line([(dx - 0.08, 0.535), (dx * 1.2, 0.55), (dx + 0.08, 0.535)], 0.022, self.hair * 0.9)
        pen.hairs(rng, 250, 0.025, 0.15, lean=-1.57)

    def front_of_hair(self, pen: Pen, rng: np.random.Generator) -> None:
        wide, part = self.wide, rng.uniform(-0.1, 0.1)
        rim = [(wide * 1.12 * np.cos(a), 0.72 + 0.25 * np.sin(a)) for a in np.linspace(-0.1, np.pi + 0.1, 24)]
        fringe = rng.uniform(0.78, 0.85)
        pen.polygon(
            [
                *rim,
                (-wide * 0.88, 0.72),
                (-wide * 0.7, fringe),
                (part, fringe + 0.05),
                (wide * 0.7, fringe),
                (wide * 0.88, 0.72),
            ],
            self.hair,
        )
        if self.long:
            for side in (-1, 1):
                x = side * wide
                pen.polygon([(x * 1.13, 0.74), (x * 1.25, 0.42), (x * 0.95, 0.42), (x * 0.9, 0.74)], self.hair * 0.95)
        pen.hairs(rng, 700, 0.06, 0.14, lean=-1.3)

    def hat_on_top(self, pen: Pen, rng: np.random.Generator) -> None:
        felt, wide = hsv(rng.random(), rng.uniform(0.05, 0.8), rng.uniform(0.2, 0.9)), self.wide
        dome = [(wide * 1.1 * np.cos(a), 0.83 + 0.2 * np.sin(a)) for a in np.linspace(0, np.pi, 18)]
        pen.polygon(dome, felt)
        if self.hat == 1:
            pen.ellipse(0, 0.83, wide * 1.85, 0.045, felt * 0.8)
            pen.polygon(
                [(-wide * 1.08, 0.85), (wide * 1.08, 0.85), (wide * 1.05, 0.9), (-wide * 1.05, 0.9)], felt * 0.45
            )
        else:
            pen.ellipse(wide * 0.35, 0.83, wide * 1.1, 0.035, felt * 0.7)
            pen.clip_line([(0, 1.03), (0, 0.85)], 0.012, felt * 0.7)


def _fur(rng: np.random.Generator) -> tuple[Color, Color, Color]:
    """Body, dark and pale color of an animal."""
    fur = hsv(rng.uniform(0.04, 0.11), rng.choice([0.05, 0.3, 0.6]), rng.choice([0.16, 0.4, 0.62, 0.9]))
    return fur, fur * 0.5, np.minimum(fur * 1.3 + 0.12, 1)


def _eye(pen: Pen, x: float, y: float, radius: float, iris: Color, *, slit: bool = False) -> None:
    pen.disk(x, y, radius * 1.25, BLACK)
    pen.disk(x, y, radius, iris)
    pen.ellipse(x, y, radius * (0.25 if slit else 0.6), radius * (0.9 if slit else 0.6), BLACK)
    pen.disk(x - radius * 0.3, y + radius * 0.4, radius * 0.22, WHITE)


def cat_head(pen: Pen, rng: np.random.Generator) -> None:
    fur, dark, pale = _fur(rng)
    pen.polygon([(-0.5, -0.1), (-0.38, 0.35), (0.38, 0.35), (0.5, -0.1)], fur * 0.9)
    pen.ellipse(0, 0.1, 0.2, 0.3, pale)
    for side in (-1, 1):
        pen.polygon([(side * 0.06, 0.78), (side * 0.38, 0.6), (side * 0.37, 1.02)], fur)
        pen.polygon([(side * 0.16, 0.8), (side * 0.33, 0.7), (side * 0.33, 0.95)], hsv(0.0, 0.3, 0.7))
    pen.ellipse(0, 0.52, 0.42, 0.34, fur)
    pen.ellipse(-0.14, 0.36, 0.17, 0.13, pale)
    pen.ellipse(0.14, 0.36, 0.17, 0.13, pale)
    if rng.random() < 0.6:
        for x in (-0.1, -0.04, 0.04, 0.1):
            pen.line([(x, 0.85), (x * 0.8, 0.68)], 0.025, dark)
        for side in (-1, 1):
            for y in (0.42, 0.5, 0.58):
                pen.line([(side * 0.4, y), (side * 0.25, y + 0.02)], 0.022, dark)
    pen.hairs(rng, 1500, 0.03, 0.22, lean=None)
    iris = hsv(rng.choice([0.14, 0.2, 0.3, 0.55]), 0.7, 0.85)
    for side in (-1, 1):
        _eye(pen, side * 0.17, 0.55, 0.075, iris, slit=True)
        for y in (0.3, 0.35, 0.4):
            pen.line([(side * 0.1, 0.36), (side * 0.5, y + 0.05 * (y - 0.35))], 0.006, pale)
        pen.line([(0, 0.36), (side * 0.05, 0.31), (side * 0.11, 0.32)], 0.014, dark * 0.5)
    pen.polygon([(-0.055, 0.43), (0.055, 0.43), (0, 0.365)], hsv(0.98, 0.45, 0.75))


def dog_head(pen: Pen, rng: np.random.Generator) -> None:
    fur, dark, pale = _fur(rng)
    floppy, tongue = rng.random() < 0.65, rng.random() < 0.5
    pen.polygon([(-0.45, -0.1), (-0.28, 0.45), (0.28, 0.45), (0.45, -0.1)], fur * 0.85)
    pen.ellipse(0, 0.05, 0.2, 0.25, pale)
    if not floppy:
        for side in (-1, 1):
            pen.polygon([(side * 0.08, 0.85), (side * 0.33, 0.68), (side * 0.32, 1.05)], dark)
    pen.ellipse(0, 0.66, 0.33, 0.27, fur)
    pen.ellipse(0, 0.44, 0.19, 0.2, pale if rng.random() < 0.6 else fur * 1.1)
    if rng.random() < 0.4:
        pen.polygon([(-0.04, 0.93), (0.04, 0.93), (0.07, 0.5), (-0.07, 0.5)], pale)
    if floppy:
        for side in (-1, 1):
            pen.polygon(
                [(side * 0.2, 0.9), (side * 0.34, 0.82), (side * 0.47, 0.5), (side * 0.38, 0.36), (side * 0.29, 0.62)],
                dark,
            )
    pen.hairs(rng, 1350, 0.03, 0.2, lean=-1.57)
    for side in (-1, 1):
        _eye(pen, side * 0.14, 0.69, 0.045, hsv(0.07, 0.7, 0.35))
    pen.line([(0, 0.42), (0, 0.35), (-0.1, 0.3)], 0.016, BLACK)
    pen.line([(0, 0.35), (0.1, 0.3)], 0.016, BLACK)
    if tongue:
        pen.ellipse(0.01, 0.25, 0.06, 0.09, hsv(0.98, 0.5, 0.85))
    pen.ellipse(0, 0.49, 0.085, 0.06, BLACK + 0.05)
    pen.ellipse(-0.025, 0.51, 0.025, 0.012, hsv(0, 0, 0.5))


def horse_head(pen: Pen, rng: np.random.Generator) -> None:
    fur, dark, pale = _fur(rng)
    mane = dark if rng.random() < 0.7 else pale
    pen.polygon([(-0.55, -0.1), (-0.42, 0.5), (-0.15, 0.9), (0.1, 0.82), (0.02, 0.35), (0.12, -0.1)], fur * 0.92)
    pen.polygon(
        [
            (-0.16, 0.93),
            (0.06, 0.9),
            (0.22, 0.72),
            (0.46, 0.38),
            (0.44, 0.22),
            (0.28, 0.2),
            (0.14, 0.42),
            (-0.06, 0.55),
        ],
        fur,
    )
    pen.ellipse(0.37, 0.29, 0.105, 0.1, fur * 0.8)
    if rng.random() < 0.5:
        pen.polygon([(0.05, 0.88), (0.13, 0.82), (0.4, 0.45), (0.36, 0.42)], WHITE)
    for x in (-0.1, 0.02):
        pen.polygon([(x - 0.05, 0.88), (x + 0.05, 0.88), (x + 0.01, 1.06)], fur * 0.8)
    pen.hairs(rng, 900, 0.03, 0.15, lean=-0.9)
    for _ in range(40):
        t = rng.random()
        x, y = -0.08 - 0.4 * t, 0.95 - 0.7 * t
        pen.line(
            [(x, y), (x - 0.06, y - 0.1), (x - 0.03 + rng.normal(0, 0.03), y - 0.26)],
            0.02,
            mane * rng.uniform(0.8, 1.3),
        )
    pen.line([(0.0, 0.92), (0.08, 0.78)], 0.04, mane)
    _eye(pen, 0.07, 0.74, 0.035, hsv(0.07, 0.7, 0.2))
    pen.ellipse(0.41, 0.33, 0.025, 0.018, BLACK)
    pen.line([(0.44, 0.24), (0.3, 0.27)], 0.014, fur * 0.35)


def cow_head(pen: Pen, rng: np.random.Generator) -> None:
    fur = hsv(rng.choice([0.04, 0.07, 0.0]), rng.choice([0.0, 0.5, 0.6]), rng.choice([0.1, 0.4, 0.9]))
    patch = WHITE if fur.mean() < 0.6 else BLACK + 0.08
    pen.polygon([(-0.45, -0.1), (-0.25, 0.5), (0.25, 0.5), (0.45, -0.1)], fur * 0.85)
    for side in (-1, 1):
        pen.line([(side * 0.16, 0.9), (side * 0.34, 0.98), (side * 0.36, 1.08)], 0.05, hsv(0.12, 0.2, 0.85))
        pen.ellipse(side * 0.38, 0.78, 0.17, 0.075, fur * 0.8, side * -0.3)
        pen.ellipse(side * 0.38, 0.77, 0.1, 0.04, hsv(0.0, 0.3, 0.7), side * -0.3)
    pen.polygon([(-0.24, 0.9), (0.24, 0.9), (0.28, 0.65), (0.19, 0.35), (-0.19, 0.35), (-0.28, 0.65)], fur)
    pen.polygon([(-0.08, 0.92), (0.08, 0.92), (0.12, 0.4), (-0.12, 0.4)], patch)
    pen.hairs(rng, 1050, 0.03, 0.15, lean=-1.57)
    pen.ellipse(0, 0.29, 0.22, 0.15, hsv(0.02, 0.3, 0.8))
    for side in (-1, 1):
        _eye(pen, side * 0.19, 0.68, 0.038, hsv(0.07, 0.6, 0.15))
        pen.ellipse(side * 0.1, 0.33, 0.04, 0.028, hsv(0.0, 0.4, 0.2), side * 0.5)
    pen.line([(-0.12, 0.21), (0, 0.19), (0.12, 0.21)], 0.012, hsv(0.0, 0.4, 0.3))


def bird(pen: Pen, rng: np.random.Generator) -> None:
    """A bird on its legs, seen from the side."""
    hue = rng.random()
    back, belly = (
        hsv(hue, rng.uniform(0.2, 0.9), rng.uniform(0.25, 0.9)),
        hsv(hue + rng.uniform(-0.5, 0.5), rng.uniform(0, 0.8), 0.9),
    )
    for x in (-0.03, 0.07):
        pen.line([(x, 0.25), (x, 0.0), (x + 0.07, 0.0)], 0.022, hsv(0.08, 0.6, 0.5))
    pen.polygon([(-0.25, 0.5), (-0.72, 0.2), (-0.62, 0.14), (-0.1, 0.32)], back * 0.7)
    pen.ellipse(0.02, 0.44, 0.32, 0.22, belly, 0.35)
    pen.ellipse(-0.08, 0.5, 0.3, 0.16, back, 0.35)
    pen.disk(0.22, 0.72, 0.165, back)
    pen.ellipse(0.26, 0.64, 0.1, 0.09, belly)
    pen.hairs(rng, 500, 0.03, 0.15, lean=3.6)
    for k in range(4):
        pen.line([(0.05 - 0.02 * k, 0.5 - 0.04 * k), (-0.45 + 0.05 * k, 0.3 - 0.02 * k)], 0.014, back * 0.55)
    pen.polygon(
        [(0.35, 0.77), (0.55, 0.7), (0.35, 0.67)], hsv(rng.choice([0.1, 0.05, 0.14]), 0.8, rng.uniform(0.2, 0.95))
    )
    _eye(pen, 0.27, 0.755, 0.026, hsv(0.08, 0.6, 0.3))


def fish(pen: Pen, rng: np.random.Generator) -> None:
    hue = rng.random()
    body, stripe = hsv(hue, rng.uniform(0.3, 0.9), 0.9), hsv(hue + rng.uniform(0.1, 0.6), rng.uniform(0, 0.8), 0.95)
    high = rng.uniform(0.22, 0.36)
    pen.polygon([(-0.4, 0.5), (-0.85, 0.8), (-0.75, 0.5), (-0.85, 0.2)], stripe * 0.85)
    pen.polygon(
        [(-0.25, 0.5 + high * 0.7), (-0.15, 0.62 + high), (0.2, 0.58 + high), (0.3, 0.5 + high * 0.6)], stripe * 0.75
    )
    pen.polygon([(-0.1, 0.5 - high * 0.8), (-0.2, 0.36 - high), (0.12, 0.5 - high * 0.8)], stripe * 0.75)
    pen.ellipse(0, 0.5, 0.55, high, body)
    pen.ellipse(0, 0.5 - high * 0.4, 0.42, high * 0.5, np.minimum(body * 1.2 + 0.1, 1))
    for x in (-0.3, -0.08, 0.14)[: int(rng.integers(0, 4))]:
        pen.clip_line([(x, 0.5 - high), (x + 0.04, 0.5), (x, 0.5 + high)], 0.08, stripe)
    for x in np.arange(-0.42, 0.28, 0.075):  # scales
        for k in range(-3, 4):
            y = 0.5 + (k + 0.5 * (round(x / 0.075) % 2)) * high * 0.26
            arc = [(x + 0.035 * np.cos(a), y + 0.03 * np.sin(a)) for a in np.linspace(-1.3, 1.3, 5)]
            pen.clip_line(arc, 0.009, body * 0.7)
    pen.line([(0.3, 0.5 + high * 0.7), (0.25, 0.5), (0.3, 0.5 - high * 0.7)], 0.014, body * 0.6)
    pen.polygon([(0.12, 0.5), (-0.06, 0.42), (0.02, 0.36)], stripe * 0.8)
    _eye(pen, 0.4, 0.55, 0.035, hsv(0.13, 0.4, 0.95))
    pen.line([(0.54, 0.48), (0.48, 0.46)], 0.014, body * 0.4)


def _beast(pen: Pen, fur: Color, legs: float, deep: float, half: float) -> None:
    """Four legs and a barrel, from -half to half."""
    for x, tone in ((-half * 0.72, 0.65), (half * 0.62, 0.65), (-half * 0.58, 1.0), (half * 0.78, 1.0)):
        pen.line([(x, legs + 0.05), (x + 0.01, legs * 0.5), (x, 0.0)], deep * 0.28, fur * tone)
    pen.ellipse(0, legs + deep * 0.5, half, deep * 0.55, fur)
    pen.ellipse(-half * 0.55, legs + deep * 0.55, half * 0.45, deep * 0.55, fur)


def figure(pen: Pen, rng: np.random.Generator) -> None:
    """A whole person whose face has features."""
    person(pen, rng)
    for side in (-1, 1):
        pen.disk(0.014 + side * 0.027, 0.893, 0.008, BLACK)
    pen.line([(-0.012, 0.848), (0.015, 0.842), (0.04, 0.848)], 0.009, hsv(0.0, 0.6, 0.45))
    pen.line([(0.016, 0.885), (0.022, 0.868)], 0.007, hsv(0.05, 0.5, 0.45))


def dog(pen: Pen, rng: np.random.Generator) -> None:
    fur, dark, pale = _fur(rng)
    pen.line([(-0.38, 0.62), (-0.55, 0.78), (-0.58, 0.92)], 0.06, fur * 0.9)
    _beast(pen, fur, 0.34, 0.32, 0.42)
    pen.ellipse(0.02, 0.4, 0.26, 0.06, pale)
    pen.polygon([(0.25, 0.6), (0.42, 0.45), (0.6, 0.75), (0.42, 0.92)], fur)
    pen.ellipse(0.5, 0.83, 0.16, 0.14, fur)
    pen.ellipse(0.65, 0.77, 0.11, 0.065, pale)
    pen.polygon([(0.4, 0.95), (0.47, 0.93), (0.44, 0.66), (0.34, 0.68)], dark)
    pen.hairs(rng, 150, 0.05, 0.18, lean=3.6)
    pen.disk(0.75, 0.79, 0.03, BLACK)
    pen.disk(0.55, 0.86, 0.022, BLACK)
    pen.line([(0.74, 0.74), (0.62, 0.73)], 0.012, BLACK)


def horse(pen: Pen, rng: np.random.Generator) -> None:
    fur, dark, _pale = _fur(rng)
    pen.line([(-0.42, 0.62), (-0.54, 0.5), (-0.52, 0.2)], 0.06, dark)
    _beast(pen, fur, 0.4, 0.24, 0.44)
    pen.polygon([(0.2, 0.6), (0.42, 0.45), (0.56, 0.86), (0.42, 0.98)], fur)
    pen.polygon([(0.42, 0.97), (0.55, 0.95), (0.76, 0.74), (0.7, 0.66), (0.5, 0.78)], fur)
    pen.polygon([(0.45, 0.95), (0.5, 0.95), (0.48, 1.06)], fur * 0.8)
    pen.line([(0.44, 0.98), (0.34, 0.85), (0.26, 0.64)], 0.06, dark)
    pen.hairs(rng, 120, 0.04, 0.12, lean=3.6)
    for x in (-0.3, 0.36, -0.24, 0.3):
        pen.line([(x, 0.03), (x, 0.0)], 0.07, dark * 0.5)
    pen.disk(0.58, 0.87, 0.016, BLACK)
    pen.disk(0.73, 0.71, 0.012, BLACK)


def cow(pen: Pen, rng: np.random.Generator) -> None:
    fur = hsv(0.05, rng.choice([0.0, 0.55]), rng.choice([0.15, 0.5, 0.93]))
    patch = WHITE if fur.mean() < 0.6 else BLACK + 0.06
    pen.line([(-0.46, 0.7), (-0.52, 0.5), (-0.5, 0.25)], 0.03, fur * 0.7)
    _beast(pen, fur, 0.3, 0.42, 0.48)
    for _ in range(5):
        pen.clip_ellipse(
            rng.uniform(-0.35, 0.3), rng.uniform(0.38, 0.68), rng.uniform(0.06, 0.14), rng.uniform(0.05, 0.1), patch
        )
    pen.ellipse(-0.2, 0.29, 0.07, 0.05, hsv(0.0, 0.3, 0.85))
    pen.polygon([(0.36, 0.72), (0.4, 0.45), (0.58, 0.6), (0.6, 0.86)], fur)
    pen.ellipse(0.6, 0.76, 0.16, 0.12, fur, -0.5)
    pen.ellipse(0.71, 0.67, 0.075, 0.06, hsv(0.02, 0.3, 0.8))
    pen.ellipse(0.46, 0.84, 0.08, 0.035, fur * 0.8, 0.4)
    pen.line([(0.54, 0.88), (0.55, 0.98), (0.62, 1.0)], 0.028, hsv(0.12, 0.2, 0.85))
    pen.hairs(rng, 120, 0.04, 0.12, lean=-1.57)
    pen.disk(0.62, 0.8, 0.018, BLACK)


def sheep(pen: Pen, rng: np.random.Generator) -> None:
    wool, skin = hsv(0.11, rng.uniform(0.02, 0.15), rng.uniform(0.75, 0.97)), hsv(0.07, 0.2, rng.choice([0.12, 0.7]))
    for x, tone in ((-0.26, 0.7), (0.2, 0.7), (-0.2, 1.0), (0.27, 1.0)):
        pen.line([(x, 0.35), (x, 0.0)], 0.07, skin * tone)
    for a in np.linspace(0, 2 * np.pi, 18, endpoint=False):
        pen.disk(0.36 * np.cos(a), 0.56 + 0.2 * np.sin(a), 0.12, wool * (0.85 + 0.12 * np.sin(a)))
    pen.ellipse(0, 0.56, 0.38, 0.24, wool * 0.96)
    for _ in range(40):
        pen.clip_ellipse(rng.uniform(-0.4, 0.4), rng.uniform(0.36, 0.78), 0.05, 0.045, wool * rng.uniform(0.84, 1.08))
    pen.ellipse(0.5, 0.66, 0.12, 0.16, skin, 0.4)
    pen.ellipse(0.4, 0.76, 0.1, 0.035, skin * 0.85, 0.5)
    pen.disk(0.45, 0.84, 0.09, wool)
    pen.disk(0.53, 0.71, 0.018, BLACK if skin.mean() > 0.3 else WHITE)


HEADS: dict[str, Painter] = {
    "cat": cat_head,
    "dog": dog_head,
    "horse": horse_head,
    "cow": cow_head,
    "bird": bird,
    "fish": fish,
}
BODIES: dict[str, Painter] = {
    "dog": dog,
    "horse": horse,
    "cow": cow,
    "sheep": sheep,
    "bird": bird,
}
