"""Put a folder of stylized pictures on two sheets: whole pictures by style, and localized ones with their masks.

python tools/readme/figure.py demo/pictures docs/demo.jpg --localized docs/localized.jpg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from diffstyler.images import load_image

GAP = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an output_dir of diffstyler predict")
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--localized", type=Path, help="where the sheet of localized pictures goes")
    parser.add_argument(
        "--styles", nargs="*", default=["impasto", "mosaic"], help="columns (file names without suffix)"
    )
    parser.add_argument("--beside", type=Path, help="another output_dir; its results stand beside their twins")
    parser.add_argument("--side", type=int, default=288, help="of a picture on the sheet, in pixels")
    arguments = parser.parse_args()
    made = [json.loads(file.read_text()) for file in sorted(arguments.folder.glob("*.json"))]
    whole = [m for m in made if is_whole(m)]
    folders = [arguments.folder, *([arguments.beside] if arguments.beside else [])]
    whole = [m for m in whole if all((folder / m["result"]).is_file() for folder in folders)]
    write(whole_pictures(folders, whole, arguments.styles), arguments.sheet, arguments.side)
    if arguments.localized:
        rows = [localized(arguments.folder, m) for m in made if not is_whole(m)]
        write(rows, arguments.localized, arguments.side)


def is_whole(made: dict) -> bool:
    """One style for the whole picture, from beginning to end."""
    return len(made["regions"]) == 1 and "mask_file" not in made["regions"][0]


def whole_pictures(folders: Sequence[Path], made: Sequence[dict], styles: Sequence[str]) -> list[list[Path | None]]:
    """A row of style pictures, then a row for each content: it, and its result in each style, from each folder."""
    pictures = {Path(m["regions"][0]["style"]["path"]).stem: Path(m["regions"][0]["style"]["path"]) for m in made}
    results = {(m["content"]["path"], Path(m["regions"][0]["style"]["path"]).stem): m["result"] for m in made}
    contents = sorted({content for content, style in results if style in styles})
    rows: list[list[Path | None]] = [[None, *(pictures[name] for name in styles for _ in folders)]]
    for content in contents:
        rows.append([Path(content), *(folder / results[content, name] for name in styles for folder in folders)])
    return rows


def localized(folder: Path, made: dict) -> list[Path | None]:
    """Content, up to two regions' masks (or styles, where the whole picture changes its style on the way), result."""
    regions = made["regions"][:2]
    shown = [folder / r["mask_file"] if "mask_file" in r else Path(r["style"]["path"]) for r in regions]
    return [Path(made["content"]["path"]), *shown, *[None] * (2 - len(shown)), folder / made["result"]]


def write(rows: list[list[Path | None]], path: Path, side: int) -> None:
    heights = [height_of(row[0], side) for row in rows]
    width = len(rows[0]) * (side + GAP) - GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            if picture is not None:
                sheet.paste(ImageOps.fit(load_image(picture), (side, height)), (column * (side + GAP), top))
        top += height + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=90)


def height_of(content: Path | None, side: int) -> int:
    """Of a row: lower for the row of style pictures, and for wide contents."""
    if content is None:
        return side // 2
    width, height = load_image(content).size
    return side * 2 // 3 if width > 1.2 * height else side


if __name__ == "__main__":
    main()
