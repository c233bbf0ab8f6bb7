"""Uploads: pictures of bounded size under names of our own, and nothing beside them."""

import pytest
from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.images import ImageError, load_image
from diffstyler.studio import folder as module


@pytest.fixture
def upload(tmp_path):
    path = tmp_path / "a photo.jpg"
    Image.effect_noise((60, 40), 99).save(path)
    return path


def test_an_upload_is_kept_once_and_found_by_what_the_page_calls_it(folder, upload):
    kept = folder.keep_picture(upload)
    assert kept == folder.keep_picture(upload)
    assert kept.is_relative_to(folder.files)
    assert kept.name == "a_photo.png"
    assert load_image(kept).tobytes() == load_image(upload).tobytes()
    assert folder.picture(folder.token_of(kept)) == kept
    odd = folder.keep_picture(upload, "../../..\\é$`<b>")
    assert odd.parent == kept.parent
    assert folder.picture(folder.token_of(odd)) == odd


@pytest.mark.parametrize(
    "token", ["", "../../studio.sqlite", "/etc/passwd", "0" * 64 + "/../x.png", "0" * 64 + "/none.png"]
)
def test_a_page_names_nothing_else(folder, upload, token):
    folder.keep_picture(upload)
    with pytest.raises(DiffstylerError, match="not there any more"):
        folder.picture(token)


@pytest.mark.parametrize(
    ("bound", "text"),
    [("MOST_BYTES", "expected at most 0 MB"), ("MOST_PIXELS", "expected at most 999 pixels, got 60 x 40")],
)
def test_large_ones_are_refused_before_they_are_decoded(folder, upload, bound, text, monkeypatch):
    monkeypatch.setattr(module, bound, 999)
    monkeypatch.setattr(module, "load_image", lambda path: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=rf"^a photo\.jpg: {text}"):
        folder.keep_picture(upload)
    assert not list(folder.files.rglob("*.png"))


def test_an_upload_is_gone_whatever_it_was(folder):
    good, bad, long = (folder.uploads / name for name in ("photo.png", "notes.jpg", "strip.png"))
    Image.new("RGB", (60, 40)).save(good)
    bad.write_text("no picture")
    Image.new("RGB", (400, 20)).save(long)
    kept = folder.keep_picture(good)
    with pytest.raises(ImageError, match=r"^notes\.jpg: expected a picture"):
        folder.keep_picture(bad)
    with pytest.raises(ImageError, match=r"^strip\.png: expected an aspect of at most 4:1, got 400 x 20"):
        folder.keep_picture(long)
    assert list(folder.uploads.iterdir()) == []
    assert kept.is_file()
    assert not folder.uploads.is_relative_to(folder.files)


def test_what_is_no_picture_is_said_as_the_commands_say_it(folder, upload):
    upload.write_bytes(b"nothing")
    with pytest.raises(ImageError) as by_page:
        folder.keep_picture(upload)
    with pytest.raises(ImageError) as by_command:
        load_image(upload)
    assert str(by_page.value) == str(by_command.value).replace(str(upload), upload.name)
