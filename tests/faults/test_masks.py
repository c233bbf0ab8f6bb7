"""Mask pictures as people and tools make them: each selects what was meant, or says why it cannot be told."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.images import ImageError
from diffstyler.masking import Masker, NothingFoundError, check_masks, find_masks
from diffstyler.masking.mask_file import read_mask
from diffstyler.masking.prompt import File
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.types import StyleRegion, Triple

INSIDE = np.zeros((64, 96), bool)
INSIDE[16:48, 24:72] = True


def levels(inside: int, outside: int, dtype: type = np.uint8) -> np.ndarray:
    return np.where(INSIDE, inside, outside).astype(dtype)


def layered(inside: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    """Of four channels, or of two."""
    channels = np.where(INSIDE[..., None], inside, outside).astype(np.uint8)
    return Image.fromarray(channels, "RGBA" if len(inside) == 4 else "LA")


def palette(index: int, colors: list[int], transparent: int | None = None) -> Image.Image:
    image = Image.fromarray(levels(index, 0), "P")
    image.putpalette(colors)
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


SELECT_THE_BOX = {
    "white on black": Image.fromarray(levels(255, 0)),
    "white on black, RGB": Image.fromarray(levels(255, 0)).convert("RGB"),
    "white on black, opaque RGBA": layered((255, 255, 255, 255), (0, 0, 0, 255)),
    "bitmap": Image.fromarray(levels(255, 0)).convert("1"),
    "one bit of a palette": palette(1, [0, 0, 0, 255, 255, 255]),
    "white paint on clear white": layered((255, 255, 255, 255), (255, 255, 255, 0)),
    "white paint on clear black": layered((255, 255, 255, 255), (0, 0, 0, 0)),
    "black paint on clear white": layered((0, 0, 0, 255), (255, 255, 255, 0)),
    "black paint on clear black": layered((0, 0, 0, 255), (0, 0, 0, 0)),
    "red paint on clear green": layered((255, 0, 0, 255), (0, 255, 0, 0)),
    "gray and alpha, painted": layered((255, 255), (0, 0)),
    "thin paint": layered((200, 10, 10, 60), (0, 0, 0, 0)),
    "clear color of a palette": palette(1, [0, 0, 0, 255, 255, 255], transparent=0),
    "0 and 1": Image.fromarray(levels(1, 0)),
    "1 and 2": Image.fromarray(levels(2, 1)),
    "0 and 127": Image.fromarray(levels(127, 0)),
    "128 and 255": Image.fromarray(levels(255, 128)),
    "0 and 1 in 16 bits": Image.fromarray(levels(1, 0, np.uint16)),
    "0 and 255 in 16 bits": Image.fromarray(levels(255, 0, np.uint16)),
    "0 and 65535 in 16 bits": Image.fromarray(levels(65535, 0, np.uint16)),
    "0 and 1 in 32 bits": Image.fromarray(levels(1, 0, np.int32)),
}


@pytest.mark.parametrize("kind", SELECT_THE_BOX)
def test_every_way_to_draw_a_box_selects_it(tmp_path, kind):
    path = tmp_path / ("mask.tif" if SELECT_THE_BOX[kind].mode == "I" else "mask.png")
    SELECT_THE_BOX[kind].save(path)
    assert np.array_equal(read_mask(path), INSIDE)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "bmp"])
def test_a_bitmap_selects_the_box_in_every_format(tmp_path, suffix):
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(levels(255, 0)).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_mask(path), INSIDE)


@pytest.mark.parametrize("big_endian", [False, True])
def test_16_bit_tiffs_of_both_byte_orders(tmp_path, big_endian):
    path = tmp_path / "mask.tif"
    values = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    if big_endian:
        Image.frombytes("I;16B", (96, 64), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    assert np.abs(read_mask(path) - values / 65535).max() < 0.003


def soft(mode: str) -> Image.Image:
    ramp = np.tile(np.arange(0, 192, 2, dtype=np.uint8), (64, 1))
    alpha = Image.fromarray(ramp)
    color = alpha if mode == "premultiplied" else Image.new("L", alpha.size, 255 if mode == "white" else 0)
    return Image.merge("RGBA", (color, color, color, alpha))


@pytest.mark.parametrize("mode", ["white", "black", "premultiplied"])
def test_a_soft_brush_keeps_its_softness(tmp_path, mode):
    soft(mode).save(tmp_path / "mask.png")
    assert np.allclose(read_mask(tmp_path / "mask.png")[5] * 255, np.arange(0, 192, 2))


LABELS = np.zeros((64, 96), np.uint8)
LABELS[16:48, 24:72], LABELS[:8] = 3, 7

LABELED = {
    "8 bits": Image.fromarray(LABELS),
    "16 bits": Image.fromarray(LABELS.astype(np.uint16)),
    "palette": Image.fromarray(LABELS, "P"),
    "RGB": Image.fromarray(LABELS).convert("RGB"),
    "alpha too": Image.fromarray(LABELS).convert("LA"),
}
LABELED["palette"].putpalette(list(range(0, 240, 10)))


@pytest.mark.parametrize("kind", LABELED)
def test_a_value_picks_one_label(tmp_path, kind):
    LABELED[kind].save(tmp_path / "labels.png")
    assert np.array_equal(read_mask(tmp_path / "labels.png", 3), INSIDE)
    assert np.array_equal(read_mask(tmp_path / "labels.png", 7), LABELS == 7)
    assert not read_mask(tmp_path / "labels.png", 4).any()
    assert not read_mask(tmp_path / "labels.png", 10**9).any()


def layers(*channels: np.ndarray) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(channel.astype(np.uint8)) for channel in channels])


def in_palette(three: tuple[int, int, int], seven: tuple[int, int, int]) -> Image.Image:
    """The labels, with the colors of 3 and 7; 0 is black."""
    image = Image.fromarray(LABELS, "P")
    image.putpalette([*[0] * 9, *three, *[0] * 9, *seven])
    return image


UNCLEAR = {
    "labels in a palette of colors": (
        in_palette((192, 128, 0), (0, 255, 60)),
        "labels (here 0, 3, 7, …), 'file: m.png",
    ),
    "labels in a dark palette": (in_palette((30, 30, 30), (60, 60, 60)), "values 0, 3, 7; where they are labels"),
    "labels in colors": (layers(LABELS, LABELS * 30, 0 * LABELS), "got several colors; save it in gray"),
    "a photograph": (layers(*np.random.default_rng(0).integers(0, 256, (3, 64, 96))), "got several colors"),
    "labels": (Image.fromarray(LABELS), "values 0, 3, 7; where they are labels, 'file: m.png value 7' takes"),
    "one label": (Image.new("L", (9, 9), 1), "values 1; "),
    "8-bit levels in 16 bits": (Image.fromarray(LABELS.astype(np.uint16) * 30), "values 0, 90, 210; "),
    "many dark levels": (Image.fromarray(np.arange(120, dtype=np.uint8)[None]), "values 0, 1, 2, 3, 4, 5, …; "),
    "faint alpha": (Image.merge("LA", (Image.new("L", (96, 64)), Image.fromarray(LABELS))), "values 0, 3, 7; "),
    "gray and alpha": (
        Image.merge("LA", (Image.fromarray(LABELS), Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (64, 1))))),
        "in gray or in the alpha channel, got another one in each",
    ),
    "all clear over gray": (Image.merge("LA", (Image.fromarray(LABELS), Image.new("L", (96, 64)))), "got another one"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_could_mean_several_things_is_refused(tmp_path, kind):
    image, told = UNCLEAR[kind]
    image.save(tmp_path / "m.png")
    with pytest.raises(DiffstylerError, match=r"m\.png: expected a mask") as error:
        read_mask(tmp_path / "m.png")
    assert told in str(error.value)


def test_colors_are_no_labels(tmp_path):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match="colors are no labels"):
        read_mask(tmp_path / "m.png", 1)


class Nobody(Masker):
    @property
    def settings(self) -> dict:
        return {}

    def find_text(self, picture, phrase):
        raise AssertionError

    def find_points(self, picture, positive, negative):
        raise AssertionError


@pytest.mark.parametrize("image", [Image.new("L", (96, 64)), Image.new("LA", (96, 64))], ids=["black", "clear"])
def test_an_empty_mask_is_what_on_empty_mask_says(tmp_path, image):
    image.save(tmp_path / "m.png")
    prompts = [parse_mask_prompt(f"file: {tmp_path / 'm.png'}")]
    picture = Image.new("RGB", (96, 64))
    with pytest.raises(NothingFoundError, match="is empty in this picture"):
        find_masks(Nobody(), picture, prompts)
    assert torch.equal(find_masks(Nobody(), picture, prompts, empty=1.0)[0], torch.ones(64, 96))


def test_unclear_masks_are_told_before_anything_runs(tmp_path):
    Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
    Image.fromarray(LABELS).save(tmp_path / "labels.png")
    prompts = [f"file: {tmp_path / 'labels.png'}{label}" for label in ("", " value 3")]
    rows = [
        Triple(str(n), tmp_path / "photo.png", (StyleRegion(tmp_path, prompt),), origin=f"row {n}")
        for n, prompt in enumerate(prompts)
    ]
    with pytest.raises(DiffstylerError, match=r"^row 0, column 'mask': mask 'file: ") as error:
        check_masks(rows)
    assert "row 1" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("file: a.png", "a.png", None),
        ("file: a.png value 3", "a.png", 3),
        ("file: a b.png  VALUE  3 [grow 2]", "a b.png", 3),
        ('file: "a.png" value 12 + house', "a.png", 12),
        ('file: "a value 3"', "a value 3", None),
        ('file: "a value 3" value 0', "a value 3", 0),
        ("file: value 3", "value 3", None),
        ("file: a.png value x", "a.png value x", None),
        ("(file: a.png value 3)", "a.png", 3),
    ],
)
def test_labels_in_the_grammar(text, path, value):
    tree = parse_mask_prompt(text)
    (found,) = (node for node in tree.walk() if isinstance(node, File))
    assert (str(found.path), found.value) == (path, value)
    assert parse_mask_prompt(str(tree)) == tree
