"""The report in a real browser: it opens from a file, slides, filters, sorts, and has nothing to complain of."""

import json
import shutil

import pytest
from PIL import Image

from diffstyler.images import load_image, picture_sha256
from diffstyler.metrics.base import FIGURES_NAME
from diffstyler.predict import contact_sheet
from diffstyler.predict.contact_sheet import write_sheet

NASTY = '</script><img src=x onerror="document.title=1">\'"&'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three results in two styles, with figures, and markup in every text."""
    folder = tmp_path_factory.mktemp("report") / "out"
    folder.mkdir()
    for name, color in {"content": "red", "gold": "yellow", "sea": "blue"}.items():
        Image.new("RGB", (60, 40), color).save(folder.parent / f"{name}.png")
    for index, style in enumerate(("gold", "sea", "gold")):
        id = f"row{index}"
        Image.new("RGB", (60, 40), "green").save(folder / f"{id}.png")
        content = folder.parent / "content.png"
        told = {
            "id": id,
            "content": {"path": str(content), "sha256": picture_sha256(load_image(content))},
            "regions": [{"style": {"path": str(folder.parent / f"{style}.png")}, "mask": NASTY, "prompt": NASTY}],
            "settings": {"steps": 50, NASTY: NASTY, "own": index},
            "seconds": 3 - index,
        }
        (folder / f"{id}.json").write_text(json.dumps(told))
    lines = [{"id": f"row{index}", "ssim": value} for index, value in enumerate((0.5, 0.25))]
    lines.append({"pictures": 2, "ssim": 9})
    (folder / FIGURES_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def page(browser, folder):
    """The opened report; whatever it says on the console, and whatever it asks of the network, fails the test."""
    page = browser.new_page()
    told = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(write_sheet(folder).as_uri())
    yield page
    assert told == []
    page.close()


def shown(page) -> list[str]:
    # not the inner text: of rows that a browser has not drawn since they moved, it is empty
    return page.locator("article:visible h2").all_text_contents()


def test_markup_of_a_manifest_is_text(page):
    assert page.title() == "out"
    assert NASTY in page.locator("article").first.locator(".row").text_content()
    assert page.locator("main img[src=x]").count() == 0


def test_rows_are_found_by_words_and_by_style(page):
    assert shown(page) == ["row0", "row1", "row2"]
    page.get_by_label("Find").fill(" ROW1 ")
    assert shown(page) == ["row1"]
    page.get_by_label("Find").fill("")
    page.get_by_label("Style").select_option("gold.png")
    assert shown(page) == ["row0", "row2"]


def test_rows_are_sorted_by_seconds_and_figures_and_those_without_come_last(page):
    page.get_by_label("Sort").select_option("seconds")
    assert shown(page) == ["row2", "row1", "row0"]
    page.get_by_label("Sort").select_option("ssim")
    assert shown(page) == ["row1", "row0", "row2"]
    page.locator("#turn").click()
    assert shown(page) == ["row0", "row1", "row2"]


def test_the_slider_lays_the_content_over_the_result(page):
    row = page.locator("article").first
    assert row.locator(".before").count() == 0
    row.get_by_label("content before").fill("30")
    before = row.locator(".before")
    assert before.evaluate("e => e.style.clipPath") == "inset(0px 70% 0px 0px)"
    assert before.evaluate("e => e.src") == row.locator(".content img").evaluate("e => e.src")
    boxes = [row.locator(name).bounding_box() for name in (".before", ".result a > img:first-child")]
    assert boxes[0] == boxes[1]


def test_keys_walk_compare_and_open(page):
    for key in "jjb":
        page.keyboard.press(key)
    second = page.locator("article").nth(1)
    assert second.locator(".before").evaluate("e => e.style.clipPath") == "inset(0px 0% 0px 0px)"
    page.keyboard.press("Enter")
    assert page.locator("dialog img").get_attribute("src").endswith("row1.png")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.get_by_label("Find").input_value() == "jk"


def test_figures_and_settings_are_told_and_what_is_common_once(page, folder):
    assert "Means: ssim 0.375" in page.locator("aside").inner_text()
    assert "ssim 0.5" in page.locator("article").first.locator(".row").text_content()
    html = (folder / "index.html").read_text()  # rows that are not near have no body yet
    assert html.count("<dt>steps</dt>") == 1
    assert html.count("<dt>own</dt>") == 3


def test_dark_and_light(page):
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="dark")
    dark = paper()
    page.locator("#theme").click()
    light = paper()
    page.locator("#theme").click()
    assert paper() == dark != light
    page.emulate_media(color_scheme="light")
    assert paper() == dark


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """200 results in a folder whose name nothing on the page tells."""
    folder = tmp_path_factory.mktemp("many") / "out"
    folder.mkdir()
    Image.new("RGB", (60, 40), "green").save(folder / "row000.png")
    for index in range(200):
        id = f"row{index:03}"
        (folder / f"{id}.png").write_bytes((folder / "row000.png").read_bytes())
        (folder / f"{id}.json").write_text(json.dumps({"id": id, "settings": {"own": f"number {index}"}}))
    return folder


@pytest.fixture
def long_page(browser, many):
    page = browser.new_page()
    page.goto(write_sheet(many).as_uri())
    yield page
    page.close()


def bodies(page) -> list[int]:
    """Which rows have one."""
    return page.evaluate("rows.flatMap((row, index) => row.querySelector('.result') ? [index] : [])")


def test_only_rows_near_the_window_have_a_body(long_page):
    long_page.wait_for_function("document.querySelector('.result img')?.naturalWidth > 0")
    first = bodies(long_page)
    assert first[0] == 0
    assert len(first) < 20
    long_page.evaluate("scrollTo(0, document.body.scrollHeight)")
    long_page.wait_for_function("rows.at(-1).querySelector('.result img')?.naturalWidth > 0")
    long_page.wait_for_function("!rows[0].querySelector('.result')")
    assert len(bodies(long_page)) < 20
    assert long_page.locator("article").count() == 200


def test_rows_without_a_body_are_found_walked_to_and_come_back_as_they_were(long_page):
    long_page.get_by_label("Find").fill("number 150")
    assert shown(long_page) == ["row150"]
    long_page.get_by_label("Find").fill("")
    long_page.get_by_label("Find").blur()
    long_page.wait_for_function("rows[0].querySelector('.result img')?.naturalWidth > 0")
    before = long_page.locator("article").first.inner_html()
    for _ in range(30):
        long_page.keyboard.press("j")
    long_page.wait_for_function("!rows[0].querySelector('.result')")
    assert 29 in bodies(long_page)
    long_page.evaluate("scrollTo(0, 0)")
    long_page.wait_for_function("rows[0].querySelector('.result img')?.naturalWidth > 0")
    assert long_page.locator("article").first.inner_html() == before


@pytest.fixture
def noisy(folder, tmp_path):
    """The same, with a result that takes much room."""
    shutil.copytree(folder, tmp_path / "noisy")
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / "noisy/row0.png")
    return tmp_path / "noisy"


@pytest.mark.parametrize(("room", "width"), [(10**6, 300), (30_000, 160)], ids=["thumbnails", "small ones"])
def test_a_page_that_is_sent_alone_has_its_pictures(browser, noisy, tmp_path, monkeypatch, room, width):
    """Whole thumbnails, or small ones where those are too many: then a file beside the page is looked for."""
    monkeypatch.setattr(contact_sheet, "MOST_INSIDE", room)
    alone = tmp_path / "index.html"
    alone.write_bytes(write_sheet(noisy).read_bytes())
    page, told = browser.new_page(viewport={"width": 1200, "height": 3000}), []
    page.on("console", lambda message: told.append(message.text))
    page.goto(alone.as_uri())
    shown = "[...document.querySelectorAll('article img')].filter(image => image.naturalWidth > 0).length"
    page.wait_for_function(f"{shown} === 9")
    if width == 160:
        page.wait_for_function("alone")
    assert page.locator(".result img").first.evaluate("image => image.naturalWidth") == width
    assert (told == []) == (width == 300)
    page.close()


def test_small_pictures_are_replaced_by_the_thumbnails_that_lie_beside(browser, noisy, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_INSIDE", 30_000)
    page = browser.new_page()
    page.goto(write_sheet(noisy).as_uri())
    page.wait_for_function("document.querySelector('.result img')?.naturalWidth === 300")
    page.close()


def test_a_page_of_too_many_pictures_links_them(folder, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_INSIDE", 0)
    html = write_sheet(folder).read_text()
    assert "data:image" not in html
    assert html.count('src="thumbnails/') == 9
