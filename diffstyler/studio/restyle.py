"""The tab Restyle: a photograph, styles and where they go in; the picture, and what repeats it, out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from diffstyler.errors import DiffstylerError
from diffstyler.masking.prompt import Everything, File
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.studio import parts
from diffstyler.studio.parts import REGIONS, drop, mask_prompts
from diffstyler.studio.queue import Job
from diffstyler.studio.shop import EXAMPLE_PHOTOGRAPHS, Shop, progress, told, unexpected, url

log = logging.getLogger(__name__)

#: presets by what the page calls them: the file of configs/, its steps and its guidance
PRESETS = {
    "Draft: a first look": ("draft", 20, 1.0),
    "Full quality": ("predict", 50, 1.0),
    "As the authors' code does it (slow)": ("reference", 50, 10.5),
}
DOWNLOADS = ("⬇ Picture", "⬇ Its record", "⬇ Manifest")
MOST_FIT_STEPS, FIT_STEPS = 400, 100
#: brings into view what was asked for
TO_RESULT = "() => document.querySelector('#result').scrollIntoView({block: 'nearest', behavior: 'smooth'})"


class Restyle:
    """Draws the tab and answers it.

    Args:
        shop: what it works with.
        session: the component with the tab's own name.
    """

    def __init__(self, shop: Shop, session: gr.Textbox) -> None:
        self.shop = shop
        self.session = session
        self.photograph = gr.State("")  # tokens
        self.brought = gr.State([])
        self._draw()
        self._listen()

    def _draw(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gr.Markdown("### 1 · The photograph")
                self.upload = drop("Drop a photograph here, or press to choose one")
                with gr.Row(elem_classes="tries"):
                    gr.HTML('<p class="quiet">or try</p>', min_width=60, scale=0)
                    self.tries = [gr.Button(name, size="sm", min_width=60) for name in EXAMPLE_PHOTOGRAPHS]
                self.where = parts.where()
                self.seen = gr.HTML()
                self._draw_result()
            with gr.Column(scale=2, min_width=320):
                gr.Markdown("### 2 · The styles")
                self.pickers, self.drops, self.strengths, self.guidances, self.tabs = [], [], [], [], []
                for number in range(1, REGIONS + 1):
                    with gr.Tab(f"Style {number}") as tab:
                        self._draw_style(number)
                    self.tabs.append(tab)
                with gr.Accordion("More settings", open=False):
                    self.preset = gr.Dropdown(list(PRESETS), label="Preset")
                    self.steps = gr.Slider(2, 100, 20, step=1, label="Steps")
                    self.content_prompt = gr.Textbox(label="What the photograph shows", placeholder="a cat")
                    self.variation = gr.Slider(0, 1, 0, step=0.05, label="Variation", info="0: always the same picture")
                    self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="of the variation")
                    self.fit_steps = gr.Slider(
                        10,
                        MOST_FIT_STEPS,
                        FIT_STEPS,
                        step=10,
                        label="Steps to learn a new style",
                        info="more: truer, slower",
                    )
                gr.Markdown("### 3 · Go")
                with gr.Row():
                    self.go = gr.Button("Restyle", variant="primary", scale=2)
                    self.cancel = gr.Button("Cancel", interactive=False)
                self.status = gr.HTML()

    def _draw_result(self) -> None:
        self.look = gr.HTML(elem_id="result")
        with gr.Group(visible=False) as self.result:
            self.slider = gr.ImageSlider(
                type="filepath", label="Before and after", interactive=False, buttons=["fullscreen"], max_height=620
            )
            with gr.Row():
                self.downloads = [gr.DownloadButton(name, size="sm") for name in DOWNLOADS]
            self.command = gr.Textbox(label="With the manifest, this makes it again", buttons=["copy"], max_lines=3)

    def _draw_style(self, number: int) -> None:
        self.pickers.append(
            parts.Picker("Choose a style" if number == 1 else "Choose one more style", self.shop.items())
        )
        self.drops.append(drop("or drop a picture whose style you want"))
        with gr.Row():
            self.strengths.append(gr.Slider(0, 2, 1, step=0.05, label="Strength", min_width=140))
            self.guidances.append(gr.Slider(0, 15, 1, step=0.5, label="Guidance", min_width=140))

    def _listen(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        pickers = [picker.component for picker in self.pickers]
        begun = [self.photograph, self.where, self.seen, self.upload, self.status]
        self.upload.upload(self._photograph_given, [self.upload], begun, **quick)
        for name, button in zip(EXAMPLE_PHOTOGRAPHS, self.tries, strict=True):
            button.click(lambda name=name: self._photograph(self.shop.examples[name]), None, begun, **quick)
        self.where.input(
            self._look, [self.photograph, self.where], [self.where, self.seen], trigger_mode="always_last", **quick
        )
        for number, (tab, given) in enumerate(zip(self.tabs, self.drops, strict=True)):
            opened = [self.where, pickers[number]]
            tab.select(lambda brought, number=number: self._opened(number, brought), self.brought, opened, **quick)
            given.upload(
                lambda file, brought, number=number: self._style_given(file, brought, number),
                [given, self.brought],
                [self.brought, self.status, given, *pickers],
                **quick,
            )
        self.preset.change(_of_preset, self.preset, [self.steps, *self.guidances], **quick)
        asked = [self.session, self.photograph, self.where, self.preset, self.steps, self.content_prompt]
        asked += [
            self.variation,
            self.seed,
            self.fit_steps,
            *(picker.component for picker in self.pickers),
            *self.strengths,
            *self.guidances,
        ]
        self.go.click(self._go, asked, [self.status, self.cancel], **quick).then(None, js=TO_RESULT)
        self.cancel.click(self._cancel, self.session, [self.status, self.cancel], **quick)

    # ---- answers

    def _photograph_given(self, file: str) -> tuple:
        try:
            return self._photograph(self.shop.folder.keep_picture(Path(file)))
        except (DiffstylerError, OSError) as error:
            return gr.skip(), gr.skip(), told(error, wrong=True), None, ""

    def _photograph(self, picture: Path) -> tuple:
        return self.shop.folder.token_of(picture), gr.HTML("", photo=url(picture), overlay=""), "", None, ""

    def _opened(self, number: int, brought: list[str]) -> tuple[gr.HTML, gr.HTML]:
        """The tab of a style: what is drawn on the photograph from now on is its place."""
        return gr.HTML(active=number), self.pickers[number].now(self.shop.items(brought))

    def _style_given(self, file: str, brought: list[str], number: int) -> tuple:
        try:
            token = self.shop.folder.token_of(self.shop.folder.keep_picture(Path(file)))
        except (DiffstylerError, OSError) as error:
            return brought, told(error, wrong=True), None, *[gr.skip()] * REGIONS
        brought = [token, *(other for other in brought if other != token)]
        items = self.shop.items(brought)
        chosen = next(
            item["id"] for item in items if item["id"] == f"picture:{token}" or self._is_of(item["id"], token)
        )
        drawn = [p.now(items, chosen if place == number else None) for place, p in enumerate(self.pickers)]
        return brought, "", None, *drawn

    def _is_of(self, id: str, token: str) -> bool:
        """Whether a LoRA is of a kept picture."""
        return id.startswith("lora:") and self.shop.entry(id).identity.picture == token.partition("/")[0]

    def _look(self, photograph: str, drawn: str) -> tuple:
        """The masks over the photograph, and what is wrong with them."""
        try:
            picture = self.shop.folder.picture(photograph)
            prompts = mask_prompts(drawn, picture, self.shop.folder)
            if parts.wants_words(drawn):
                self.shop.warm()
            masks: list = [None] * REGIONS
            problems = []
            for number, prompt in enumerate(prompts):
                if not prompt or isinstance(parse_mask_prompt(prompt), (Everything, File)):
                    continue  # what is painted is seen already
                try:
                    masks[number] = self.shop.masks(picture, [prompt])[0]
                except DiffstylerError as error:
                    problems.append(told(error, wrong=True))
            if not any(masks):
                return gr.HTML(overlay="", looked=time.time()), "".join(problems)
            path = self.shop.folder.keep_drawn(parts.overlay(masks))
            return gr.HTML(overlay=url(path), looked=time.time()), "".join(problems)
        except (DiffstylerError, OSError) as error:
            return gr.HTML(overlay="", looked=time.time()), told(error, wrong=True)
        except Exception as error:  # the page waits for an answer
            log.exception("the masks of %s", drawn[:200])
            return gr.HTML(overlay="", looked=time.time()), told(unexpected(error), wrong=True)

    def _go(
        self,
        session: str,
        photograph: str,
        drawn: str,
        preset: str,
        steps: float,
        content_prompt: str,
        variation: float,
        seed: float,
        fit_steps: float,
        *styles: Any,
    ) -> tuple:
        try:
            job = self._submit(
                session,
                photograph,
                drawn,
                {
                    "preset": PRESETS[preset][0],
                    "steps": int(steps),
                    "content_prompt": (content_prompt or "").strip(),
                    "settings": _settings(variation),
                    "seed": int(seed or 0),
                    "fit_steps": int(fit_steps),
                },
                list(zip(*(styles[start : start + REGIONS] for start in range(0, 3 * REGIONS, REGIONS)), strict=True)),
            )
        except (DiffstylerError, OSError) as error:
            return told(error, wrong=True), gr.Button(interactive=False)
        return progress(job), gr.Button(interactive=True)

    def _submit(
        self, session: str, photograph: str, drawn: str, request: dict, styles: Sequence[tuple[str, float, float]]
    ) -> Job:
        if not photograph:
            raise DiffstylerError("first drop a photograph, or take one of the examples")
        if not any(style for style, _, _ in styles):
            raise DiffstylerError("choose a style for the photograph, or drop a picture whose style you want")
        picture = self.shop.folder.picture(photograph)
        prompts = mask_prompts(drawn, picture, self.shop.folder)
        regions = []
        for number, ((style, strength, guidance), prompt) in enumerate(zip(styles, prompts, strict=True), start=1):
            if not style and prompt not in ("", "everything"):
                raise DiffstylerError(f"Style {number}: choose a style for the place that was said, or clear it")
            if not style:
                continue
            if not prompt:
                raise DiffstylerError(f"Style {number}: say where it goes on the photograph, or choose Everywhere")
            own = {"mask": prompt, "strength": strength, "guidance_scale": guidance}
            regions.append({**self.shop.style(style), **own})
        return self.shop.queue.submit("restyle", session, {**request, "content": str(picture), "regions": regions})

    def _cancel(self, session: str) -> tuple:
        job = self.shop.queue.latest("restyle", session)
        if job is not None:
            self.shop.queue.cancel(job.id)
        return gr.skip(), gr.Button(interactive=False)

    # ---- what is going on

    @property
    def shown(self) -> list:
        """What :meth:`show` changes."""
        return [self.status, self.cancel, self.look, self.result, self.slider, *self.downloads, self.command]

    def show(self, session: str) -> tuple[str, list] | None:
        """What tells one state of the session's latest job from another, and what is seen of it."""
        job = self.shop.queue.latest("restyle", session)
        if job is None:
            return None
        before = self.shop.queue.before(job) if job.state == "waiting" else 0
        seen = f"{job.id} {job.state} {job.done} {job.note} {job.result.get('looks')} {before}"
        look = ""
        if job.is_open and "preview" in job.result:
            source = escape(url(Path(job.result["preview"])))
            look = (
                f'<div class="look"><p class="quiet">on the way:</p><img src="{source}" alt="The picture so far"></div>'
            )
        outputs = [progress(job, before), gr.Button(interactive=job.is_open), look]
        if job.state != "done":
            return seen, [*outputs, gr.Group(visible=False), None, *[gr.skip()] * 4]
        made = job.result
        files = [gr.DownloadButton(value=made[name]) for name in ("picture", "sidecar", "manifest")]
        slider = (job.request["content"], made["picture"])
        return seen, [*outputs, gr.Group(visible=True), slider, *files, made["command"]]

    def restore(self, session: str) -> tuple:
        """The photograph of the session's latest job, for a page that was loaded again."""
        job = self.shop.queue.latest("restyle", session)
        path = Path(job.request["content"]) if job is not None else None
        if path is None or not path.is_file():
            return gr.skip(), gr.skip()
        return self._photograph(path)[:2]


def _of_preset(name: str) -> list[float]:
    _, steps, guidance = PRESETS[name]
    return [steps, *[guidance] * REGIONS]


def _settings(variation: float) -> dict[str, object]:
    """Of predict, where a share of fresh noise is wanted."""
    return {"model.initial": "FromContent", "model.initial.noise": variation} if variation else {}
