"""The contact sheet shows what the sidecars say, from any folder, and survives what is missing."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from diffstyler.files import file_sha256
from diffstyler.images import load_image, picture_sha256
from diffstyler.predict.contact_sheet import write_sheet


class Page(HTMLParser):
    """The links, sources and text of a page, the bodies of its rows among them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(re.sub('<script type="text/html">(.*?)</script>', r"\1", self.html, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] for found, attrs in self.tags if found == tag and attrs.get(name)]


def _rows(page: Page) -> str:
    return re.search("<main[^>]*>(.*)</main>", page.html, re.DOTALL)[1]


@pytest.fixture
def output(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


def picture(path: Path, color: str = "red", size: tuple[int, int] = (900, 600)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def add(output: Path, id: str, **fields) -> None:
    """A result and its sidecar, as the writer leaves them."""
    picture(output / f"{id}.png", "green")
    (output / f"{id}.json").write_text(json.dumps({"id": id, "result": f"{id}.png", **fields}), encoding="utf-8")


def thumbnails(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "thumbnails").iterdir()}


def test_a_row_shows_content_styles_masks_result_and_settings(output, tmp_path):
    content, style = picture(tmp_path / "my photo#1.png"), picture(tmp_path / "monet.png", "blue")
    picture(output / "one.mask.png", "white")
    add(
        output,
        "one",
        content={"path": str(content), "sha256": picture_sha256(load_image(content))},
        regions=[
            {
                "style": {"path": str(style), "sha256": file_sha256(style)},
                "mask": "the sky",
                "mask_file": "one.mask.png",
                "prompt": "waves",
                "strength": 0.75,
                "lora": {"path": "loras/monet.safetensors"},
            },
            {"style": {"path": "loras/hokusai.safetensors"}, "mask": "the house"},
        ],
        settings={"num_inference_steps": 31},
        seed=11,
        versions={"diffusers": "0.36.0"},
        seconds=12.34,
    )
    page = Page(write_sheet(output))

    assert page.html.startswith("<!doctype html>")
    links = [output / unquote(link) for link in page.values("a", "href")]
    assert [link.resolve() for link in links] == [content, style, output / "one.mask.png", output / "one.png"]
    for source in page.values("img", "src"):
        assert source.startswith("thumbnails/")
        with Image.open(output / source) as thumbnail:
            assert thumbnail.size == (512, 341)
    for shown in ("the sky", "waves", "strength 0.75", "LoRA monet.safetensors", "the house", "hokusai.safetensors"):
        assert shown in page.text
    for setting in (
        ("num inference steps", "31"),
        ("seed", "11"),
        ("diffusers version", "0.36.0"),
        ("seconds", "12.3"),
    ):
        assert "".join(setting) in page.text


def test_a_lora_goes_by_its_own_name_and_usual_values_are_not_told(output):
    lora = "loras/monet-1a2b/pytorch_lora_weights.safetensors"
    usual = {"strength": 1.0, "start": 1.0, "stop": 0.0}
    add(output, "one", regions=[{"style": {"path": lora}, "lora": {"path": lora}, **usual, "guidance_scale": 4.0}])
    page = Page(write_sheet(output))
    assert "LoRA monet-1a2b" in page.text
    assert "guidance scale 4" in page.text
    assert not any(word in _rows(page) for word in ("pytorch_lora_weights", "strength", "start", "stop"))


def test_settings_are_told_in_words(output):
    injection = {"class": "CrossLoRAInjection", "features": 0.6, "adaptive": False}
    add(output, "one", settings={"injection": injection, "rows_per_call": None, "noise_levels": [0.1, 0.2]})
    page = Page(write_sheet(output))
    told = ("injectionCrossLoRAInjection", "injection: features0.6", "injection: adaptiveno", "noise levels0.1, 0.2")
    assert all(words in page.text for words in told)
    assert not any(sign in _rows(page) for sign in ("{", "None", "rows per"))


def test_the_page_links_relatively_and_loads_lazily(output, tmp_path):
    add(output, "one", content={"path": str(picture(tmp_path / "a.png"))})
    page = Page(write_sheet(output))
    assert "//" not in "".join(page.values("a", "href") + page.values("img", "src"))
    assert "http" not in page.html
    assert str(tmp_path) not in page.html
    assert page.values("img", "loading") == ["lazy"] * 2


def test_text_of_the_sidecars_is_escaped(output):
    add(output, "one", regions=[{"mask": "<script>alert(1)</script>", "prompt": "a & b"}], settings={"<b>": "<i>"})
    html = write_sheet(output).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in html
    assert "a &amp; b" in html
    assert "<script>alert" not in html
    assert "<i>" not in html


def test_thumbnails_are_written_once_and_shared(output, tmp_path):
    style = picture(tmp_path / "monet.png", "blue")
    region = {"style": {"path": str(style), "sha256": file_sha256(style)}}
    for id in ("one", "two"):
        add(output, id, regions=[region, region])
    write_sheet(output)
    before = thumbnails(output)
    assert len(before) == 2  # the style, and the result, which is the same picture twice
    style.unlink()
    page = Page(write_sheet(output))
    assert thumbnails(output) == before
    assert page.values("img", "src").count(f"thumbnails/{region['style']['sha256']}.jpg") == 4
    assert f"thumbnails/{region['style']['sha256']}.jpg" in page.values("a", "href")


def test_a_picture_of_pure_noise_has_a_thumbnail(output, caplog):
    """JPEG's optimizing encoder runs out of its buffer there."""
    add(output, "one")
    Image.frombytes("RGB", (256, 256), random.Random(0).randbytes(3 * 256 * 256)).save(output / "one.png")
    assert len(Page(write_sheet(output)).values("img", "src")) == 1
    assert not caplog.messages


def test_a_result_made_anew_gets_a_new_thumbnail(output):
    add(output, "one")
    first = Page(write_sheet(output)).values("img", "src")
    picture(output / "one.png", "yellow")
    assert Page(write_sheet(output)).values("img", "src") != first


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (None, "not recorded"),
        ({"path": "gone.png"}, "not readable"),
        ({"path": "text.png"}, "not readable"),
        ({"path": "other.png", "sha256": "0" * 64}, "changed since"),
        ({"path": "lora"}, "LoRA"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_a_line_of_text(output, tmp_path, monkeypatch, content, note):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "lora").mkdir()
    picture(tmp_path / "other.png")
    monkeypatch.chdir(tmp_path)
    add(output, "one", content=content)
    page = Page(write_sheet(output))
    assert note in page.text
    assert page.values("a", "href") == ["one.png"]


def test_only_sidecars_of_pictures_make_rows(output, caplog):
    add(output, "one.v2")
    (output / "metrics.json").write_text("{}")
    add(output, "broken")
    (output / "broken.json").write_text("{")
    page = Page(write_sheet(output))
    assert [tag for tag, _ in page.tags].count("article") == 1
    assert "one.v2" in page.text
    assert [message.split(": expected")[0] for message in caplog.messages] == [str(output / "broken.json")]


def test_pictures_stand_in_the_order_of_their_ids_and_are_counted(output):
    for id in ("b", "a", "c"):
        add(output, id, seconds=100)
    page = Page(write_sheet(output))
    assert page.values("a", "href") == ["a.png", "b.png", "c.png"]
    assert "3 pictures · 5 min" in page.text


def test_an_empty_folder_gives_an_empty_page(output):
    assert "No pictures yet." in Page(write_sheet(output)).text
