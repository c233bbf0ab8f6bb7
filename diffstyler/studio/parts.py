"""The page's own components: styles to choose from, and the photograph on which is said where they go."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from PIL import Image, ImageChops, ImageFilter

from diffstyler.errors import DiffstylerError
from diffstyler.images import image_size
from diffstyler.masking.prompt import Box, Coordinate, File, Points
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.mask_preview import COLORS
from diffstyler.studio.folder import Folder
from diffstyler.studio.shop import Item, static

REGIONS = 4
#: of what a browser sends: characters of JSON, and pixels of a painted mask's side
MOST_CHARACTERS, MOST_SIDE = 8 << 20, 2048
#: of words for what gets a style
MOST_WORDS = 500


def drop(label: str, *, several: bool = False, kinds: Sequence[str] = ("image",)) -> gr.File:
    """Where files are dropped."""
    count = "multiple" if several else "single"
    return gr.File(label=label, file_types=list(kinds), file_count=count, height=96, elem_classes="drop")


class Picker:
    """Styles to choose from; the value of its component is the id of the chosen one, or ids in lines.

    Args:
        legend: what is to be chosen.
        items: the styles.
        multiple: several can be chosen.
        searchable: with a field for words in their names.
    """

    def __init__(self, legend: str, items: Sequence[Item], *, multiple: bool = False, searchable: bool = False) -> None:
        self._props = {"legend": legend, "multiple": multiple, "searchable": searchable}
        self.component = gr.HTML(
            "",
            html_template=static("picker.html"),
            js_on_load=static("picker.js"),
            apply_default_css=False,
            items=list(items),
            **self._props,
        )

    def now(self, items: Sequence[Item], chosen: str | None = None) -> gr.HTML:
        """With these items, and another choice where one is given; with all its properties, which a part of the page
        that was not opened yet would lose."""
        value = {} if chosen is None else {"value": chosen}
        return gr.HTML(**value, items=list(items), **self._props)  # type: ignore[arg-type]


def where() -> gr.HTML:
    """The photograph, and where each style goes on it; its value is JSON, see :func:`mask_prompts`."""
    return gr.HTML(
        "",
        html_template=static("where.html"),
        js_on_load=static("where.js"),
        apply_default_css=False,
        photo="",
        overlay="",
        active=0,
        looked=0,
        colors=[f"rgb{color}" for color in COLORS[:REGIONS]],
    )


def mask_prompts(value: object, photograph: Path, folder: Folder) -> list[str]:
    """The mask prompt of each style, "" where nothing is said or drawn yet.

    Args:
        value: what the photograph's component has.
        photograph: whose size painted masks get.
        folder: where they are kept.

    Raises:
        DiffstylerError: words that are no mask prompt, or what no page sends.
    """
    text = value if isinstance(value, str) else ""
    if not text:
        return ["everything"] * REGIONS
    try:
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"more than {MOST_CHARACTERS} characters")
        return [_prompt(dict(region), photograph, folder) for region in json.loads(text)[:REGIONS]]
    except DiffstylerError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        RecursionError,
        binascii.Error,
        Image.DecompressionBombError,
    ) as error:
        raise DiffstylerError(f"what was drawn cannot be read ({error}); draw it again") from error


def wants_words(value: object) -> bool:
    """Whether words are, or will be, looked for."""
    return isinstance(value, str) and '"where":"words"' in value


def _prompt(region: dict, photograph: Path, folder: Folder) -> str:
    kind = region["where"]
    if kind == "words" and (words := str(region["words"]).strip()):
        if len(words) > MOST_WORDS:
            raise DiffstylerError(f"what gets the style is told in at most {MOST_WORDS} characters, got {len(words)}")
        prompt = parse_mask_prompt(words)
        if any(isinstance(node, File) for node in prompt.walk()):
            raise DiffstylerError("no files are named here; paint the place with the brush")
        return str(prompt)
    if kind == "points" and any(sign for _, _, sign in region["points"]):
        sides = {
            on: tuple((_at(x), _at(y)) for x, y, sign in region["points"] if bool(sign) is on) for on in (True, False)
        }
        return str(Points(sides[True], sides[False]))
    if kind == "box" and region["box"]:
        x0, y0, x1, y1 = region["box"]
        return str(Box((_at(x0), _at(y0), _at(x1), _at(y1))))
    if kind == "brush" and region["paint"]:
        return str(File(folder.keep_drawn(_painted(str(region["paint"]), image_size(photograph)))))
    return "everything" if kind == "everywhere" else ""


def _at(value: object) -> Coordinate:
    return Coordinate(min(1.0, max(0.0, float(str(value)))), is_fraction=True)


def _painted(data: str, size: tuple[int, int]) -> Image.Image:
    """A PNG as a data URL, painted where it is not transparent -> the mask at a photograph's size (width, height)."""
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2], validate=True)), formats=["PNG"]) as picture:
        if max(picture.size) > MOST_SIDE:
            raise ValueError(f"a mask of {picture.width} x {picture.height} pixels")
        return picture.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BILINEAR)


def overlay(masks: Sequence[Image.Image | None], side: int = 768) -> Image.Image:
    """Where each style goes, in its color and with an outline, to be laid over the photograph."""
    shown = [(mask, color) for mask, color in zip(masks, COLORS, strict=False) if mask is not None]
    size = shown[0][0].size
    scale = min(1.0, side / max(size))
    drawn = Image.new("RGBA", (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
    for mask, color in shown:
        place = mask.resize(drawn.size)
        inside = place.point([255 * (share > 127) for share in range(256)])
        rim = ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(5)))
        around = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(5)), inside)
        tint = ImageChops.lighter(place.point([share // 2 for share in range(256)]), rim)
        for paint, alpha in ((color, tint), ("white", around)):  # seen on a photograph of any color
            layer = Image.new("RGBA", drawn.size, paint)
            layer.putalpha(alpha)
            drawn.alpha_composite(layer)
    return drawn
