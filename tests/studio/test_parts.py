"""What lies over the photograph and is said of it, and facts as people read them."""

import json

import numpy as np
import pytest
from PIL import Image

from diffstyler.errors import DiffstylerError

pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.mark.filterwarnings("default")
def test_a_place_is_seen_on_a_photograph_of_its_own_color():
    from diffstyler.predict.mask_preview import COLORS
    from diffstyler.studio.parts import overlay

    share = np.zeros((64, 96), np.uint8)
    share[16:48, 24:72] = 255
    for number, color in enumerate(COLORS[:2]):
        masks = [None] * 4
        masks[number] = Image.fromarray(share)
        shown = Image.new("RGBA", (96, 64), color)
        shown.alpha_composite(overlay(masks))
        seen = np.asarray(shown)[..., :3].astype(int)
        assert (seen[15, 48] == 255).all()  # the outline
        assert np.abs(seen[32, 48] - color).max() <= 1
        assert np.abs(seen[5, 5] - color).max() == 0
        tint = np.asarray(overlay(masks))
        assert tint[32, 48, 3] == 127
        assert tint[5, 5, 3] == 0


@pytest.mark.filterwarnings("default")
def test_facts_are_words_and_not_code():
    from diffstyler.studio.shop import table

    facts = {"update_norm": {"smallest": 0.20207061, "largest": 7.5}, "ranks": [16, 8], "stated": True, "name": "<b>"}
    cells = ["<th>update norm</th><td>smallest 0.2021, largest 7.5</td>", "<td>16, 8</td>", "<td>yes</td>", "&lt;b&gt;"]
    assert all(cell in table(facts) for cell in cells)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("file: /etc/passwd", "no files are named here"),
        ("the sky - (file: mask.png) [grow 2]", "no files are named here"),
        ("x" * 501, "at most 500 characters, got 501"),
    ],
)
def test_words_name_no_files_and_have_an_end(words, told, folder, studio):
    from diffstyler.studio.parts import mask_prompts

    region = {"where": "words", "words": words, "points": [], "box": None, "paint": None}
    with pytest.raises(DiffstylerError, match=told):
        mask_prompts(json.dumps([region]), studio / "photo.png", folder)
    assert mask_prompts(json.dumps([{**region, "words": " the sky "}]), studio / "photo.png", folder) == ["the sky"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("text", "axis", "told"),
    [
        ("2.7", "steps", "expected whole numbers"),
        ("1, x", "strength", "expected numbers"),
        ("-1", "guidance", "in 0 … 30"),
        ("", "steps", "expected numbers"),
        ("nan", "strength", "in 0 … 2"),
    ],
)
def test_values_of_a_comparison(text, axis, told):
    from diffstyler.studio.compare import AXES, _numbers

    _, least, most, _ = AXES[axis]
    with pytest.raises(DiffstylerError, match=told):
        _numbers(text, axis, least, most)
    assert _numbers("1, 1; 2", axis if axis != "steps" else "guidance", 0, 9) == [1, 2]
