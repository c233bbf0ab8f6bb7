"""The tab Library: the LoRAs that are there, with what is known of each; import, export, rename, delete."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from diffstyler.adapters import export_lora, inspect_lora
from diffstyler.api import add_lora
from diffstyler.errors import DiffstylerError
from diffstyler.studio import parts
from diffstyler.studio.shop import Shop, table, told, url

PICTURES = {"thumbnail": "The style picture", "preview": "What it draws", "loss": "The loss"}
MOST_OF_A_NAME = 100
NOTHING = '<p class="quiet">Choose a style to see what is known of it.</p>'


class Shelf:
    """Draws the tab and answers it.

    Args:
        shop: what it works with.
    """

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.picker = parts.Picker("Your styles", shop.items(fitted_alone=True), searchable=True)
                with gr.Accordion("Import a LoRA of another tool", open=False):
                    self.file = parts.drop("A .safetensors file", kinds=[".safetensors"])
                    self.picture = parts.drop("The style picture it was made from")
                    self.new_name = gr.Textbox(label="Name", placeholder="as the file's")
                    self.add = gr.Button("Import")
            with gr.Column(scale=3, min_width=320):
                self.status = gr.HTML()
                self.facts = gr.HTML(NOTHING)
                with gr.Group(visible=False) as self.acts:
                    with gr.Row():
                        self.name = gr.Textbox(label="Name", scale=3)
                        self.rename = gr.Button("Rename", min_width=90)
                    with gr.Row():
                        self.export = gr.Button("Export for A1111 and ComfyUI")
                        self.delete = gr.Button("Delete …", variant="stop")
                    self.exported = gr.DownloadButton("Download the export", visible=False)
                with gr.Group(visible=False) as self.question:
                    self.asked = gr.HTML()
                    with gr.Row():
                        self.no = gr.Button("Keep it")
                        self.yes = gr.Button("Delete it for good", variant="stop")
        self._listen()

    def _listen(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        picker = self.picker.component
        seen = [self.status, self.facts, self.acts, self.question, self.name, self.exported]
        picker.input(self._choose, picker, seen, trigger_mode="always_last", **quick)
        self.rename.click(self._rename, [picker, self.name], [picker, *seen], **quick)
        self.export.click(self._export, picker, [self.status, self.exported], **quick)
        self.delete.click(self._ask, picker, [self.asked, self.question, self.status], **quick)
        self.no.click(lambda: gr.Group(visible=False), None, self.question, **quick)
        self.yes.click(self._delete, picker, [picker, *seen], **quick)
        given = [self.file, self.picture, self.new_name]
        self.add.click(self._add, given, [picker, *given, *seen], **quick)

    def now(self, chosen: str | None = None) -> gr.HTML:
        """The picker as the library is now."""
        return self.picker.now(self.shop.items(fitted_alone=True), chosen)

    def _choose(self, id: str) -> tuple:
        hidden = (*[gr.Group(visible=False)] * 2, "", gr.DownloadButton(visible=False))
        if not id:
            return "", NOTHING, *hidden
        try:
            entry = self.shop.entry(id)
            facts = {name: value for name, value in inspect_lora(entry.folder).items() if value not in (None, [], "")}
        except DiffstylerError as error:
            return told(error, wrong=True), "", *hidden
        pictures = ""
        for name, alt in PICTURES.items():
            if (path := entry.folder / f"{name}.png").is_file():
                source = url(self.shop.folder.thumbnail(path, f"{entry.identity.key}-{name}"))
                pictures += f'<img src="{escape(source)}" alt="{alt}">'
        drawn = f'<div class="facts"><div class="pictures">{pictures}</div>{table(facts)}</div>'
        shown = (gr.Group(visible=True), gr.Group(visible=False))
        return "", drawn, *shown, entry.identity.name, gr.DownloadButton(visible=False)

    def _rename(self, id: str, name: str) -> tuple:
        try:
            former, name = self.shop.entry(id), (name or "").strip()
            if len(name) > MOST_OF_A_NAME:
                raise DiffstylerError(f"a name has at most {MOST_OF_A_NAME} characters, got {len(name)}")
            others = {entry.identity.name for entry in self.shop.library.entries() if entry.folder != former.folder}
            if name in others:
                raise DiffstylerError(f"another style is called {name} already; take another name")
            entry = self.shop.library.rename(former, name)
        except (DiffstylerError, OSError) as error:
            return gr.skip(), told(error, wrong=True), *[gr.skip()] * 5
        id = f"lora:{entry.folder.name}"
        return self.now(id), *self._choose(id)

    def _export(self, id: str) -> tuple:
        try:
            entry = self.shop.entry(id)
            if inspect_lora(entry.folder)["family"] == "embedded":
                raise DiffstylerError("other tools lack the embedded model: its LoRAs serve here alone")
            name = re.sub(r"[^\w-]+", "_", entry.identity.name)
            path = self.shop.folder.job(entry.identity.key) / f"{name}.safetensors"
            return "", gr.DownloadButton(value=str(export_lora(entry.folder, path)), visible=True)
        except (DiffstylerError, OSError) as error:
            return told(error, wrong=True), gr.DownloadButton(visible=False)

    def _ask(self, id: str) -> tuple:
        try:
            name = self.shop.entry(id).identity.name
        except DiffstylerError as error:
            return "", gr.Group(visible=False), told(error, wrong=True)
        return (
            told(f"Delete {name} with everything in its folder? Pictures made with it stay."),
            gr.Group(visible=True),
            "",
        )

    def _delete(self, id: str) -> tuple:
        try:
            self.shop.library.delete(self.shop.entry(id))
        except (DiffstylerError, OSError) as error:
            return gr.skip(), told(error, wrong=True), *[gr.skip()] * 5
        return self.now(""), *self._choose("")

    def _add(self, file: str | None, picture: str | None, name: str) -> tuple:
        kept = [gr.skip()] * 3
        try:
            if not file:
                raise DiffstylerError("first drop a .safetensors file")
            model = self.shop.engine.finetuner({})[0].backbone
            style = self.shop.folder.keep_picture(Path(picture)) if picture else None
            entry = add_lora(file, self.shop.library.lora_dir, name=(name or "").strip(), picture=style, backbone=model)
        except (DiffstylerError, OSError) as error:
            wrong = str(error).replace(str(file), Path(file or "").name)
            return gr.skip(), *kept, told(wrong, wrong=True), *[gr.skip()] * 5
        id = f"lora:{entry.folder.name}"
        return self.now(id), None, None, "", *self._choose(id)
