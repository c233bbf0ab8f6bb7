"""The page: four tabs over one queue, and a clock that shows what changed."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffstyler.studio.compare import Compare
from diffstyler.studio.engine import Engine
from diffstyler.studio.fits import Fits
from diffstyler.studio.folder import Folder
from diffstyler.studio.parts import REGIONS
from diffstyler.studio.restyle import Restyle
from diffstyler.studio.shelf import Shelf
from diffstyler.studio.shop import Shop, static

#: seconds between two looks at the queue
TICK = 1.0
FONT = ["system-ui", "sans-serif"]
#: how the page looks; its fonts are the machine's own, so that nothing is fetched
LOOK: dict[str, Any] = {
    "theme": gr.themes.Soft(primary_hue="indigo", font=FONT, font_mono=["ui-monospace", "monospace"]),
    "css": static("page.css"),
}


def build(engine: Engine, folder: Folder) -> gr.Blocks:
    """The page of a studio, to be launched.

    Args:
        engine: finds masks.
        folder: of the studio.
    """
    shop = Shop(engine, folder)
    with gr.Blocks(title="diffstyler studio", analytics_enabled=False) as page:
        session = gr.Textbox(visible=False)
        seen = gr.State({})
        gr.Markdown(
            "# diffstyler studio\nBring a photograph, or parts of it, into the style of a picture.",
            elem_classes="title",
        )
        with gr.Tab("Restyle"):
            restyle = Restyle(shop, session)
        with gr.Tab("Fit"):
            fits = Fits(shop, session)
        with gr.Tab("Library") as library_tab:
            shelf = Shelf(shop)
        with gr.Tab("Compare") as compare_tab:
            compare = Compare(shop, session)
        tabs = [restyle, fits, compare]
        pickers = [*restyle.pickers, compare.picker]

        def show(session: str, seen: dict, brought: list[str]) -> list:
            """What changed since this tab was told last; ``seen`` is what it knows."""
            now, outputs = dict(seen), []
            for tab in tabs:
                told = tab.show(session) if session else None
                if told is None or told[0] == seen.get(type(tab).__name__):
                    outputs += [gr.skip()] * len(tab.shown)
                else:
                    now[type(tab).__name__] = told[0]
                    outputs += told[1]
            if shop.stock == seen.get("stock"):
                return [gr.skip() if now == seen else now, *outputs, *[gr.skip()] * (REGIONS + 2)]
            items = shop.items(brought)
            drawn = [picker.now(items) for picker in pickers]
            return [{**now, "stock": shop.stock}, *outputs, *drawn, shelf.now()]

        def begin(given: str) -> tuple:
            own = shop.session(given)
            return own, {}, *restyle.restore(own)

        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        shown = [seen, *(part for tab in tabs for part in tab.shown), *(p.component for p in (*pickers, shelf.picker))]
        begun = [session, seen, restyle.photograph, restyle.where]
        page.load(begin, session, begun, js=static("session.js"), **quick)
        library_tab.select(shelf.now, None, shelf.picker.component, **quick)
        compare_tab.select(lambda: compare.picker.now(shop.items()), None, compare.picker.component, **quick)
        gr.Timer(TICK).tick(show, [session, seen, restyle.brought], shown, **quick)
    return page
