"""The rendered world: a seed comes in; a picture, the words for what it shows and their exact masks go out."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from creatures import BODIES, HEADS
from landscape import LANDS, TIMES, landscape
from places import closeup, flowers, pasture, portrait, room, sea, still_life, street, vehicle
from scene_objects import PAINTERS
from stage import Stage
from things import TABLE_THINGS, VEHICLES

SETTINGS = (*TIMES, "indoors")
PARTS = {"clouds": "sky", "face": "person", "hair": "person", "hat": "person", "shirt": "person"}
_THINGS = ("airplane", "ship", "lighthouse", "building", "lamp", "wall", "floor", "table", "chair", "sofa", "vase")
_PLACES = ("sea", "beach", "island", "road", "sidewalk", "grass", "window", "curtain", "picture", "background")
WORDS = tuple(
    dict.fromkeys(
        (
            *SETTINGS,
            "sky",
            "sun",
            "moon",
            *PARTS,
            *LANDS,
            *PAINTERS,
            *HEADS,
            *BODIES,
            *TABLE_THINGS,
            *VEHICLES,
            *_THINGS,
            *_PLACES,
        )
    )
)
Kind = Callable[[np.random.Generator, int], tuple[str, Stage]]
KINDS: dict[str, tuple[Kind, float]] = {  # with the share of the seeds
    "landscape": (landscape, 0.36),
    "pasture": (pasture, 0.06),
    "street": (street, 0.1),
    "sea": (sea, 0.06),
    "room": (room, 0.07),
    "still life": (still_life, 0.09),
    "portrait": (portrait, 0.09),
    "closeup": (closeup, 0.08),
    "vehicle": (vehicle, 0.06),
    "flowers": (flowers, 0.03),
}


@dataclass(frozen=True)
class Scene:
    """`masks` holds the visible pixels of every word but the first, which is the time of day or "indoors".

    The masks of all words that are no key of `PARTS` partition the picture. A key of `PARTS` lies within its value
    where that is seen too; the parts of a portrayed person partition the person.
    """

    image: np.ndarray  # (H, W, 3) float32 in [0, 1]
    words: tuple[str, ...]
    masks: dict[str, np.ndarray]  # word -> (H, W) bool


def render_scene(seed: int, size: int = 256, *, kind: str | None = None) -> Scene:
    """Render one scene, of one of `KINDS` or of a kind by chance; the same arguments give the same scene."""
    cv2.setNumThreads(1)
    if kind is None:
        kind = str(np.random.default_rng([seed, 2]).choice(list(KINDS), p=[share for _, share in KINDS.values()]))
    rng = np.random.default_rng(seed)
    setting, stage = KINDS[kind][0](rng, size)
    image = _develop(rng, stage.image())
    masks = stage.masks()
    parts = [masks[word] for word, whole in PARTS.items() if whole == "person" and word in masks]
    if parts:
        masks["person"] = np.logical_or.reduce(parts + [masks[word] for word in ("person",) if word in masks])
    return Scene(image, (setting, *masks), masks)


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a camera adds: exposure, contrast, white balance and a little grain."""
    contrast, exposure = rng.uniform(0.9, 1.12), rng.uniform(0.94, 1.06)
    balance = 1 + rng.normal(0, 0.02, 3).astype(np.float32)
    grain = rng.standard_normal(image.shape[:2], np.float32)[..., None] * 0.008
    return np.clip((image - 0.5) * contrast + 0.5 * exposure * balance + grain, 0, 1).astype(np.float32)
