"""A studio on the tiny model."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffstyler.cli.studio import CommandEngine
from diffstyler.studio.folder import Folder
from diffstyler.studio.queue import JobQueue
from diffstyler.studio.worker import Worker


def model_words(tiny_dir: Path) -> list[str]:
    return ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """Gradio leaves event loops open, which warn when they are collected: here, and not in another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


@pytest.fixture
def queue(folder: Folder) -> JobQueue:
    return JobQueue(folder.queue)


@pytest.fixture
def engine(studio: Path, tiny_dir: Path, folder: Folder) -> CommandEngine:
    words = model_words(tiny_dir)
    fit = [*words, "--model.rank", "2", "--model.preview_steps", "1"]
    return CommandEngine(fit, words, studio / "loras", folder.path / "trajectories", accelerator="cpu")


@pytest.fixture
def worker(folder: Folder, engine: CommandEngine, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """That tells and asks after every step."""
    monkeypatch.setattr("diffstyler.studio.worker.TELL", 0.0)
    return Worker(folder, engine, threading.Event())
