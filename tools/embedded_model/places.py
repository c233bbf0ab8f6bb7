"""Scenes other than landscapes: each gives the time of day, or "indoors", and a stage on which all things stand."""

from collections.abc import Callable

import cv2
import numpy as np
from creatures import BODIES, HEADS, Sitter, figure
from landscape import Light, choose_light, outdoors, stand_things
from noise import fractal_noise
from scene_objects import PAINTERS, Color, Pen, hsv
from stage import Stage
from things import (
    TABLE_HEIGHTS,
    TABLE_THINGS,
    VEHICLES,
    airplane,
    blossom,
    bouquet,
    chair,
    curtain,
    facade,
    lamp,
    lighthouse,
    picture,
    ship,
    sofa,
    street_lamp,
    table,
    vase,
    window,
)

Texture = Callable[[int], np.ndarray]


def pasture(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """Animals in the open."""
    light, skyline = choose_light(rng), rng.uniform(0.3, 0.5)
    ground = str(rng.choice(["field", "hill"]))
    lands = [("mountain", skyline, rng.uniform(0.2, 0.5))] if rng.random() < 0.4 else []
    stage = outdoors(rng, light, skyline, size, [*lands, (ground, skyline + 0.04, 0.05)])
    stand_things(rng, stage, light, skyline, {"tree": PAINTERS["tree"], "house": PAINTERS["house"]})
    kind = str(rng.choice(list(BODIES)))
    for y in np.sort(rng.uniform(skyline + 0.2, 0.97, int(rng.integers(1, 5)))):
        height = rng.uniform(0.8, 1.1) * (0.12 + 0.5 * (y - skyline)) * (0.55 if kind == "bird" else 1.0)
        stage.place(
            rng, kind, BODIES[kind], rng.uniform(0.12, 0.88), y, height,
            tint=light.tint, light_x=light.from_x, roughness=0.06, shadow=(0.55, 0.3),
        )  # fmt: skip
    return light.time, stage


def street(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """Buildings, a road and who is on it: seen from across the road, or along it."""
    light = choose_light(rng)
    along = rng.random() < 0.5
    skyline = rng.uniform(0.42, 0.56) if along else rng.uniform(0.58, 0.68)
    stage = outdoors(rng, light, skyline, size, [("road", skyline + (0.01 if along else 0.0), 0.1)])
    feet = _buildings_along(rng, stage, light, skyline) if along else _buildings_across(rng, stage, light, skyline)
    for word, x, y, height in sorted(feet, key=lambda foot: foot[2]):
        painter = {**VEHICLES, **PAINTERS, "person": figure, "lamp": street_lamp}[word]
        stage.place(
            rng, word, painter, x, y, height, tint=light.tint, light_x=light.from_x,
            shadow=(0.25 if word in ("lamp", "tree", "person") else 1.4, 0.35),
        )  # fmt: skip
    return light.time, stage


def _buildings_across(
    rng: np.random.Generator, stage: Stage, light: Light, skyline: float
) -> list[tuple[str, float, float, float]]:
    """A row of fronts behind a sidewalk; returns things to place: (word, x, y, height)."""
    x = rng.uniform(-0.15, 0.0)
    while x < 1:
        wide, top = rng.uniform(0.16, 0.4), rng.uniform(0.04, skyline - 0.2)
        if rng.random() < 0.85:
            corners = np.array([(x, 1 - top), (x + wide, 1 - top), (x + wide, 1 - skyline), (x, 1 - skyline)])
            _put_facade(rng, stage, light, corners)
        x += wide
    curb = skyline + rng.uniform(0.05, 0.1)
    pave = _paving(rng, hsv(rng.uniform(0.05, 0.6), 0.06, rng.uniform(0.55, 0.8)) * light.tint, 0.05)
    stage.surface("sidewalk", [(-0.1, skyline), (1.1, skyline), (1.1, curb), (-0.1, curb)], pave)
    lane = (curb + 1.0) / 2 + 0.02
    _mark_road(stage, light, [((k * 0.2, lane), (k * 0.2 + 0.1, lane)) for k in range(-1, 6)], 0.012)
    things = [("lamp", rng.uniform(0.05, 0.95), curb - 0.01, 0.5) for _ in range(int(rng.integers(0, 3)))]
    things += [
        ("tree", rng.uniform(0.05, 0.95), curb - 0.02, rng.uniform(0.3, 0.5)) for _ in range(int(rng.integers(0, 3)))
    ]
    for _ in range(int(rng.integers(0, 4))):
        things.append(("person", rng.uniform(0.05, 0.95), rng.uniform(skyline + 0.03, curb), rng.uniform(0.19, 0.24)))
    for y in (curb + 0.12, 0.97)[: int(rng.integers(0, 3))]:
        kind = str(rng.choice(["car", "bus", "bicycle"], p=[0.6, 0.2, 0.2]))
        scale = {"car": 0.17, "bus": 0.34, "bicycle": 0.2}[kind] * (0.6 + 0.6 * y)
        things.append((kind, rng.uniform(0.15, 0.85), y, scale * rng.uniform(0.9, 1.1)))
    return things


def _buildings_along(
    rng: np.random.Generator, stage: Stage, light: Light, skyline: float
) -> list[tuple[str, float, float, float]]:
    """Two rows of buildings that run to a vanishing point; returns things to place: (word, x, y, height)."""
    at, half = rng.uniform(0.35, 0.65), rng.uniform(0.32, 0.5)  # of the vanishing point; of the road at depth 1
    drop = 1 - skyline
    pave = _paving(rng, hsv(rng.uniform(0.05, 0.6), 0.06, rng.uniform(0.55, 0.8)) * light.tint, 0.03)
    for side in (-1, 1):
        outer = at + side * (half + 0.35) * 1.6
        stage.surface(
            "sidewalk",
            [(at, skyline), (at + side * half * 1.6, skyline + drop * 1.6), (outer, skyline + drop * 1.6)],
            pave,
        )
    spans = []
    for side in (-1, 1):
        z = 0.75
        while z < 8:
            deep = z + rng.uniform(0.4, 0.8) * z**0.8
            spans.append((deep, z, side, rng.uniform(0.5, 1.4)))
            z = deep
    for far, near, side, tall in sorted(spans, reverse=True):
        x = [at + side * (half + 0.2) / z for z in (far, near)]
        low, high = [1 - skyline - drop / z for z in (far, near)], [1 - skyline + tall / z for z in (far, near)]
        order = (0, 1) if side > 0 else (1, 0)
        corners = np.array([(x[k], high[k]) for k in order] + [(x[k], low[k]) for k in order[::-1]])
        _put_facade(rng, stage, light, corners)
    dashes = []
    for z in np.arange(0.9, 6, 0.5):
        dashes.append(((at, skyline + drop / z), (at, skyline + drop / (z + 0.22))))
    _mark_road(stage, light, dashes, 0.012)
    things = []
    for _ in range(int(rng.integers(1, 5))):
        z, side = rng.uniform(1.1, 3), rng.choice([-1, 1])
        kind = str(rng.choice(["car", "bus", "bicycle"], p=[0.6, 0.2, 0.2]))
        scale = {"car": 0.2, "bus": 0.42, "bicycle": 0.24}[kind]
        things.append((kind, at + side * half * 0.5 / z, skyline + drop / z, scale / z))
    for _ in range(int(rng.integers(1, 7))):
        z, side = rng.uniform(1.05, 3.5), rng.choice([-1, 1])
        kind = str(rng.choice(["person", "lamp", "tree"], p=[0.55, 0.25, 0.2]))
        scale = {"person": 0.36, "lamp": 0.7, "tree": 0.7}[kind]
        things.append((kind, at + side * (half + 0.1) / z, skyline + drop / z, scale / z))
    return things


def _put_facade(rng: np.random.Generator, stage: Stage, light: Light, corners: np.ndarray) -> None:
    """A building whose front has `corners` (4, 2) in parts of the picture, y upward."""
    stage.place(
        rng, "building", lambda pen, rng: facade(pen, rng, corners), 0, 1, 1,
        tint=light.tint, light_x=light.from_x * 0.5, roughness=0.05, mirrored=False,
    )  # fmt: skip


def _mark_road(
    stage: Stage, light: Light, dashes: list[tuple[tuple[float, float], tuple[float, float]]], width: float
) -> None:
    """White lines, where the road is seen; they are part of it."""
    side = stage.size
    paint = np.zeros((side, side), np.uint8)
    for start, end in dashes:
        ends = [tuple(round(v * side) for v in point) for point in (start, end)]
        cv2.line(paint, ends[0], ends[1], 255, max(1, round(width * side)), cv2.LINE_AA)
    seen = stage.labels == stage.named.index("road") if "road" in stage.named else np.zeros((side, side), bool)
    alpha = (paint * seen)[..., None].astype(np.float32) / 255 * 0.85
    stage.paint(stage.image() * (1 - alpha) + np.clip(light.tint * 0.95, 0, 1) * alpha)


def sea(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """Open water with ships, an island, a lighthouse, a beach."""
    light, horizon = choose_light(rng), rng.uniform(0.35, 0.58)
    lands = [("island", horizon - 0.005, rng.uniform(0.1, 0.4))] if rng.random() < 0.45 else []
    lands.append(("sea", horizon, 0.05))
    shore = rng.uniform(0.7, 0.85) if rng.random() < 0.5 else 1.0
    if shore < 1:
        lands.append(("beach", shore, 0.0))
    stage = outdoors(rng, light, horizon, size, lands)
    for y in np.sort(rng.uniform(horizon + 0.03, min(shore - 0.05, 0.9), int(rng.integers(0, 4)))):
        word = str(rng.choice(["ship", "boat"]))
        height = (0.35 if word == "ship" else 0.45) * (0.25 + 1.1 * (y - horizon)) * rng.uniform(0.9, 1.3)
        painter = ship if word == "ship" else PAINTERS["boat"]
        stage.place(rng, word, painter, rng.uniform(0.1, 0.9), y, height, tint=light.tint, light_x=light.from_x)
    if rng.random() < 0.4:
        x, foot = rng.choice([rng.uniform(0.08, 0.3), rng.uniform(0.7, 0.92)]), rng.uniform(horizon + 0.05, 0.75)
        stage.place(
            rng, "rock", PAINTERS["rock"], x, foot + 0.03, 0.12, tint=light.tint, light_x=light.from_x, roughness=0.12
        )
        stage.place(
            rng,
            "lighthouse",
            lighthouse,
            x,
            foot - 0.04,
            rng.uniform(0.35, 0.55),
            tint=light.tint,
            light_x=light.from_x,
        )
    for _ in range(int(rng.integers(0, 4)) if shore < 1 else 0):
        word = str(rng.choice(["person", "ball", "rock", "dog"]))
        painter, height = (
            {**PAINTERS, **BODIES, "person": figure}[word],
            {"person": 0.36, "ball": 0.12, "rock": 0.12, "dog": 0.2}[word],
        )
        stage.place(
            rng, word, painter, rng.uniform(0.08, 0.92), rng.uniform(shore + 0.08, 0.97), height,
            tint=light.tint, light_x=light.from_x, shadow=(0.5, 0.35),
        )  # fmt: skip
    return light.time, stage


def room(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """A wall and a floor with furniture."""
    light_x = float(rng.choice([-1, 1]) * rng.uniform(0.3, 0.9))
    tint = _lamplight(rng)
    stage, edge = Stage(_wall(rng, tint, light_x)(size), "wall"), rng.uniform(0.58, 0.72)
    boards = _boards(rng, hsv(rng.uniform(0.04, 0.1), rng.uniform(0.15, 0.6), rng.uniform(0.3, 0.75)) * tint, edge)
    stage.surface("floor", [(-0.1, edge), (1.1, edge), (1.1, 1.1), (-0.1, 1.1)], boards)

    def put(word: str, painter: Callable[[Pen, np.random.Generator], None], x: float, y: float, height: float) -> None:
        standing = (0.8, 0.3) if y > edge - 0.01 else None
        stage.place(rng, word, painter, x, y, height, tint=tint, light_x=light_x, shadow=standing)

    places = rng.permutation([0.18, 0.5, 0.82])
    if rng.random() < 0.6:
        put("window", window, places[0], edge - rng.uniform(0.18, 0.24), rng.uniform(0.3, 0.4))
        if rng.random() < 0.6:
            for side in (-1, 1):
                put("curtain", curtain, places[0] + side * 0.2, edge - 0.06, edge - 0.1)
    for x in places[1 : int(rng.integers(1, 4))]:
        put("picture", picture, x + rng.uniform(-0.05, 0.05), edge - rng.uniform(0.25, 0.35), rng.uniform(0.14, 0.24))
    slots = rng.permutation([0.22, 0.52, 0.8])
    main = str(rng.choice(["sofa", "table", "chair"]))
    foot = rng.uniform(edge + 0.08, 0.92)
    height = {"sofa": 0.34, "table": 0.32, "chair": 0.45}[main] * rng.uniform(0.9, 1.15)
    put(main, {"sofa": sofa, "table": table, "chair": chair}[main], slots[0], foot, height)
    if main == "table":
        for dx in (-0.14, 0.1):
            word = str(rng.choice([*TABLE_THINGS, "vase", "lamp"]))
            _put_on_table(rng, stage, word, slots[0] + dx, foot - height * 0.9, 0.55, tint, light_x)
    if rng.random() < 0.5:
        put("lamp", lamp, slots[1], rng.uniform(edge + 0.03, edge + 0.12), rng.uniform(0.4, 0.6))
    if rng.random() < 0.5:
        put("chair", chair, slots[2], rng.uniform(edge + 0.12, 0.97), rng.uniform(0.36, 0.5))
    if rng.random() < 0.35:
        word = str(rng.choice(["cat", "dog"]))
        put(
            word,
            PAINTERS["cat"] if word == "cat" else BODIES["dog"],
            rng.uniform(0.15, 0.85),
            rng.uniform(0.86, 0.98),
            0.26,
        )
    if rng.random() < 0.3:
        put(
            "person",
            figure,
            rng.uniform(0.15, 0.85),
            rng.uniform(edge + 0.12, 0.95),
            rng.uniform(0.55, 0.68),
        )
    return "indoors", stage


def still_life(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """Fruit, dishes, flowers and books on a table before a wall."""
    light_x, tint = float(rng.choice([-1, 1]) * rng.uniform(0.4, 1)), _lamplight(rng)
    plain = rng.random() < 0.4
    stage = Stage(_wall(rng, tint, light_x)(size), "background" if plain else "wall")
    if rng.random() < 0.6 or plain:
        stage.blur(rng.uniform(0.004, 0.03))
    edge = rng.uniform(0.5, 0.68)
    if rng.random() < 0.5:
        top = _boards(rng, hsv(rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.7)) * tint, edge)
    else:
        top = _cloth(rng, hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.4, 0.95)) * tint)
    stage.surface("table", [(-0.1, edge), (1.1, edge), (1.1, 1.1), (-0.1, 1.1)], top)
    scale = rng.uniform(0.85, 1.5)
    words = [*TABLE_THINGS, "vase", "vase", "lamp", *rng.choice(list(TABLE_THINGS), 2)]
    count = int(rng.integers(1, 8))
    spots = sorted(
        zip(rng.permutation(np.linspace(0.14, 0.86, count)), rng.uniform(edge + 0.05, 0.95, count), strict=True),
        key=lambda spot: spot[1],
    )
    for x, y in spots:
        _put_on_table(
            rng, stage, str(rng.choice(words)), float(x + rng.normal(0, 0.03)), float(y), scale, tint, light_x
        )
    return "indoors", stage


def _put_on_table(
    rng: np.random.Generator, stage: Stage, word: str, x: float, y: float, scale: float, tint: Color, light_x: float
) -> None:
    painter = {**TABLE_THINGS, "vase": vase, "lamp": lamp}[word]
    height = scale * rng.uniform(0.85, 1.15) * {**TABLE_HEIGHTS, "vase": 0.34, "lamp": 0.5}[word]
    wide = {"vase": 0.4, "lamp": 0.3, "bottle": 0.25, "plate": 2.3, "bread": 1.1, "bowl": 0.8, "book": 1.1}.get(
        word, 0.55
    )
    stage.place(rng, word, painter, x, y, height, tint=tint, light_x=light_x, roughness=0.035, shadow=(wide, 0.45))
    if word == "vase" and rng.random() < 0.75:
        stage.place(
            rng, "flower", bouquet, x, y - height * 0.97, height * rng.uniform(0.8, 1.2), tint=tint, light_x=light_x
        )


def portrait(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """Someone from the shoulders up, before a wall, a landscape out of focus or nothing much."""
    setting, stage, tint, light_x = _backdrop(rng, size)
    crowd = 2 if rng.random() < 0.12 else 1
    for k in range(crowd):
        sitter, height = Sitter.choose(rng), rng.uniform(0.75, 1.25) * (0.8 if crowd == 2 else 1)
        x = rng.uniform(0.36, 0.64) if crowd == 1 else 0.3 + 0.4 * k
        y, mirrored = max(1.0, rng.uniform(0.05, 0.12) + height), bool(rng.random() < 0.5)
        for word, painter in sitter.parts():
            stage.place(
                rng, word, painter, x, y, height, tint=tint, light_x=light_x, mirrored=mirrored,
                roughness=0.045 if word == "shirt" else 0.02,
            )  # fmt: skip
    return setting, stage


def closeup(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """One animal, large."""
    setting, stage, tint, light_x = _backdrop(rng, size)
    word = str(rng.choice(list(HEADS)))
    if word == "fish":
        blue = np.broadcast_to(
            hsv(rng.uniform(0.48, 0.6), rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.9)), (size, size, 3)
        )
        slow = 1 + 0.2 * fractal_noise(rng, size, size, octaves=4)[..., None]
        stage, setting = Stage(np.clip(blue * slow, 0, 1), "water"), "day"
        small = [((0.1, 0.9), (0.3, 0.95), (0.15, 0.3))] * int(rng.integers(0, 3))
        for ranges in (*small, ((0.42, 0.58), (0.72, 0.85), (0.42, 0.6))):
            x, y, height = (rng.uniform(*bounds) for bounds in ranges)
            stage.place(rng, word, HEADS[word], x, y, height, light_x=light_x)
        return setting, stage
    height = rng.uniform(0.6, 0.95)
    y = rng.uniform(0.9, 0.98) if word == "bird" else max(1.02, height + rng.uniform(0.0, 0.12))
    stage.place(rng, word, HEADS[word], rng.uniform(0.4, 0.6), y, height, tint=tint, light_x=light_x, roughness=0.05)
    return setting, stage


def vehicle(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """One vehicle, large: on a road, on rails or in the air."""
    light, word = choose_light(rng), str(rng.choice([*VEHICLES, "airplane"]))
    x = rng.uniform(0.4, 0.6)
    if word == "airplane":
        skyline = rng.uniform(0.8, 0.95)
        stage = outdoors(rng, light, skyline, size, [("hill", skyline, 0.3)])
        stage.place(
            rng,
            word,
            airplane,
            x,
            rng.uniform(0.5, 0.72),
            rng.uniform(0.2, 0.32),
            tint=light.tint,
            light_x=light.from_x,
        )
        return light.time, stage
    skyline = rng.uniform(0.42, 0.55)
    middle = (
        [("hill", skyline, 0.2)] if rng.random() < 0.6 else [("mountain", skyline, 0.3), ("field", skyline + 0.04, 0.1)]
    )
    ground = "field" if word == "train" else "road"
    stage = outdoors(rng, light, skyline, size, [*middle, (ground, skyline + rng.uniform(0.12, 0.18), 0.0)])
    if rng.random() < 0.5:
        stage.blur(rng.uniform(0.004, 0.015))
    height = {"car": 0.28, "bus": 0.36, "train": 0.34, "bicycle": 0.52}[word] * rng.uniform(0.85, 1.15)
    stage.place(
        rng, word, VEHICLES[word], x, rng.uniform(0.84, 0.93), height, tint=light.tint, light_x=light.from_x,
        shadow=(0.8 if word == "bicycle" else 1.4, 0.4),
    )  # fmt: skip
    return light.time, stage


def flowers(rng: np.random.Generator, size: int) -> tuple[str, Stage]:
    """Flowers close up, before grass out of focus."""
    light = choose_light(rng)
    if rng.random() < 0.5:
        stage = outdoors(rng, light, 0.25, size, [("hill", 0.28, 0.2), ("grass", rng.uniform(0.3, 0.5), 0.0)])
    else:
        green = hsv(rng.uniform(0.24, 0.36), rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.5)) * light.tint
        stage = Stage(_grass(rng, green)(size), "grass")
    stage.blur(rng.uniform(0.004, 0.025))
    hues = rng.random(2)
    for reach in np.sort(rng.uniform(0.1, 0.42, int(rng.integers(1, 8)))):
        hue, stem = hues[int(rng.integers(2))], hsv(0.3, 0.6, rng.uniform(0.3, 0.5))

        def painter(pen: Pen, rng: np.random.Generator, hue: float = hue, stem: Color = stem) -> None:
            pen.line([(rng.uniform(-0.3, 0.3), -3), (0, 0)], 0.1, stem)
            blossom(pen, rng, 0, 0, 1.0, hue)

        at = (rng.uniform(0.15, 0.85), rng.uniform(0.2, 0.75))
        stage.place(rng, "flower", painter, *at, reach * 0.75, tint=light.tint, light_x=light.from_x)
    return light.time, stage


def _backdrop(rng: np.random.Generator, size: int) -> tuple[str, Stage, Color, float]:
    """What stands behind a portrait: (time of day or "indoors", stage, tint of the light, its side)."""
    kind = int(rng.integers(3))
    if kind == 0:
        light, skyline = choose_light(rng), rng.uniform(0.35, 0.7)
        stage = outdoors(rng, light, skyline, size)
        stage.blur(rng.uniform(0.005, 0.025))
        return light.time, stage, np.maximum(light.tint, 0.5), light.from_x
    tint, light_x = _lamplight(rng), float(rng.choice([-1, 1]) * rng.uniform(0.4, 1))
    if kind == 1:
        stage = Stage(_wall(rng, tint, light_x)(size), "wall")
        if rng.random() < 0.5:
            stage.blur(rng.uniform(0.004, 0.02))
        return "indoors", stage, tint, light_x
    image = np.ones((size, size, 3), np.float32) * hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.1, 0.9))
    image = image * (
        1 + rng.uniform(0.05, 0.3) * fractal_noise(rng, size, size, octaves=int(rng.integers(1, 5)))[..., None]
    )
    stage = Stage(np.clip(image, 0, 1), "background")
    if rng.random() < 0.35:  # lights out of focus
        for _ in range(int(rng.integers(5, 25))):
            center = tuple(int(v) for v in rng.uniform(0, 2 * size, 2))
            color = tuple(float(v) for v in 255 * hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.4, 1)))
            cv2.circle(stage.canvas, center, int(rng.uniform(0.02, 0.12) * size), color, -1, cv2.LINE_AA)
        stage.blur(rng.uniform(0.006, 0.03))
    return "indoors", stage, tint, light_x


