"""What every tab of the page shares: the queue, the pictures, the library as things to choose from, and masks."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

from PIL import Image

from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.api import masks
from diffstyler.errors import DiffstylerError, printable
from diffstyler.examples import HERE as EXAMPLES
from diffstyler.studio.engine import Engine
from diffstyler.studio.folder import Folder
from diffstyler.studio.queue import Job, JobQueue

STATIC = Path(__file__).with_name("static")
#: pictures of the package that can be styles, or photographs
EXAMPLE_STYLES = ("mosaic", "impasto", "watercolor", "pointillism", "hatching")
EXAMPLE_PHOTOGRAPHS = ("cottage", "cat", "coffee", "astronaut")


class Item(TypedDict):
    """A style to choose: ``id`` says which one, the rest is seen; ``picture`` is what is chosen of a style that was
    not fitted yet."""

    id: str
    picture: str
    name: str
    url: str
    note: str


class Shop:
    """What the tabs work with.

    Args:
        engine: finds masks.
        folder: of the studio.
    """

    def __init__(self, engine: Engine, folder: Folder) -> None:
        self.engine = engine
        self.folder = folder
        self.queue = JobQueue(folder.queue)
        self.library = LoRALibrary(engine.lora_dir)
        self._one_at_a_time = threading.Lock()

    # ---- styles

    @cached_property
    def examples(self) -> dict[str, Path]:
        """The package's pictures by name, kept as uploads are."""
        names = (*EXAMPLE_STYLES, *EXAMPLE_PHOTOGRAPHS)
        return {name: self.folder.keep_picture(EXAMPLES / "pictures" / f"{name}.jpg") for name in names}

    @cached_property
    def model(self) -> str:
        """What LoRAs must have been fitted on."""
        return self.engine.finetuner({})[0].backbone.fingerprint()

    def items(self, own: Sequence[str] = (), *, fitted_alone: bool = False) -> list[Item]:
        """Pictures without a LoRA that a session brought (tokens), the library's LoRAs of the studio's model, examples.

        Args:
            own: what the session brought.
            fitted_alone: the library alone, all of it.
        """
        entries = [entry for entry in self.library.entries() if entry.identity.role == "style"]
        if fitted_alone:
            return [self._item(entry) for entry in entries]
        entries = [entry for entry in entries if entry.identity.model == self.model]
        items = [self._item(entry) for entry in entries]
        known = {entry.identity.picture for entry in entries}
        pictures = [self.folder.picture(token) for token in own] + [self.examples[name] for name in EXAMPLE_STYLES]
        new = {path.parent.name: path for path in pictures if path.parent.name not in known}
        brought = [
            Item(id=f"picture:{self.folder.token_of(p)}", picture="", name=p.stem, url=url(p), note="to be learned")
            for p in new.values()
        ]
        return brought[: len(own)] + items + brought[len(own) :]

    def _item(self, entry: FittedLoRA) -> Item:
        source = entry.folder / "thumbnail.png"
        picture = url(self.folder.thumbnail(source, entry.identity.key)) if source.is_file() else BLANK
        former = f"picture:{entry.identity.picture}/"
        name = entry.identity.name
        return Item(id=f"lora:{entry.folder.name}", picture=former, name=name, url=picture, note="learned")

    @property
    def stock(self) -> str:
        """Differs when the library does."""
        folder = self.library.lora_dir
        return "\n".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ""

    def entry(self, id: str) -> FittedLoRA:
        """What an item's id names in the library.

        Raises:
            DiffstylerError: it is not there.
        """
        name = id.removeprefix("lora:")
        found = next((entry for entry in self.library.entries() if entry.folder.name == name), None)
        if found is None:
            raise DiffstylerError(f"{name}: no such LoRA in {self.library.lora_dir}; was it renamed or deleted?")
        return found

    def style(self, id: str) -> dict[str, str]:
        """What a request says of a style: its ``name``, and its ``lora`` or its ``picture``, which is to be fitted."""
        if id.startswith("lora:"):
            entry = self.entry(id)
            return {"name": entry.identity.name, "lora": str(entry.folder.resolve())}
        path = self.folder.picture(id.removeprefix("picture:"))
        return {"name": path.stem, "picture": str(path)}

    # ---- masks

    def masks(self, picture: Path, prompts: Sequence[str]) -> list[Image.Image]:
        """What the prompts find, by the studio's model and masker, see :func:`diffstyler.api.masks`."""
        with self._one_at_a_time:
            return masks(picture, prompts, self._stylizer)

    def warm(self) -> None:
        """Load what finds words."""
        with self._one_at_a_time:
            if not self._stylizer.backbone.is_loaded:
                self._stylizer.backbone.load()

    @cached_property
    def _stylizer(self):  # noqa: ANN202
        return self.engine.stylizer("predict", {}, self.folder.path)

    # ---- sessions

    @staticmethod
    def session(given: object) -> str:
        """A tab's own name, as its browser keeps it; a new one where that is none."""
        return given if isinstance(given, str) and re.fullmatch("[0-9a-f]{32}", given) else secrets.token_hex(16)

    def own(self, kind: str, session: str) -> Job | None:
        return self.queue.latest(kind, session)  # type: ignore[arg-type]


BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def url(path: Path) -> str:
    """Where the page has a file of the studio; none of these is ever written anew while it may be read."""
    return f"gradio_api/file={quote(str(path))}"


def told(text: object, *, wrong: bool = False) -> str:
    """A line to the user, as HTML; what went wrong is an alert."""
    kind = ' wrong" role="alert' if wrong else ""
    return f'<div class="told{kind}">{escape(printable(str(text)))}</div>' if str(text) else ""


def unexpected(error: Exception) -> str:
    """Of a fault of the package's own, which nobody foresaw."""
    return f"something went wrong that should not ({type(error).__name__}: {error}); the log of the studio says more"


def progress(job: Job, waiting: int = 0) -> str:
    """How far a job is, as HTML."""
    if job.state == "waiting":
        before = f", after {waiting} other{'s' * (waiting > 1)}" if waiting else ""
        return f'<div class="told" role="status">waiting{before} …</div>'
    if job.state == "running":
        text = job.note or "beginning"
        text += f": {job.done} of {job.total} steps" if job.total else " …"
        left = job.seconds_left
        text += f", about {duration(left)} left" if left is not None else ""
        bar = f'<progress max="{job.total}" value="{job.done}"></progress>' if job.total else "<progress></progress>"
        return f'<div class="told" role="status">{escape(text)}{bar}</div>'
    if job.state == "failed":
        return told(job.note, wrong=True)
    if job.state == "cancelled":
        return '<div class="told" role="status">cancelled</div>'
    took = f" in {duration(job.ended - job.created)}" if job.ended else ""
    return f'<div class="told" role="status">done{took}</div>'


def duration(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{round(seconds / 60)} min"


def table(rows: Mapping[str, object]) -> str:
    """Names and values, as HTML."""
    lines = "".join(
        f"<tr><th>{escape(str(name).replace('_', ' '))}</th><td>{escape(plain(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{lines}</table>"


def plain(value: object) -> str:
    """A value of JSON as people write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
