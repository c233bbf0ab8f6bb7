"""Landscapes: sky, lands and what stands on them, or any outdoor ground for other scenes to stand on."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from noise import fractal_noise
from scene_objects import HEIGHTS, PAINTERS, ROUGHNESS, Color, Painter, hsv
from stage import Stage

TIMES = ("day", "sunset", "night", "overcast")
LANDS = ("mountain", "hill", "field", "desert", "water")


@dataclass(frozen=True)
class Light:
    """The time of day: colors of the sky, and the tint and the direction of the light on things."""

    time: str
    zenith: Color
    horizon: Color
    tint: Color
    from_x: float  # -1: from the left, 1: from the right


def landscape(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """The time of day, and a landscape with zero to five things in it."""
    light = choose_light(rng)
    skyline = rng.uniform(0.32, 0.62)
    stage = outdoors(rng, light, skyline, size)
    stand_things(rng, stage, light, skyline, PAINTERS)
    return light.time, stage


def outdoors(
    rng: np.random.Generator,
    light: Light,
    skyline: float,
    size: int,
    lands: list[tuple[str, float, float]] | None = None,
) -> Stage:
    """Sky and lands, from far to near, each (kind, top as a part of the height, haze); None: lands by chance."""
    image, disk, clouds = _render_sky(rng, light, skyline, size)
    stage = Stage(image, "sky")
    stage.clouds = clouds
    if disk is not None:
        stage.cover("moon" if light.time == "night" else "sun", disk)
    for kind, top, haze in _lay_out(rng, skyline) if lands is None else lands:
        image, covered = _render_land(rng, kind, top, haze, light, image)
        stage.cover(kind, covered)
    stage.paint(image)
    return stage


def choose_light(rng: np.random.Generator) -> Light:
    time = str(rng.choice(TIMES, p=[0.4, 0.25, 0.15, 0.2]))
    jitter = rng.uniform(-1, 1)
    if time == "day":
        zenith, horizon, tint = (
            hsv(0.585 + 0.025 * jitter, rng.uniform(0.5, 0.8), 0.88),
            hsv(0.55, 0.18, 1.0),
            hsv(0.12, 0.06, 1),
        )
    elif time == "sunset":
        zenith, horizon = hsv(rng.uniform(0.6, 0.95), 0.5, 0.5), hsv(0.06 + 0.04 * jitter, 0.75, 1.0)
        tint = hsv(0.06, 0.3, 0.82)
    elif time == "night":
        zenith, horizon, tint = hsv(0.65, 0.7, 0.12), hsv(0.63 + 0.03 * jitter, 0.5, 0.38), hsv(0.62, 0.32, 0.52)
    else:
        zenith, horizon, tint = hsv(0.58, 0.12, 0.58), hsv(0.57, 0.06, 0.84), hsv(0.58, 0.05, 0.8)
    return Light(time, zenith, horizon, tint, float(rng.choice([-1, 1]) * rng.uniform(0.4, 1)))


def _render_sky(
    rng: np.random.Generator, light: Light, skyline: float, size: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The sky (H, W, 3), and the masks (H, W) of its sun or moon and of its clouds, where it has them."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    blend = np.clip(y / skyline, 0, 1)[..., None] ** rng.uniform(0.8, 1.4)
    sky = light.zenith * (1 - blend) + light.horizon * blend
    if light.time == "night":
        stars = rng.random((size, size)) > 0.9985
        sky += cv2.GaussianBlur(stars.astype(np.float32), (0, 0), 0.7)[..., None] * rng.uniform(1.0, 2.5)
    disk = None
    if light.time != "overcast" and rng.random() < 0.6:
        at_x, at_y = 0.5 + 0.38 * light.from_x, skyline * rng.uniform(0.2, 0.85)
        radius = rng.uniform(0.05, 0.11)
        distance = np.hypot(x - at_x, y - at_y)
        disk = distance < radius
        color = (
            hsv(0.13, 0.08, 0.95) if light.time == "night" else hsv(0.14 if light.time == "day" else 0.08, 0.45, 1.0)
        )
        glow = (0.55 * np.exp(-np.maximum(distance - radius, 0) / 0.09))[..., None]
        sky = sky * (1 - glow) + color * glow
        edge = np.clip((radius - distance) * size + 0.5, 0, 1)[..., None]
        face = (
            color * (1 - 0.12 * np.clip(fractal_noise(rng, size, size, octaves=4, base=12), -1, 1))[..., None]
            if light.time == "night"
            else color
        )
        sky = sky * (1 - edge) + face * edge
    if rng.random() < (0.9 if light.time == "overcast" else 0.6):
        clouded, density = _add_clouds(rng, light, sky, disk)
        return clouded, disk, density > 0.35
    return np.clip(sky, 0, 1).astype(np.float32), disk, None


def _add_clouds(
    rng: np.random.Generator, light: Light, sky: np.ndarray, disk: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Drift clouds over the sky, behind the sun or moon; returns the sky and the clouds' density (H, W)."""
    size = len(sky)
    wide = fractal_noise(rng, size, size * 2, octaves=7, persistence=0.55, base=3)
    billows = cv2.resize(wide[:, : int(size * 1.6)], (size, size), interpolation=cv2.INTER_AREA)
    cover = rng.uniform(-0.2, 0.7) if light.time != "overcast" else rng.uniform(-0.9, 0)
    density = np.clip((billows - cover) * rng.uniform(1.0, 2.2), 0, 1)
    lit = np.clip(0.55 + 0.35 * (billows - _shifted(billows, 0, size // 32)), 0, 1)[..., None]
    bright = {
        "day": hsv(0.1, 0.02, 1),
        "sunset": hsv(0.04, 0.4, 1),
        "night": hsv(0.62, 0.3, 0.42),
        "overcast": hsv(0.6, 0.03, 0.9),
    }
    clouds = bright[light.time] * (0.62 + 0.38 * lit)
    if disk is not None:
        density[disk] = 0
    alpha = density[..., None] * 0.92
    return np.clip(sky * (1 - alpha) + clouds * alpha, 0, 1).astype(np.float32), density


def _lay_out(rng: np.random.Generator, skyline: float) -> list[tuple[str, float, float]]:
    """Lands from far to near: (kind, top as a part of the height, haze in [0, 1])."""
    lands: list[tuple[str, float, float]] = []
    if rng.random() < 0.55:
        lands.append(("mountain", skyline, rng.uniform(0.2, 0.5)))
    if rng.random() < 0.4:
        lands.append(("hill", skyline + 0.02, rng.uniform(0.15, 0.35)))
    ground = str(rng.choice(["field", "hill", "desert", "water"], p=[0.33, 0.25, 0.17, 0.25]))
    top = skyline + (0.06 if lands else 0.0) + rng.uniform(0, 0.05)
    lands.append((ground, top, rng.uniform(0, 0.12)))
    if ground == "water":
        if rng.random() < 0.55:
            lands.append((str(rng.choice(["field", "desert", "hill"])), rng.uniform(0.76, 0.88), 0.0))
    elif rng.random() < 0.3:
        lands.append(("water", max(top + 0.15, rng.uniform(0.66, 0.8)), 0.0))
    return lands


def _render_land(
    rng: np.random.Generator, kind: str, top: float, haze: float, light: Light, behind: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cover the picture below a ridge line with one land; returns the picture and the land's mask (H, W)."""
    size = len(behind)
    ridge = _ridge_of(rng, kind, top, size)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    depth = np.clip(y - ridge[None], 0, None)
    if kind == "water":
        surface = _reflect(rng, behind, top, light, depth)
    else:
        surface = SURFACES[kind](rng, x, y, depth, light.from_x) * light.tint
    veil = haze * np.exp(-3 * depth)[..., None]
    surface = surface * (1 - veil) + light.horizon * veil
    edge = np.clip((y - ridge[None]) * size + 0.5, 0, 1)[..., None]
    return (behind * (1 - edge) + np.clip(surface, 0, 1) * edge).astype(np.float32), edge[..., 0] >= 0.5


def _ridge_of(rng: np.random.Generator, kind: str, top: float, size: int) -> np.ndarray:
    """Height of the land's upper edge at each column, (W,), as a part of the picture's height from its top."""
    x = np.linspace(0, 1, size, dtype=np.float32)
    if kind == "island":
        middle, half = rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.35)
        rough = 1 + 0.25 * fractal_noise(rng, 1, size, octaves=6, persistence=0.6, base=3)[0]
        return top - rng.uniform(0.06, 0.2) * rough * np.sqrt(np.clip(1 - ((x - middle) / half) ** 2, 0, 1)) + 0.01
    if kind == "mountain":
        rough = 0.016 * fractal_noise(rng, 1, size, octaves=7, persistence=0.6, base=4)[0]
        peaks = np.zeros(size, np.float32)
        for _ in range(int(rng.integers(2, 5))):
            slope, height = rng.uniform(0.4, 1.1), rng.uniform(0.08, 0.3)
            peaks = np.maximum(peaks, height - slope * np.abs(x - rng.random()))
        return np.maximum(top - peaks - 0.03 + rough, 0.04)
    swell = {
        "hill": (0.045, 3),
        "field": (0.006, 3),
        "desert": (0.022, 3),
        "water": (0.0, 1),
        "sea": (0.0, 1),
        "beach": (0.015, 2),
        "road": (0.0, 1),
        "grass": (0.01, 4),
    }[kind]
    return np.clip(top + swell[0] * fractal_noise(rng, 1, size, octaves=swell[1], persistence=0.4)[0], 0.05, 0.97)


def _mountain(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    size = len(x)
    folds = -np.abs(fractal_noise(rng, size, size, octaves=7, persistence=0.62, base=4))
    slope = (folds - _shifted(folds, int(np.sign(from_x)) * size // 128, 0)) * 0.5
    rock = hsv(rng.choice([0.6, 0.62, 0.07, 0.75]), rng.uniform(0.08, 0.3), rng.uniform(0.42, 0.62))
    surface = rock * (1 + np.clip(slope, -0.5, 0.6))[..., None]
    if rng.random() < 0.6:
        line = y.min() + (y - depth).min() + rng.uniform(0.06, 0.16)
        snow = np.clip((line - y + 0.035 * folds) * 25 + 0.5, 0, 1)[..., None]
        surface = surface * (1 - snow) + hsv(0.58, 0.05, 0.97) * (1 + 0.5 * np.clip(slope, -0.5, 0.1))[..., None] * snow
    else:
        woods = np.clip((depth - 0.1) * 8 + 0.3 * folds, 0, 1)[..., None]
        surface = surface * (1 - woods) + hsv(0.33, 0.35, 0.35) * (1 + slope[..., None]) * woods
    return surface


def _hill(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    size = len(x)
    turf, patch = (
        hsv(rng.uniform(0.2, 0.36), rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.65)),
        hsv(rng.uniform(0.12, 0.3), 0.5, 0.55),
    )
    broad = fractal_noise(rng, size, size, octaves=4)
    fine = fractal_noise(rng, size, size, octaves=4, persistence=0.9, base=24)
    mix = np.clip(0.4 + 0.4 * broad, 0, 1)[..., None] * 0.6
    crest = 0.22 * np.exp(-depth * 14) - 0.35 * np.clip(depth, 0, 0.5)
    roll = 0.12 * (broad - _shifted(broad, int(np.sign(from_x)) * size // 16, 0))
    return (turf * (1 - mix) + patch * mix) * (1 + crest + roll + 0.07 * fine)[..., None]


def _field(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    size = len(x)
    crop = hsv(
        rng.choice([0.13, 0.15, 0.2, 0.25, 0.3, 0.77, 0.99], p=[0.25, 0.2, 0.17, 0.15, 0.13, 0.05, 0.05]),
        rng.uniform(0.45, 0.75),
        rng.uniform(0.6, 0.85),
    )
    soil = crop * rng.uniform(0.55, 0.8) + hsv(0.08, 0.4, 0.08)
    vanishing = rng.uniform(0.1, 0.9)
    furrows = np.sin(
        (x - vanishing) / (depth + 0.05) * rng.uniform(7, 16) + 0.5 * fractal_noise(rng, size, size, octaves=3)
    )
    rows = (0.5 + 0.5 * furrows * np.clip(depth * 6, 0, 1))[..., None]
    fine = fractal_noise(rng, size, size, octaves=4, persistence=0.9, base=24)
    broad = fractal_noise(rng, size, size, octaves=3)
    return (crop * (1 - 0.6 * rows) + soil * 0.6 * rows) * (1 + 0.07 * fine + 0.06 * broad)[..., None]


def _desert(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    size = len(x)
    sand = hsv(rng.uniform(0.06, 0.12), rng.uniform(0.35, 0.6), rng.uniform(0.78, 0.95))
    warp = fractal_noise(rng, size, size, octaves=3, persistence=0.4)
    phase = np.log(depth + 0.08) * rng.uniform(5, 9) + 0.9 * warp + from_x * 2.5 * x
    dunes = np.abs((phase / np.pi) % 2 - 1) ** 1.5 - 0.35
    ripples = np.sin(phase * 14 + 2 * warp) * np.clip(depth * 3, 0, 1)
    fine = fractal_noise(rng, size, size, octaves=3, persistence=0.9, base=40)
    return sand * (1 + 0.34 * dunes + 0.045 * ripples + 0.03 * fine)[..., None]


def _reflect(rng: np.random.Generator, behind: np.ndarray, top: float, light: Light, depth: np.ndarray) -> np.ndarray:
    """A water surface that mirrors what stands above the row `top`, broken by ripples that widen toward the viewer."""
    size = len(behind)
    bands = fractal_noise(rng, size, size // 4, octaves=6, persistence=0.75, base=8)
    bands = cv2.resize(bands[:, : size // 8], (size, size), interpolation=cv2.INTER_LINEAR)
    rows = (np.clip(depth, 0, 1) ** 0.6 * size * 0.9)[:, :1] + np.zeros((1, size))
    waves = cv2.remap(bands, np.mgrid[0:size, 0:size][1].astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    mirrored = 2 * top * size - y + waves * (1 + 14 * depth)
    image = cv2.remap(behind, x, np.clip(mirrored, 0, size - 1).astype(np.float32), cv2.INTER_LINEAR)
    body = (0.55 * light.zenith + 0.45 * light.horizon) * hsv(0.53, 0.25, 0.85)
    deep = np.clip(0.25 + 0.9 * depth, 0, 0.75)[..., None]
    return image * (1 - deep) * 0.92 + body * deep + 0.055 * waves[..., None] * light.tint


def _sea(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    """Waves that grow toward the viewer, with foam on their crests."""
    size = len(x)
    deep = hsv(rng.uniform(0.47, 0.62), rng.uniform(0.35, 0.75), rng.uniform(0.4, 0.75))
    warp = fractal_noise(rng, size, size, octaves=4, persistence=0.6, base=3)
    phase = np.log(depth + 0.03) * rng.uniform(14, 26) + warp * 1.6
    swell = np.sin(phase) * np.clip(0.3 + depth * 2, 0, 1)
    fine = cv2.resize(
        fractal_noise(rng, size, size // 4, octaves=6, persistence=0.85, base=8)[:, : size // 8], (size, size)
    )
    foam = np.clip((np.sin(phase + 0.4) + 0.5 * fine - rng.uniform(0.95, 1.5)) * 4, 0, 1)[..., None]
    water = deep * (1.12 - 0.35 * np.clip(depth, 0, 1) + 0.11 * swell + 0.07 * fine)[..., None]
    return water * (1 - foam * 0.7) + foam * 0.7 * hsv(0.55, 0.05, 0.97)


def _island(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    return _hill(rng, x, y, depth, from_x) * 0.85


def _beach(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    """Sand, dark and wet along the water, with a seam of foam."""
    size = len(x)
    sand = hsv(rng.uniform(0.08, 0.12), rng.uniform(0.2, 0.45), rng.uniform(0.8, 0.97))
    fine = fractal_noise(rng, size, size, octaves=4, persistence=0.9, base=32)
    broad = fractal_noise(rng, size, size, octaves=4)
    wet = 0.35 * np.exp(-depth * 22)
    foam = np.exp(-(((depth - 0.012 - 0.006 * broad) / 0.008) ** 2))[..., None]
    return sand * (1 + 0.05 * fine + 0.05 * broad - wet)[..., None] * (1 - foam) + 0.96 * foam


def _road(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    size = len(x)
    asphalt = hsv(rng.uniform(0.05, 0.65), rng.uniform(0, 0.1), rng.uniform(0.32, 0.6))
    fine = fractal_noise(rng, size, size, octaves=3, persistence=0.9, base=48)
    tracks = cv2.resize(fractal_noise(rng, size // 2, 8, octaves=4, base=4), (size, size))
    return asphalt * (1 + 0.05 * fine + 0.04 * tracks)[..., None]


def _grass(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, depth: np.ndarray, from_x: float) -> np.ndarray:
    size = len(x)
    blades = cv2.resize(fractal_noise(rng, size // 6, size, octaves=5, persistence=0.9, base=12), (size, size))
    return hsv(rng.uniform(0.22, 0.34), 0.6, rng.uniform(0.35, 0.6)) * (1 + 0.2 * blades - 0.3 * depth)[..., None]


SURFACES: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]] = {
    "mountain": _mountain,
    "hill": _hill,
    "field": _field,
    "desert": _desert,
    "sea": _sea,
    "island": _island,
    "beach": _beach,
    "road": _road,
    "grass": _grass,
}


def stand_things(
    rng: np.random.Generator, stage: Stage, light: Light, skyline: float, painters: dict[str, Painter]
) -> None:
    """Stand things on the land and boats on the water, far ones first."""
    places = sorted(_choose_places(rng, stage, skyline, painters), key=lambda place: place[2])
    for kind, x, y, height in places:
        spread = 0.3 if kind in ("tree", "pine") else 0.5
        dark = 0.2 if light.time in ("night", "overcast") else 0.42
        stage.place(
            rng, kind, painters[kind], x / stage.size, y / stage.size, height,
            tint=light.tint, light_x=light.from_x, roughness=ROUGHNESS.get(kind, 0.03),
            shadow=None if kind == "boat" else (spread, dark),
        )  # fmt: skip


def _choose_places(
    rng: np.random.Generator, stage: Stage, skyline: float, painters: dict[str, Painter]
) -> list[tuple[str, int, int, float]]:
    """(kind, column, row of the foot, height as a part of the picture's) for zero to five things."""
    size = stage.size
    ashore = [kind for kind in painters if kind != "boat"]
    weights = np.array([2.0 if kind in ("tree", "house") else 1.0 for kind in ashore])
    places = []
    for _ in range(int(rng.choice(6, p=[0.06, 0.24, 0.28, 0.22, 0.12, 0.08]))):
        x, y = int(rng.uniform(0.06, 0.94) * size), int(rng.uniform(skyline + 0.08, 0.97) * size)
        ground = stage.word_at(x, y)
        if ground not in LANDS or ground == "mountain":
            continue
        kind = "boat" if ground == "water" else str(rng.choice(ashore, p=weights / weights.sum()))
        nearness = (y / size - skyline) / (1 - skyline)
        height = HEIGHTS[kind] * (0.32 + 0.68 * nearness) * rng.uniform(0.75, 1.2)
        places.append((kind, x, y, float(height)))
    return places


def _shifted(field: np.ndarray, right: int, down: int) -> np.ndarray:
    """Move `field` (H, W) by whole pixels, repeating its border."""
    height, width = field.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    return field[rows[:, None], np.clip(np.arange(width) - right, 0, width - 1)]
