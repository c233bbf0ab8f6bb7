"""The tab Compare: a photograph and styles, or values of a setting, in; a grid of pictures with figures out."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from diffstyler.errors import DiffstylerError
from diffstyler.studio import parts
from diffstyler.studio.queue import Job
from diffstyler.studio.restyle import FIT_STEPS, PRESETS
from diffstyler.studio.shop import EXAMPLE_PHOTOGRAPHS, Shop, progress, table, told, url

#: settings to sweep: the column of a manifest, or predict's setting, and what values it takes
AXES = {
    "nothing: each style as it is": ("", 0, 0, ""),
    "strength": ("strength", 0, 2, "0, 0.5, 1, 1.5"),
    "guidance": ("guidance_scale", 0, 30, "1, 3, 6"),
    "steps": ("model.num_inference_steps", 2, 200, "10, 20, 40"),
}
MOST_CELLS = 36


class Compare:
    """Draws the tab and answers it.

    Args:
        shop: what it works with.
        session: the component with the tab's own name.
    """

    def __init__(self, shop: Shop, session: gr.Textbox) -> None:
        self.shop = shop
        self.photograph = gr.State("")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self.upload = parts.drop("Drop a photograph here, or press to choose one")
                with gr.Row(elem_classes="tries"):
                    gr.HTML('<p class="quiet">or try</p>', min_width=60, scale=0)
                    tries = [gr.Button(name, size="sm", min_width=60) for name in EXAMPLE_PHOTOGRAPHS]
                self.seen = gr.HTML()
                self.picker = parts.Picker("Styles", shop.items(), multiple=True)
                self.axis = gr.Dropdown(list(AXES), label="Sweep")
                self.values = gr.Textbox(label="Values", visible=False)
                self.preset = gr.Dropdown(list(PRESETS), label="Preset")
                with gr.Row():
                    self.go = gr.Button("Compare", variant="primary")
                    self.cancel = gr.Button("Cancel", interactive=False)
                self.status = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                self.grid = gr.HTML('<p class="quiet">The pictures come here, side by side.</p>')
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        begun = [self.photograph, self.seen, self.upload, self.status]
        self.upload.upload(self._given, self.upload, begun, **quick)
        for name, button in zip(EXAMPLE_PHOTOGRAPHS, tries, strict=True):
            button.click(lambda name=name: self._photograph(shop.examples[name]), None, begun, **quick)
        self.axis.change(_values, self.axis, self.values, **quick)
        asked = [session, self.photograph, self.picker.component, self.axis, self.values, self.preset]
        self.go.click(self._go, asked, [self.status, self.cancel], **quick)
        self.cancel.click(self._cancel, session, self.cancel, **quick)

    def _given(self, file: str) -> tuple:
        try:
            return self._photograph(self.shop.folder.keep_picture(Path(file)))
        except (DiffstylerError, OSError) as error:
            return gr.skip(), told(error, wrong=True), None, ""

    def _photograph(self, path: Path) -> tuple:
        drawn = (
            f'<div class="look"><img src="{escape(url(path))}" alt="The photograph" style="max-height: 220px"></div>'
        )
        return self.shop.folder.token_of(path), drawn, None, ""

    def _go(self, session: str, photograph: str, chosen: str, axis: str, values: str, preset: str) -> tuple:
        try:
            job = self._submit(session, photograph, (chosen or "").split("\n"), axis, values, preset)
        except (DiffstylerError, OSError) as error:
            return told(error, wrong=True), gr.Button(interactive=False)
        return progress(job), gr.Button(interactive=True)

    def _submit(self, session: str, photograph: str, chosen: list[str], axis: str, values: str, preset: str) -> Job:
        if not photograph:
            raise DiffstylerError("first drop a photograph, or take one of the examples")
        styles = [self.shop.style(id) for id in chosen if id]
        if not styles:
            raise DiffstylerError("choose one style or more")
        name, least, most, _ = AXES[axis]
        swept = _numbers(values, axis, least, most) if name else []
        if (cells := len(styles) * max(1, len(swept))) > MOST_CELLS:
            raise DiffstylerError(f"expected at most {MOST_CELLS} pictures, got {cells}; take fewer styles or values")
        file, steps, _ = PRESETS[preset]
        request = {
            "content": str(self.shop.folder.picture(photograph)),
            "regions": styles,
            "axis": name,
            "axis_name": axis,
            "values": swept,
            "preset": file,
            "steps": steps,
            "fit_steps": FIT_STEPS,
        }
        return self.shop.queue.submit("compare", session, request)

    def _cancel(self, session: str) -> gr.Button:
        job = self.shop.queue.latest("compare", session)
        if job is not None:
            self.shop.queue.cancel(job.id)
        return gr.Button(interactive=False)

    @property
    def shown(self) -> list:
        """What :meth:`show` changes."""
        return [self.status, self.cancel, self.grid]

    def show(self, session: str) -> tuple[str, list] | None:
        """What tells one state of the session's latest job from another, and what is seen of it."""
        job = self.shop.queue.latest("compare", session)
        if job is None:
            return None
        cells = job.result.get("cells", [])
        before = self.shop.queue.before(job) if job.state == "waiting" else 0
        seen = f"{job.id} {job.state} {job.done} {job.note} {len(cells)} {before}"
        columns = max(1, len(job.request["values"])) if job.request["values"] else min(4, len(job.request["regions"]))
        drawn = "".join(_cell(cell, job.request["axis_name"]) for cell in cells)
        grid = f'<div class="cells" style="grid-template-columns: repeat({columns}, minmax(130px, 1fr))">{drawn}</div>'
        return seen, [progress(job, before), gr.Button(interactive=job.is_open), grid]


def _cell(cell: dict, axis: str) -> str:
    value = "" if cell["value"] is None else f" · {axis} {cell['value']:g}"
    title = escape(f"{cell['style']}{value}")
    figures = {name.replace("_", " "): f"{value:.3f}" for name, value in cell.get("figures", {}).items()}
    source = escape(url(Path(cell["picture"])))
    return f'<figure><img src="{source}" alt="{title}"><figcaption><b>{title}</b>{table(figures)}</figcaption></figure>'


def _values(axis: str) -> gr.Textbox:
    name, least, most, usual = AXES[axis]
    return gr.Textbox(usual, info=f"numbers in {least} … {most}", visible=bool(name))


def _numbers(text: str, axis: str, least: float, most: float) -> list[float]:
    try:
        numbers = [float(word) for word in text.replace(";", ",").split(",") if word.strip()]
    except ValueError as error:
        raise DiffstylerError(f"values of {axis}: expected numbers with commas between, got '{text}'") from error
    if not numbers or not all(least <= number <= most for number in numbers):
        raise DiffstylerError(f"values of {axis}: expected numbers in {least} … {most}, got '{text}'")
    if "." in AXES[axis][0] and not all(number.is_integer() for number in numbers):
        raise DiffstylerError(f"values of {axis}: expected whole numbers, got '{text}'")
    return list(dict.fromkeys(numbers))
