"""Use the studio in a browser, on the embedded model, as a visitor does, and keep what it looks like for its page.

    python tools/readme/studio_pictures.py docs/studio [--tabs restyle fit library compare]

Starts `diffstyler studio` in a folder of its own and drives Chromium by playwright. Prints the seconds from pressing
Restyle, with a style that is not learned yet, to the picture.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1280, "height": 1000}
TABS = ("restyle", "fit", "library", "compare")
PATIENCE = 1_200_000  # milliseconds


@contextmanager
def studio(folder: Path) -> Iterator[str]:
    """Its address, while it runs in this folder."""
    words = [sys.executable, "-m", "diffstyler", "studio", "--port", "7893", "--trainer.accelerator", "cpu"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://[\d.:]+/?", line)))
    finally:
        process.terminate()
        process.wait()


def keep(page: Page, path: Path) -> None:
    """The whole page; of a result down to what can be downloaded, for the command below it names this run's folder."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    last = page.get_by_role("button", name="Manifest")
    if last.is_visible() and (box := last.bounding_box()):
        bottom = round(box["y"] + box["height"] + page.evaluate("scrollY"))
        picture = picture.crop((0, 0, picture.width, min(picture.height, bottom + 8)))
    picture.save(path, quality=85)


def photograph(page: Page, name: str) -> None:
    page.locator(".tries:visible button", has_text=name).click()


def choose(page: Page, *names: str) -> None:
    for name in names:
        page.locator(".picker:visible label", has_text=name).first.click()


def ended(page: Page) -> None:
    page.locator(".told:visible", has_text="done").first.wait_for()


def restyle(page: Page) -> None:
    photograph(page, "cottage")
    page.wait_for_function("document.querySelector('.where .photo').naturalWidth > 0")
    choose(page, "mosaic")
    page.locator(".where .bar label", has_text="Words").click()
    page.locator(".where .phrase").fill("the sky")
    page.keyboard.press("Enter")
    page.locator(".where .hint", has_text="looking").wait_for()
    page.locator(".where .hint", has_not_text="looking").wait_for()
    began = time.monotonic()
    page.get_by_role("button", name="Restyle", exact=True).click()
    ended(page)
    print(f"a region in a style that was not learned yet: {time.monotonic() - began:.0f} s", flush=True)


def fit(page: Page, pictures: Path) -> None:
    page.get_by_role("tab", name="Fit").click()
    names = ("impasto", "watercolor", "pointillism", "hatching")
    page.locator(".drop:visible input[type=file]").first.set_input_files([pictures / f"{name}.jpg" for name in names])
    page.locator(".drop:visible", has_text="hatching").wait_for()
    page.get_by_role("button", name="Fit", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.jobs article img').length >= 6")  # previews beside pictures


def library(page: Page) -> None:
    page.get_by_role("tab", name="Library").click()
    choose(page, "mosaic")
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Keep it").wait_for()


def compare(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    photograph(page, "cat")
    choose(page, "mosaic", "impasto")
    page.get_by_label("Sweep").locator("visible=true").click()
    page.get_by_role("option", name="strength").click()
    page.get_by_label("Values").locator("visible=true").fill("0.5, 1")
    page.get_by_role("button", name="Compare", exact=True).click()
    ended(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the screenshots")
    parser.add_argument("--tabs", nargs="+", default=TABS, choices=TABS)
    chosen = parser.parse_args()
    pictures = Path(__file__).parents[2] / "diffstyler/examples/pictures"
    chromium = next(path for name in ("chromium", "google-chrome") if (path := shutil.which(name)))
    acts = {"restyle": restyle, "fit": lambda page: fit(page, pictures), "library": library, "compare": compare}
    with tempfile.TemporaryDirectory() as name, studio(Path(name)) as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.locator(".picker label").first.wait_for()
        for tab in TABS:  # each needs what those before it made
            acts[tab](page)
            if tab in chosen.tabs:
                keep(page, chosen.folder / f"{tab}.jpg")
        browser.close()


if __name__ == "__main__":
    main()
