"""Kinds of wrong row and picture: each has its own message with file, row and column, all at once, before work."""

import json
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffstyler.backbones import StableDiffusion
from diffstyler.cli.main import main
from diffstyler.images import load_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.manifests.table import ManifestError

GOOD = {"content": "photo.png", "style": "gold.png"}


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"".join(part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data[:21] + struct.pack(">I", 0) + data[21:]


def spoil(studio: Path) -> None:
    """Put bad files beside the good ones."""
    whole = (studio / "photo.png").read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"a poem",
        "page": b"<html></html>",
        "truncated": whole[:-40],
        "half": whole[: len(whole) // 2],
        "begun": png_header(8, 8)[:20],
        "large": png_header(20_000, 10_000),
        "bomb": png_header(2**31 - 1, 2**31 - 1),
        "nothing": png_header(0, 10),
    }.items():
        (studio / f"{name}.png").write_bytes(content)
    Image.open(studio / "photo.png").convert("RGB").save(studio / "damaged.jpg")
    jpeg = bytearray((studio / "damaged.jpg").read_bytes())
    jpeg[len(jpeg) // 2 : -20] = b""
    (studio / "damaged.jpg").write_bytes(jpeg)
    (studio / "no_colors.png").write_bytes(whole[:33] + whole[-12:])
    Image.new("RGB", (400, 40)).save(studio / "wide.png")
    Image.new("RGB", (8, 400)).save(studio / "high.png")
    (studio / "folder.png").mkdir()
    os.mkfifo(studio / "pipe.png")
    (studio / "broken_link.png").symlink_to(studio / "gone.png")
    (studio / "link_to_itself.png").symlink_to(studio / "link_to_itself.png")
    Image.new("L", (8, 8)).save(studio / "small_mask.png")
    (gold,) = (studio / "loras").glob("gold-*")
    weights = gold / "pytorch_lora_weights.safetensors"
    (studio / "cut.safetensors").write_bytes(weights.read_bytes()[:-9])
    (studio / "hostile.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (studio / "pickle.pt").write_bytes(b"\x80\x04.")
    save_file({"a": torch.ones(2)}, studio / "no_lora.safetensors")
    tensors = load_file(weights)
    save_file({k: v * float("nan") for k, v in tensors.items()}, studio / "nan.safetensors")
    wider = {k: torch.cat([v, v], -1) if "lora_A" in k else v for k, v in tensors.items()}
    save_file(wider, studio / "other_model.safetensors")
    (studio / "empty_folder").mkdir()


def row(**changes: object) -> str:
    return json.dumps({**GOOD, **changes})


CONTENTS = {
    "missing.png": "no such file",
    "empty.png": "got an empty file",
    "text.png": "got something else",
    "page.png": "got something else",
    "truncated.png": "expected a complete picture",
    "half.png": "expected a complete picture",
    "damaged.jpg": "expected a whole picture, got damaged data",
    "begun.png": "expected",
    "no_colors.png": "expected a complete picture",
    "large.png": "expected at most",
    "bomb.png": "expected at most",
    "nothing.png": "expected",
    "wide.png": "expected an aspect of at most 4:1, got 400 x 40",
    "high.png": "expected an aspect of at most 4:1, got 8 x 400",
    "folder.png": "folder",
    "pipe.png": "got a pipe",
    "broken_link.png": "no such file",
    "link_to_itself.png": "no such file",
    "": "expected a path, got nothing",
    "a\0b.png": "expected a path",
    "x" * 5000: "no such file",
}
STYLES = {
    "missing.png": "no such file",
    "text.png": "got something else",
    "truncated.png": "expected a complete picture",
    "pipe.png": "got a pipe",
    "missing.safetensors": "no such file",
    "cut.safetensors": "was it cut off?",
    "hostile.safetensors": "not a readable safetensors file",
    "no_lora.safetensors": "matched 0 of 1",
    "nan.safetensors": "NaN or infinite values",
    "other_model.safetensors": "it was made for another model",
    "pickle.pt": "can run code when they are opened",
    "empty_folder": "expected a LoRA folder",
}
CELLS = [
    ("colour", "red", "unknown column"),
    ("styl", "a", "did you mean 'style'?"),
    ("id", "../up", "expected letters, digits"),
    ("id", "a/b", "expected letters, digits"),
    ("id", "a\0b", "expected"),
    ("id", "x" * 300, "at most 200 bytes"),
    ("id", "NUL", "Windows"),
    ("id", "com1.x", "Windows"),
    ("id", "e\u0301", "expected letters, digits"),
    ("id", ["a"], "expected"),
    ("seed", -1, "expected an integer in 0"),
    ("seed", 3.5, "expected an integer"),
    ("seed", "three", "expected an integer"),
    ("seed", 2**63, "expected an integer"),
    ("strength", 3, "expected a number in 0 … 2"),
    ("strength", "strong", "expected a number"),
    ("strength", True, "expected a number"),
    ("guidance_scale", -1, "expected a number of at least 0"),
    ("guidance_scale", "nan", "expected a number"),
    ("guidance_scale", "1e999", "expected a number"),
    ("start", 2, "expected a number in 0 … 1"),
    ("inject_features", -0.1, "expected a number in 0 … 1"),
    ("mask", "(house", "this '(' has no ')'"),
    ("mask", "(" * 5000 + "house" + ")" * 5000, "expected at most 100 parts"),
    ("mask", "a [grw 3]", "did you mean 'grow'?"),
    ("mask", "file: nowhere.png", "no such mask file"),
    ("mask", "file: small_mask.png", "expected 72 x 64 pixels"),
    ("mask", "file: text.png", "got something else"),
    ("mask", "box: 0,0,999,9", "expected x within the picture's 72 pixels"),
    ("mask", 3, "expected text"),
    ("prompt", "a {house}", "unknown placeholder"),
    ("prompt", ["a"], "expected text"),
    ("style_picture", "tomato.png", "the style is a picture itself"),
]
LINES = [
    ("{", "invalid JSON"),
    ("[]", "expected a JSON object"),
    (row()[:-1] + ', "style": "gold.png"}', "appears 2 times"),
    (row(regions=[]), "regions"),
    (row(regions="all"), "regions"),
    (row(start=0.2, stop=0.5), "expected a number below start"),
]


def test_each_is_told_with_its_row_and_column_all_at_once(studio, tiny_dir, capsys, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("weights were loaded"))
    spoil(studio)
    kinds = [(row(content=name), "content", told) for name, told in CONTENTS.items()]
    kinds += [(row(style=name), "style", told) for name, told in STYLES.items()]
    kinds += [(row(**{name: value}), name, told) for name, value, told in CELLS]
    kinds += [(line, "", told) for line, told in LINES]
    twice = [row(id="two"), row(id="two", content="tall.png"), row(id="two", mask="left"), row(id="two")]
    kinds += [(twice[0], None, ""), (twice[1], "content", "same id 'two'"), (twice[3], "", "would paint over region")]
    assert len(kinds) > 70
    (studio / "rows.jsonl").write_text("\n".join([row(), *(line for line, _, _ in kinds)]))
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    command = ["predict", "--data.manifest", str(studio / "rows.jsonl"), "--lora_dir", str(studio / "loras"), *model]
    command += ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--output_dir", str(studio / "out")]
    assert main([*command, "--model.initial", "FromContent"]) == 1
    lines = ("rows.jsonl" + capsys.readouterr().err.partition("diffstyler: rows.jsonl")[2]).splitlines()
    missed = []
    for number, (_, column, told) in enumerate(kinds, start=2):
        place = f"rows.jsonl line {number}"
        own = [line for line in lines if line.startswith((f"{place}:", f"{place},"))]
        where = f"{place}, column '{column}'" if column else place
        if column is None:
            assert not own
        elif not any(line.startswith(where) and told in line for line in own):
            missed.append((where, told, own))
    assert not missed, "\n".join(map(str, missed))
    assert not any("line 1:" in line or "line 1," in line for line in lines)
    assert max(map(len, lines)) < 1000
    assert not (studio / "out").exists()


ROWS = "content,style\nphoto.png,gold.png\n"
FILES = {
    "BOM": ("m.csv", b"\xef\xbb\xbf" + ROWS.encode(), None),
    "CRLF": ("m.csv", ROWS.replace("\n", "\r\n").encode(), None),
    "quotes": ("m.csv", ROWS.replace("gold.png", '"gold.png"').encode(), None),
    "semicolons": ("m.csv", ROWS.replace(",", ";").encode(), r"m\.csv row 1, column 'content;style': unknown column"),
    "tabs": ("m.csv", ROWS.replace(",", "\t").encode(), r"m\.csv row 1, column 'content\\tstyle': unknown column"),
    "an open quote": ("m.csv", (ROWS + '"photo.png,gold.png').encode(), r"m\.csv row 3: invalid CSV"),
    "UTF-16": ("m.csv", ROWS.encode("utf-16"), r"m\.csv: line 1 is not UTF-8"),
    "Latin-1": ("m.csv", (ROWS + "ü.png,gold.png").encode("latin-1"), r"m\.csv: line 3 is not UTF-8"),
    "empty": ("m.csv", b"", r"m\.csv: expected at least one row"),
    "a header alone": ("m.csv", b"content,style\n", r"m\.csv: expected at least one row"),
    "a column twice": ("m.csv", b"content,style,style\n", r"m\.csv row 1, column 'style': expected once, got 2 times"),
    "no style": ("m.csv", b"content\nphoto.png\n", r"m\.csv row 1, column 'style': required, but missing"),
    "too many cells": ("m.csv", (ROWS + "a,b,c").encode(), r"m\.csv row 3: expected at most 2 cells"),
    "no Parquet": ("m.parquet", b"PAR1", r"m\.parquet: invalid Parquet"),
    "another suffix": ("m.xlsx", b"", r"m\.xlsx: expected a manifest that ends in"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_every_tool_are_read_or_told(studio, kind):
    name, content, told = FILES[kind]
    (studio / name).write_bytes(content)
    if told is None:
        assert [triple.id for triple in read_manifest(studio / name)] == ["photo-gold"]
    else:
        with pytest.raises(ManifestError, match=told):
            read_manifest(studio / name)


def odd_pictures(folder: Path) -> dict[str, Path]:
    red = Image.new("RGB", (12, 8), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "1x1": ("a.png", Image.new("RGB", (1, 1), "red"), {}),
        "16-bit gray": ("b.png", Image.new("I;16", (12, 8), 65535), {}),
        "CMYK": ("c.jpg", red.convert("CMYK"), {"quality": 95}),
        "palette": ("d.png", red.convert("P"), {}),
        "palette with a clear color": ("e.gif", red.convert("P"), {"transparency": 255}),
        "animated": ("f.gif", red, {"save_all": True, "append_images": [Image.new("RGB", (12, 8), "blue")]}),
        "rotated": ("g.jpg", red, {"exif": exif, "quality": 95}),
        "gray with alpha": ("h.png", Image.new("LA", (12, 8), (200, 255)), {}),
        "one bit": ("i.png", Image.new("1", (12, 8), 1), {}),
        "lossy WebP": ("j.webp", red, {"quality": 95}),
        "TIFF": ("k.tif", red, {}),
        "BMP named PNG": ("l.png", red, {"format": "BMP"}),
    }
    for name, image, options in made.values():
        image.save(folder / name, **options)
    return {kind: folder / name for kind, (name, _, _) in made.items()}


def test_odd_pictures_are_read_as_they_look(tmp_path):
    for kind, path in odd_pictures(tmp_path).items():
        image = load_image(path)
        assert image.mode == "RGB", kind
        assert image.size == {"1x1": (1, 1), "rotated": (8, 12)}.get(kind, (12, 8)), kind
        color = image.getpixel((0, 0))
        gray = {"16-bit gray": 255, "gray with alpha": 200, "one bit": 255}.get(kind)
        assert all(abs(a - b) < 6 for a, b in zip(color, (gray,) * 3 if gray else (254, 0, 0), strict=True)), kind