def _lamplight(rng: np.random.Generator) -> Color:
    return hsv(rng.uniform(0.05, 0.15) if rng.random() < 0.7 else 0.6, rng.uniform(0, 0.22), rng.uniform(0.72, 1.0))


def _wall(rng: np.random.Generator, tint: Color, light_x: float) -> Texture:
    """Plaster, stripes, paper with a pattern, panels or bricks, lit from one side."""
    color = hsv(rng.random(), rng.uniform(0.02, 0.5), rng.uniform(0.35, 0.95)) * tint
    kind, count, second = int(rng.integers(5)), int(rng.integers(6, 18)), rng.uniform(0.75, 1.15)

    def texture(size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        gain = (
            1
            - 0.3 * light_x * (x - 0.5)
            - 0.15 * (y - 0.3)
            + 0.03 * fractal_noise(rng, size, size, octaves=6, persistence=0.7)
        )
        pattern = np.zeros_like(x)
        if kind == 1:
            pattern = (np.sin(x * np.pi * 2 * count) > 0).astype(np.float32)
        elif kind == 2:
            pattern = (np.cos(x * np.pi * 2 * count) * np.cos(y * np.pi * 2 * count) > 0.6).astype(np.float32)
        elif kind == 3:
            pattern = ((x * count / 2) % 1 < 0.04).astype(np.float32)
        elif kind == 4:
            row = np.floor(y * count * 1.6)
            joint = ((y * count * 1.6) % 1 < 0.1) | ((x * count * 0.7 + 0.5 * (row % 2)) % 1 < 0.05)
            pattern = joint.astype(np.float32)
        gain = gain * (1 + (second - 1) * cv2.GaussianBlur(pattern, (0, 0), 0.6))
        return np.clip(color * gain[..., None], 0, 1).astype(np.float32)

    return texture


def _boards(rng: np.random.Generator, color: Color, edge: float) -> Texture:
    """Wooden boards that run toward the viewer, or across."""
    toward, count = rng.random() < 0.6, rng.uniform(4, 10)

    def texture(size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        depth = np.maximum(y - edge, 0) + 0.12
        across = (x - 0.5) / depth * 0.4 if toward else np.log(depth) * 2
        board = np.floor(across * count)
        tone = 0.85 + 0.25 * np.abs(np.sin(board * 12.9898) * 43758.5453 % 1)
        joint = 1 - 0.45 * ((across * count) % 1 < 0.06)
        shape = (size, max(size // 16, 8)) if toward else (max(size // 16, 8), size)
        grain = cv2.resize(fractal_noise(rng, *shape[::-1], octaves=5, persistence=0.9, base=8), (size, size))
        return color * (tone * joint * (1 + 0.06 * grain) * (0.85 + 0.35 * (y - edge)))[..., None]

    return texture


def _cloth(rng: np.random.Generator, color: Color) -> Texture:
    """A tablecloth: plain with folds, checked or striped."""
    kind, count, angle = int(rng.integers(3)), rng.uniform(6, 16), rng.uniform(-0.4, 0.4)

    def texture(size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        folds = 0.07 * fractal_noise(rng, size, size, octaves=3) + 0.02 * fractal_noise(
            rng, size, size, octaves=3, persistence=0.9, base=32
        )
        u, v = x + angle * y, y * 1.6 - angle * x
        pattern = (np.sin(u * np.pi * 2 * count) > 0) * (kind > 0) * 0.5 + (np.sin(v * np.pi * 2 * count) > 0) * (
            kind == 2
        ) * 0.5
        return color * ((1 + folds) * (1 - 0.45 * pattern))[..., None]

    return texture


def _paving(rng: np.random.Generator, color: Color, slab: float) -> Texture:
    def texture(size: int) -> np.ndarray:
        y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
        joints = ((x % (slab * 1.6)) < 0.006) | ((y % (slab * 0.7)) < 0.005)
        fine = fractal_noise(rng, size, size, octaves=4, persistence=0.9, base=24)
        return color * ((1 + 0.06 * fine) * (1 - 0.2 * joints))[..., None]

    return texture


def _grass(rng: np.random.Generator, color: Color) -> Texture:
    def texture(size: int) -> np.ndarray:
        blades = cv2.resize(
            fractal_noise(rng, max(size // 6, 8), size, octaves=5, persistence=0.9, base=12), (size, size)
        )
        broad = fractal_noise(rng, size, size, octaves=4)
        return color * (1 + 0.25 * blades + 0.2 * broad)[..., None]

    return texture
