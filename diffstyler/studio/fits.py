"""The tab Fit: style pictures in; a queue of LoRAs, each with its loss and what it draws by now, out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from diffstyler.errors import DiffstylerError
from diffstyler.studio import parts
from diffstyler.studio.queue import Job
from diffstyler.studio.restyle import FIT_STEPS, MOST_FIT_STEPS
from diffstyler.studio.shop import Shop, progress, static, told, url


class Fits:
    """Draws the tab and answers it. The queue is everybody's, as the library is.

    Args:
        shop: what it works with.
        session: the component with the tab's own name.
    """

    def __init__(self, shop: Shop, session: gr.Textbox) -> None:
        self.shop = shop
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                gr.Markdown("### Learn styles from pictures")
                self.upload = parts.drop("Drop style pictures here, or press to choose", several=True)
                self.steps = gr.Slider(10, MOST_FIT_STEPS, FIT_STEPS, step=10, label="Steps", info="of each picture")
                self.prompt = gr.Textbox(label="Prompt", placeholder="painting of <sss>", info="describes the pictures")
                self.go = gr.Button("Fit", variant="primary")
                self.status = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                gr.Markdown("### The queue")
                self.jobs = gr.HTML(js_on_load=static("fits.js"), apply_default_css=False)
                self.clear = gr.Button("Clear what is over", size="sm")
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        asked = [session, self.upload, self.steps, self.prompt]
        self.upload.upload(lambda: "", None, self.status, **quick)
        self.go.click(self._go, asked, [self.upload, self.status, self.jobs], **quick)
        self.jobs.click(self._cancel, None, self.jobs, trigger_mode="multiple", **quick)  # each press names its job
        self.clear.click(self._clear, None, self.jobs, **quick)

    def _go(self, session: str, files: Sequence[str] | None, steps: float, prompt: str) -> tuple:
        problems = [] if files else [told("first drop one picture or more", wrong=True)]
        requests = []
        for file in files or ():
            try:
                picture = self.shop.folder.keep_picture(Path(file))
            except (DiffstylerError, OSError) as error:
                problems.append(told(error, wrong=True))
                continue
            request = {
                "picture": str(picture),
                "name": picture.stem,
                "steps": int(steps),
                "prompt": (prompt or "").strip(),
            }
            requests.append(request)
        self.shop.queue.submit_all("fit", session, requests)
        return None, "".join(problems), self._drawn()[1]

    def _cancel(self, event: gr.EventData) -> str:
        self.shop.queue.cancel(str(event.id))
        return self._drawn()[1]

    def _clear(self) -> str:
        self.shop.queue.forget("fit")
        return self._drawn()[1]

    @property
    def shown(self) -> list:
        """What :meth:`show` changes."""
        return [self.jobs]

    def show(self, session: str) -> tuple[str, list] | None:
        """What tells one state of the queue from another, and what is seen of it."""
        seen, drawn = self._drawn()
        return seen, [drawn]

    def _drawn(self) -> tuple[str, str]:
        jobs = self.shop.queue.all("fit")[::-1]
        if not jobs:
            return "", '<p class="quiet">Nothing is being fitted.</p>'
        seen = " ".join(f"{job.id}{job.state}{job.done}{job.note}{job.result.get('looks')}" for job in jobs)
        return seen, f'<div class="jobs">{"".join(map(self._card, jobs))}</div>'

    def _card(self, job: Job) -> str:
        picture, preview = Path(job.request["picture"]), job.result.get("preview")
        images = [f'<img src="{escape(url(picture))}" alt="The style picture">' if picture.is_file() else ""]
        if preview:
            source = escape(url(Path(preview)))
            images.append(f'<img src="{source}" alt="What the LoRA draws after {job.result["looks"]} steps">')
        else:
            images.append('<div class="empty quiet">what it draws is seen here</div>')
        button = f'<button type="button" data-cancel="{job.id}">Cancel</button>' if job.is_open else ""
        name = escape(str(job.request["name"]))
        return (
            f'<article><h4>{name}</h4><div class="pair">{"".join(images)}</div>{curve(self.shop.queue.losses(job.id))}'
            f"{progress(job)}{button}</article>"
        )


def curve(losses: Sequence[tuple[int, float]], width: int = 200, height: int = 60) -> str:
    """The loss over the steps, as SVG: a mean over a tenth of the steps."""
    if len(losses) < 2:
        return ""
    window = max(1, len(losses) // 10)
    values = [
        sum(v for _, v in losses[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(losses))
    ]
    low, high = min(values), max(values)
    stride = max(1, len(values) // width)
    points = [
        f"{width * i / (len(values) - 1):.1f},{4 + (height - 8) * (high - values[i]) / ((high - low) or 1):.1f}"
        for i in range(0, len(values), stride)
    ]
    title = f"loss {values[-1]:.3f} after {losses[-1][0]} steps"
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{title}">'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f'<p class="quiet">{title}</p>'
    )
