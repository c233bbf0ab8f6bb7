"""The one process that works: takes jobs from the queue, does them by the package's API, and tells how far it is."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.api import fit_all, stylize_row
from diffstyler.errors import printable
from diffstyler.files import atomic_write
from diffstyler.fit.finetuner import FitError
from diffstyler.images import load_image, picture_sha256
from diffstyler.manifests.pictures import read_manifest
from diffstyler.metrics.measure import measure
from diffstyler.studio.engine import Engine
from diffstyler.studio.folder import Folder, save_jpeg
from diffstyler.studio.queue import Job, JobQueue
from diffstyler.studio.shop import unexpected

log = logging.getLogger(__name__)

#: seconds between two looks: for a job, for what is to be told and asked while one runs, for another worker's end
LOOK, TELL, WAIT = 0.3, 0.25, 0.5
#: looks at a picture, or at what a LoRA draws, on the way
LOOKS, FIT_LOOKS = 6, 4
#: fits that are done at once
PACK = 4


class StoppedError(Exception):
    """Work that ends before it is done; no fault of its own."""


class EndedError(StoppedError):
    """Somebody asked a job to end."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.id = id


class PausedError(StoppedError):
    """Something more urgent waits, or the studio closes."""


class Worker:
    """Works through the queue of a studio.

    Args:
        folder: of the studio.
        engine: makes what fits and stylizes.
        closing: is set when the studio closes: what is under way is kept and waits for the next worker.
    """

    def __init__(self, folder: Folder, engine: Engine, closing: threading.Event) -> None:
        self.folder = folder
        self.queue = JobQueue(folder.queue)
        self.engine = engine
        self.closing = closing
        self.library = LoRALibrary(engine.lora_dir)

    def run(self) -> None:
        """Until the studio closes; one worker at a time, others wait for its end."""
        lock = FileLock(self.folder.path / "worker.lock")
        while not self.closing.is_set():
            with suppress(Timeout), lock.acquire(timeout=WAIT):
                self.queue.recover()
                while not self.closing.is_set():
                    if not self.step():
                        self.closing.wait(LOOK)

    def step(self) -> bool:
        """Do the next job, or the next fits together -> was there any?"""
        jobs = self.queue.claim(PACK)
        if not jobs:
            return False
        do = {
            "fit": self.fit,
            "restyle": lambda jobs: self.restyle(jobs[0]),
            "compare": lambda jobs: self.compare(jobs[0]),
        }
        try:
            do[jobs[0].kind](jobs)
        except EndedError as ended:
            self._leave(jobs, ended.id)
        except PausedError:
            self._leave(jobs)
        except (ValueError, RuntimeError, OSError) as error:
            log.info("%s %s failed", jobs[0].kind, jobs[0].id, exc_info=True)
            reasons = error.reasons if isinstance(error, FitError) else {}
            for job in jobs:
                if self.queue.get(job.id).state == "running":
                    self.queue.fail(job.id, printable(reasons.get(str(job.request.get("picture")), str(error))))
        except Exception as error:  # of the package's own: the others in the queue are not to wait for it
            log.exception("%s %s failed", jobs[0].kind, jobs[0].id)
            for job in jobs:
                if self.queue.get(job.id).state == "running":
                    self.queue.fail(job.id, printable(unexpected(error)))
        return True

    def _leave(self, jobs: Sequence[Job], ended: str = "") -> None:
        for job in jobs:
            if job.id == ended:
                self.queue.end(job.id)
            elif self.queue.get(job.id).state == "running":
                self.queue.put_back(job.id)

    # ---- fits

    def fit(self, jobs: Sequence[Job]) -> None:
        """LoRAs for the pictures of these jobs, whose settings are equal, in one pack."""
        request = jobs[0].request
        pictures = {Path(job.request["picture"]): job for job in jobs}

        def loss(path: Path, step: int, value: float) -> None:
            self.queue.add_loss(pictures[path].id, step, value)
            self.queue.progress(pictures[path].id, step, request["steps"])

        def preview(path: Path, step: int, picture: Image.Image) -> None:
            self._show(pictures[path], picture, step)

        for job in jobs:
            self.queue.begin(job.id, "learning the style")
        made = self._fit(list(pictures), request, self._watch(jobs), loss, preview, self._reasons(pictures))
        for path, job in pictures.items():
            if lora := made.get(picture_sha256(load_image(path))):
                self.queue.finish(job.id, lora=str(lora.folder))

    def _reasons(self, pictures: Mapping[Path, Job]) -> Callable[[FitError], None]:
        def tell(error: FitError) -> None:
            for path, reason in error.reasons.items():
                self.queue.fail(pictures[Path(path)].id, printable(reason))

        return tell

    def _fit(
        self,
        pictures: Sequence[Path],
        request: Mapping[str, object],
        watch: Callable[[int, int], None],
        loss: Callable[[Path, int, float], None] | None = None,
        preview: Callable[[Path, int, Image.Image], None] | None = None,
        on_failure: Callable[[FitError], None] | None = None,
    ) -> dict[str, FittedLoRA]:
        """The LoRAs by their pictures' ``picture_sha256``; some may have failed where ``on_failure`` is told why."""
        steps = int(str(request["steps"]))
        looks = {"model.preview_every": max(1, steps // FIT_LOOKS)} if preview is not None else {}
        prompt = {"data.prompt": request["prompt"]} if request.get("prompt") else {}
        finetuner, data = self.engine.finetuner({**looks, **prompt, "data.pack_size": PACK})
        how = {"precision": self.engine.precision, "accelerator": self.engine.accelerator}
        try:
            fit_all(pictures, finetuner, steps=steps, data=data, progress=watch, loss=loss, preview=preview, **how)
        except FitError as error:
            if on_failure is None or not error.reasons:
                raise
            on_failure(error)
        return {entry.identity.picture: entry for entry in finetuner.finished}

    # ---- pictures

    def restyle(self, job: Job) -> None:
        """Fit what has no LoRA yet, then make the picture, as its manifest of one line says."""
        request = job.request
        loras = self._loras(job, request["regions"], request["fit_steps"])
        settings = {"model.num_inference_steps": request["steps"], **request["settings"]}
        regions = [_region(region, loras) for region in request["regions"]]
        name = Path(request["content"]).stem
        told = {"content_prompt": request["content_prompt"]} if request["content_prompt"] else {}
        row = {"id": name, "content": request["content"], **told, "seed": request["seed"], "regions": regions}
        place = self.folder.job(job.id)
        manifest = place / f"{name}.jsonl"
        atomic_write(manifest, (json.dumps(row, ensure_ascii=False) + "\n").encode())
        self.queue.begin(job.id, "restyling")
        self._stylize(job, manifest, request["preset"], settings, place)
        self.queue.finish(
            job.id,
            picture=str(place / f"{name}.png"),
            sidecar=str(place / f"{name}.json"),
            manifest=str(manifest),
            command=self.engine.command(request["preset"], settings, manifest.name),
        )

    def compare(self, job: Job) -> None:
        """The photograph in each style under each value of a setting, and figures of all."""
        request, place = job.request, self.folder.job(job.id)
        loras = self._loras(job, request["regions"], request["fit_steps"])
        axis, cells = request["axis"], []
        pairs = [(region, value) for region in request["regions"] for value in request["values"] or [None]]
        for number, (region, value) in enumerate(pairs, start=1):
            own, settings = _region(region, loras), {"model.num_inference_steps": request["steps"]}
            told = "" if value is None else f", {request['axis_name']} {value:g}"
            if value is not None and "." in axis:
                settings[axis] = int(value)
            elif value is not None:
                own[axis] = value
            row = {"id": f"cell-{number}", "content": request["content"], "regions": [own]}
            manifest = place / f"cell-{number}.jsonl"
            atomic_write(manifest, (json.dumps(row, ensure_ascii=False) + "\n").encode())
            self.queue.begin(job.id, f"picture {number} of {len(pairs)}: {region['name']}{told}")
            self._stylize(job, manifest, request["preset"], settings, place, look=False)
            cells.append({"style": region["name"], "value": value, "picture": str(place / f"cell-{number}.png")})
            self.queue.show(job.id, cells=cells)
        self.queue.begin(job.id, "measuring")
        figures = measure(place).rows
        for number, cell in enumerate(cells, start=1):
            cell["figures"] = dict(figures.get(f"cell-{number}", {}))
        self.queue.finish(job.id, cells=cells)

    def _stylize(
        self, job: Job, manifest: Path, preset: str, settings: Mapping[str, object], place: Path, *, look: bool = True
    ) -> None:
        (row,) = read_manifest(manifest)
        stylizer = self.engine.stylizer(preset, settings, place)
        every = max(1, stylizer.num_inference_steps // LOOKS)
        seen = 0

        def preview(picture: Image.Image) -> None:
            nonlocal seen
            seen += 1
            self._show(job, picture, seen)

        stylize_row(
            row,
            stylizer,
            precision=self.engine.precision,
            accelerator=self.engine.accelerator,
            progress=self._watch([job]),
            preview=preview if look else None,
            preview_every=every,
        )

    def _loras(self, job: Job, regions: Sequence[Mapping[str, object]], steps: int) -> dict[str, Path]:
        """The folder of the LoRA of each style picture, the newest one where there are several; others are fitted."""
        pictures = [Path(str(region["picture"])) for region in regions if region.get("picture")]
        hashes = {path: picture_sha256(load_image(path)) for path in pictures}
        known = self._known() if hashes else {}
        missing = [path for path, sha256 in hashes.items() if sha256 not in known]
        if missing:
            names = ", ".join(path.stem for path in missing)
            self.queue.begin(job.id, f"learning the style of {names} first")
            request = {"steps": steps}
            known |= self._fit(missing, request, self._watch([job]))
        return {str(path): known[sha256].folder for path, sha256 in hashes.items()}

    def _known(self) -> dict[str, FittedLoRA]:
        model = self.engine.finetuner({})[0].backbone.fingerprint()
        own = [
            entry
            for entry in self.library.entries()
            if entry.identity.role == "style"
            and entry.identity.model == model
            and entry.identity.settings.get("mask", "everything") == "everything"
        ]
        own.sort(key=lambda entry: entry.folder.stat().st_mtime_ns)
        return {entry.identity.picture: entry for entry in own}

    # ---- what is told

    def _watch(self, jobs: Sequence[Job]) -> Callable[[int, int], None]:
        """What a run reports to; it ends the run where that is wanted."""
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told < TELL and done < total:
                return
            told = now
            if self.closing.is_set() or self.queue.somebody_waits(jobs[0].kind):
                raise PausedError
            for job in jobs:
                if self.queue.is_asked_to_end(job.id):
                    raise EndedError(job.id)
            if jobs[0].kind != "fit":  # which tell of each LoRA
                self.queue.progress(jobs[0].id, done, total)

        return progress

    def _show(self, job: Job, picture: Image.Image, number: int) -> None:
        # under a name that its pixels give: a browser may be half through the look before
        path = self.folder.job(job.id) / f"preview-{picture_sha256(picture)}.jpg"
        save_jpeg(picture, path)
        self.queue.show(job.id, preview=str(path), looks=number)


def _region(region: Mapping[str, object], loras: Mapping[str, Path]) -> dict[str, object]:
    """Of a manifest."""
    names = ("mask", "strength", "guidance_scale")
    own = {name: region[name] for name in names if region.get(name) is not None}
    if picture := region.get("picture"):
        return {"style": str(loras[str(picture)].resolve()), "style_picture": str(picture), **own}
    thumbnail = Path(str(region["lora"])) / "thumbnail.png"  # named, so that figures know the style's picture too
    beside = {"style_picture": str(thumbnail)} if thumbnail.is_file() else {}
    return {"style": str(region["lora"]), **beside, **own}


def work(folder: Folder, engine: Engine) -> None:
    """Work until standard input ends, which it does when whoever started this process does, however that ends."""
    closing = threading.Event()

    def watch() -> None:
        while os.read(0, 1):
            pass
        closing.set()

    threading.Thread(target=watch, daemon=True).start()
    Worker(folder, engine, closing).run()
