"""Pictures to train on: rendered on all cores into chunks on the disk, and read back by each rank."""

import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from captions import write_caption
from dead_leaves import render_leaves
from grounding import word_masks
from painting import TRAINING_STYLES, paint
from torch import Tensor
from training import report
from world import render_scene

SIZES = (256, 384)
PAINTED_PER_SCENE = 2
CHUNK = 48
LARGE_EVERY = 5  # one chunk of scenes in so many is rendered at the larger size


@dataclass(frozen=True)
class Scenes:
    """Pictures of one size: each scene as a photo and in some painted styles, one after the other."""

    pictures: Tensor  # (N, 3, H, W) uint8
    styles: list[str]
    words: list[tuple[str, ...]]
    places: Tensor  # (N / (1 + PAINTED_PER_SCENE), words, H / 8, W / 8) uint8

    def captions(self, rng: np.random.Generator, each: int) -> list[str]:
        """`each` captions for every picture, those of one picture together."""
        return [
            write_caption(rng, style, words)
            for style, words in zip(self.styles, self.words, strict=True)
            for _ in range(each)
        ]


def render(out: Path, scenes: int, leaves: int, first: int, workers: int, minutes: float) -> None:
    """Write `scenes` and `leaves` as chunks into `out`, leaves first, until all are there or the time is over."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(out, "leaves", first + at) for at in range(0, leaves, CHUNK)]
    jobs += [(out, "scenes", first + at) for at in range(0, scenes, CHUNK)]
    done, limit = 0, time.monotonic() + 60 * minutes
    with multiprocessing.get_context("fork").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for done, _ in enumerate(pool.imap_unordered(_render_chunk, jobs), 1):
            if done % 100 == 0:
                report(f"rendered {done} of {len(jobs)} chunks of {CHUNK}")
            if time.monotonic() > limit:
                break
    report(f"rendered {done} of {len(jobs)} chunks of {CHUNK}")


def _render_chunk(job: tuple[Path, str, int]) -> None:
    out, kind, first = job
    seeds = range(first, first + CHUNK)
    if kind == "leaves":
        rows = [_as_bytes(render_leaves(seed, SIZES[0])) for seed in seeds]
        arrays = {"pictures": np.stack(rows)}
    else:
        size = SIZES[(first // CHUNK) % LARGE_EVERY == LARGE_EVERY - 1]
        groups = [_render_in_styles(seed, size) for seed in seeds]
        rows = [row for group, _ in groups for row in group]
        arrays = {
            "pictures": np.stack([picture for picture, _, _ in rows]),
            "names": np.array([json.dumps([style, *words]) for _, style, words in rows]),
            "places": np.stack([masks for _, masks in groups]),
        }
    path = out / f"{kind}-{len(arrays['pictures'][0])}-{first:08}.npz"
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    unfinished.replace(path)


def _render_in_styles(seed: int, size: int) -> tuple[list[tuple[np.ndarray, str, tuple[str, ...]]], np.ndarray]:
    """One scene as a photo and in some painted styles, (picture (H, W, 3) uint8, style, words), and its masks."""
    scene = render_scene(seed, size)
    painted = np.random.default_rng(seed).choice(TRAINING_STYLES[1:], PAINTED_PER_SCENE, replace=False)
    styles = ("photo", *map(str, painted))
    return [(_as_bytes(paint(scene.image, style, seed)), style, scene.words) for style in styles], word_masks(scene)


def load_pictures(directory: Path, kind: str, rank: int, ranks: int) -> Tensor:
    """This rank's share of the smaller pictures of a kind, "leaves" or "scenes", (N, 3, H, W) uint8."""
    chunks = (np.load(path)["pictures"] for path in _chunks(directory, f"{kind}-{SIZES[0]}", rank, ranks))
    return torch.cat([_as_channels(chunk) for chunk in chunks])


def scene_chunks(directory: Path, rank: int, ranks: int) -> list[Path]:
    """This rank's share of the chunks of scenes that are there by now, of all sizes, in the order of their seeds."""
    seeds = {path: int(path.stem.rsplit("-", 1)[1]) for path in directory.glob("scenes-*.npz")}
    return sorted(
        (path for path in seeds if seeds[path] // CHUNK // LARGE_EVERY % ranks == rank), key=seeds.__getitem__
    )


def read_scenes(path: Path) -> Scenes:
    """What `render` wrote into one chunk."""
    arrays = np.load(path)
    names = [json.loads(str(name)) for name in arrays["names"]]
    return Scenes(
        _as_channels(arrays["pictures"]),
        [style for style, *_ in names],
        [tuple(words) for _, *words in names],
        torch.from_numpy(arrays["places"]),
    )


def _chunks(directory: Path, stem: str, rank: int, ranks: int) -> list[Path]:
    paths = sorted(directory.glob(f"{stem}-*.npz"))
    paths = paths[: len(paths) // ranks * ranks][rank::ranks]
    if not paths:
        raise ValueError(f"{directory}: expected at least {ranks} chunks {stem}-*.npz; run `render` first")
    return paths


def _as_channels(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def _as_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)
