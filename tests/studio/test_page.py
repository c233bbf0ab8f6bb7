"""The page in a real browser, and at its address: people see all of the method, and strangers nothing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from studio_jobs import free_port, new_picture, status

from diffstyler.cli.studio import CommandEngine
from diffstyler.images import load_image
from diffstyler.studio import server
from diffstyler.studio.folder import Folder
from diffstyler.studio.queue import Job, JobQueue
from diffstyler.studio.server import Address
from diffstyler.studio.worker import Worker

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
#: what Gradio's threads warn of is its own affair
pytestmark = pytest.mark.filterwarnings("default")
WAIT = 60_000  # milliseconds, of a machine that does other things too


class Site:
    """A studio on the tiny model: its page, its worker in a thread, its folder."""

    def __init__(self, path: Path, model: Path) -> None:
        words = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(model)]
        fit = [*words, "--model.rank", "2", "--model.preview_steps", "1"]
        self.path = path
        self.folder = Folder(path / "run")
        self.engine = CommandEngine(fit, words, path / "loras", path / "trajectories", accelerator="cpu")
        self.queue = JobQueue(self.folder.queue)
        self.url = ""
        for name in ("photo", "wave"):
            new_picture(self.folder, name, seed=len(name))

    def upload(self, name: str) -> Path:
        return self.folder.path / f"{name}.png"

    def latest(self, kind: str) -> Job:
        with self.queue._open() as db:
            (id,) = db.execute("SELECT id FROM jobs WHERE kind = ? ORDER BY created DESC", (kind,)).fetchone()
        return self.queue.get(id)


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_dirs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "MOST_UPLOADED", 1 << 20)
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setenv("GRADIO_TEMP_DIR", "")
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        site = Site(tmp_path_factory.mktemp("studio"), tiny_dirs["epsilon"])
        # page and worker, elsewhere two processes, share a model here, which two threads must not load at once
        site.engine.stylizer("predict", {}, site.folder.path).backbone.load()
        closing = threading.Event()
        worker = threading.Thread(target=Worker(site.folder, site.engine, closing).run)
        with server.opened(site.engine, site.folder, Address("127.0.0.1", free_port(), None)) as site.url:
            worker.start()
            yield site
            closing.set()
            worker.join()


@pytest.fixture
def page(browser, site):
    """The page; an error on the console, and whatever is asked of another machine, fails the test."""
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    told = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    local = (site.url, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(local) else told.append(request.url))
    page.goto(site.url)
    page.locator(".picker label").first.wait_for()
    yield page
    page.close()
    assert told == []


def give(page, picture: Path, index: int = 0) -> None:
    page.locator(".drop input[type=file]").nth(index).set_input_files(picture)


def photograph(page, picture: Path) -> None:
    give(page, picture)
    page.wait_for_function("document.querySelector('.where .photo').naturalWidth > 0")


def tell(page, text: str) -> None:
    page.locator(".told:visible", has_text=text).first.wait_for()


def test_a_painted_region_is_restyled_in_a_style_that_was_dropped(page, site):
    photograph(page, site.upload("photo"))
    page.locator(".where .bar label", has_text="Brush").click()
    stage = page.locator(".where .stage").bounding_box()
    for row in range(2, 10):
        page.mouse.move(stage["x"] + 3, stage["y"] + stage["height"] * row / 11)
        page.mouse.down()
        page.mouse.move(stage["x"] + stage["width"] * 0.4, stage["y"] + stage["height"] * row / 11)
        page.mouse.up()
    give(page, site.upload("wave"), 1)
    page.locator(".picker:visible label", has_text="wave").locator("input:checked").wait_for(state="attached")
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("number input for Steps", exact=True).fill("4")
    page.get_by_label("number input for Steps to learn a new style").fill("10")
    page.get_by_role("button", name="Restyle", exact=True).click()
    tell(page, "done")
    page.get_by_label("Before and after").or_(page.locator("#result ~ * img")).first.wait_for()
    job = site.latest("restyle")
    made, before = (
        np.asarray(load_image(Path(p))).astype(int) for p in (job.result["picture"], job.request["content"])
    )
    change = np.abs(made - before).max(2)
    assert change[20:50, 2:20].mean() > 5
    assert change[:, 40:].max() == 0
    chosen = page.locator(".picker:visible label", has_text="wave").locator("input:checked")
    page.wait_for_function("document.querySelector('.picker input:checked')?.value.startsWith('lora:')")
    assert chosen.count() == 1  # what was learned from the picture takes its place
    with page.expect_download() as download:
        page.get_by_role("button", name="Manifest").click()
    row = json.loads(Path(download.value.path()).read_text())
    assert row["regions"][0]["mask"].startswith("file: ")


def test_fits_are_seen_and_cancelled(page, site):
    page.get_by_role("tab", name="Fit").click()
    new_picture(site.folder, "one", 11)
    new_picture(site.folder, "two", 12)
    drop = page.locator(".drop:visible input[type=file]").first
    drop.set_input_files([site.upload("one"), site.upload("two")])
    page.locator(".drop:visible", has_text="two").wait_for()
    page.get_by_label("number input for Steps").locator("visible=true").fill("400")
    page.get_by_role("button", name="Fit", exact=True).click()
    page.locator(".jobs article", has_text="learning").first.wait_for()
    page.locator(".jobs article svg").first.wait_for()
    page.locator("[data-cancel]").nth(1).wait_for()
    page.evaluate("document.querySelectorAll('[data-cancel]').forEach(button => button.click())")  # before an answer
    page.wait_for_function(
        "document.querySelectorAll('.jobs article').length == 2 && !document.querySelector('[data-cancel]')"
    )
    assert page.locator(".jobs article", has_text="cancelled").count() == 2
    page.get_by_role("button", name="Clear what is over").click()
    page.get_by_text("Nothing is being fitted").wait_for()


def test_the_keyboard_alone_is_enough(page, site):
    """A box by the arrow keys, the second style, and go; nothing is clicked."""

    def to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"the Tab key does not lead to {selector}")

    def press(keys: str) -> None:
        for key in keys.split():
            page.keyboard.press(key)

    to(".tries button")
    press("Enter")
    page.wait_for_function("document.querySelector('.where .photo').naturalWidth > 0")
    to(".where input[name=where]")
    press("ArrowRight ArrowRight ArrowRight")
    to(".where .stage")
    press("Shift+ArrowLeft Shift+ArrowUp Space Shift+ArrowRight Shift+ArrowDown Space")
    to(".picker input")
    press("Space ArrowRight")
    page.get_by_role("button", name="Restyle", exact=True).focus()
    press("Enter")
    tell(page, "step")
    (region,) = site.latest("restyle").request["regions"]
    assert region["mask"] == "box: 0.4,0.4,0.5,0.5"
    page.get_by_role("button", name="Cancel").first.focus()
    press("Enter")
    tell(page, "cancelled")


def test_everywhere_is_where_a_style_goes_when_nothing_else_is_said(page, site):
    photograph(page, site.upload("photo"))
    page.locator(".picker:visible label", has_text="hatching").click()
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("number input for Steps", exact=True).fill("4")
    page.get_by_label("number input for Steps to learn a new style").fill("10")
    page.get_by_role("button", name="Restyle", exact=True).click()
    tell(page, "done")
    (region,) = site.latest("restyle").request["regions"]
    assert region["mask"] == "everything"


def test_a_page_that_is_loaded_again_shows_what_goes_on_and_no_other_page_does(page, site, browser):
    photograph(page, site.upload("photo"))
    page.locator(".picker:visible label", has_text="pointillism").click()  # not learned yet: it takes its time
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("number input for Steps", exact=True).fill("100")
    page.get_by_label("number input for Steps to learn a new style").fill("400")
    page.get_by_role("button", name="Restyle", exact=True).click()
    tell(page, "steps")
    page.reload()
    tell(page, "steps")
    page.wait_for_function("document.querySelector('.where .photo').naturalWidth > 0")
    other = browser.new_context().new_page()
    other.goto(site.url)
    other.locator(".picker label").first.wait_for()
    other.wait_for_timeout(1500)
    assert other.locator(".told:visible").count() == 0
    assert other.get_by_role("button", name="Cancel").first.is_disabled()
    other.close()
    page.get_by_role("button", name="Cancel").first.click()
    tell(page, "cancelled")
    assert site.latest("restyle").state == "cancelled"


def test_a_phone_sees_all_of_it_and_what_is_missing_is_said(page, site):
    page.set_viewport_size({"width": 390, "height": 800})
    for tab in ("Fit", "Library", "Compare", "Restyle"):
        names = page.get_by_role("tab", name=tab)
        if not names.first.is_visible():
            page.locator(".overflow-menu button").first.click()
        page.get_by_role("tab", name=tab).or_(page.get_by_role("button", name=tab, exact=True)).first.click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    page.get_by_role("button", name="Restyle", exact=True).last.click()
    tell(page, "first drop a photograph")
    photograph(page, site.upload("photo"))
    page.locator(".told:visible", has_text="first drop a photograph").wait_for(state="hidden")
    broken = site.path / "broken.png"
    broken.write_bytes(b"nothing")
    give(page, broken)
    tell(page, "broken.png: expected a picture (PNG, JPEG, WEBP, TIFF, BMP or GIF), got something else")


def test_nothing_beside_the_files_is_served(site):
    kept = new_picture(site.folder, "kept", 9)
    assert status(f"{site.url}gradio_api/file={kept}") == 200
    (site.path / "secret.txt").write_text("secret")
    for path in ("/etc/passwd", site.folder.queue, f"{site.folder.files}/../studio.sqlite", site.path / "secret.txt"):
        assert status(f"{site.url}gradio_api/file={path}") in (403, 404)
    assert status(f"{site.url}gradio_api/file={str(site.folder.files).replace('/', '%2F')}%2F..%2Fstudio.sqlite") in (
        403,
        404,
    )


def test_other_sites_ask_in_vain(site):
    """One whose name was turned to this machine, and one that sends forms here."""
    here = site.url.rpartition("//")[2].strip("/")
    config = f"{site.url}config"
    for headers in ({}, {"Host": "localhost:7860"}, {"Origin": f"http://{here}"}, {"Host": "[::1]:7860"}):
        assert status(config, **headers) == 200
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert status(config, **headers) == 403
        assert status(f"{site.url}gradio_api/upload", b"", **headers) == 403


def test_what_was_sent_runs_nothing_in_a_browser(site):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.html"\r\n\r\n<script>1</script>\r\n--x--\r\n'
    )
    request = Request(f"{site.url}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
    with urlopen(request) as answer:
        (path,) = json.loads(answer.read())
    with urlopen(f"{site.url}gradio_api/file={path}") as answer:
        assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_uploads_are_bounded(site):
    def upload(size: int) -> int:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + b"0" * size
            + b"\r\n--x--\r\n"
        )
        return status(f"{site.url}gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})

    assert upload(1 << 10) == 200
    assert upload(3 << 20) == 413
    assert not [file for file in site.folder.path.rglob("*") if file.is_file() and file.stat().st_size > 2 << 20]
