"""What pictures a fit is given, and with what prompt."""

from pathlib import Path

import pytest
from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.fit.data import FitData
from diffstyler.predict.stylizer import Stylizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in {"b.png": "red", "a.JPG": "blue"}.items():
        Image.new("RGB", (8, 8), color).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_picture_several_or_a_folder(folder):
    one, several = folder / "b.png", [folder / "b.png", folder / "a.JPG"]
    named = {"one": one, "text": str(one), "several": several, "folder": folder, "both": [one, folder]}
    found = {}
    for name, pictures in named.items():
        data = FitData(pictures=pictures)
        data.setup("fit")
        found[name] = [picture.paths[0].name for picture in data.pictures]
    assert found["one"] == found["text"] == ["b.png"]
    assert found["several"] == ["b.png", "a.JPG"]
    assert found["folder"] == ["a.JPG", "b.png"]
    assert found["both"] == ["b.png", "a.JPG"]


def test_a_folder_without_pictures_is_told(folder):
    (folder / "empty").mkdir()
    with pytest.raises(DiffstylerError, match=r"data\.pictures: no pictures in the folder .*empty"):
        FitData(pictures=folder / "empty")


def test_unknown_placeholders_of_a_run_are_told_with_the_known_ones():
    with pytest.raises(DiffstylerError, match=r"data\.prompt: unknown .*'\{content_promt\}'.*did you mean 'content_p"):
        FitData(pictures=["a.png"], prompt="photo of {content_promt}")
    with pytest.raises(
        DiffstylerError, match=r"model\.prompt: .*'\{style\}'.* known here: \{lora_prompt\}, \{content_p"
    ):
        Stylizer(prompt="{style}, {content_prompt}")
    with pytest.raises(DiffstylerError, match=r"model\.negative_prompt: .*nothing is put in"):
        Stylizer(negative_prompt="{content_prompt}")
    assert FitData(pictures=["a.png"], prompt="{content_prompt}, x").run_prompt == "x"
