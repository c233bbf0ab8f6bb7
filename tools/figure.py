"""Put a folder of stylized pictures on one sheet: a row for each content, a column for each style.

python tools/figure.py demo/pictures docs/demo.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageOps

from diffstyler.images import load_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an output_dir of diffstyler predict")
    parser.add_argument("sheet", type=Path)
    parser.add_argument(
        "--styles", nargs="*", default=["impasto", "mosaic"], help="columns (file names without suffix)"
    )
    parser.add_argument("--side", type=int, default=288, help="of a picture on the sheet, in pixels")
    arguments = parser.parse_args()
    made = [json.loads(file.read_text()) for file in sorted(arguments.folder.glob("*.json"))]
    results = {(Path(m["content"]["path"]), Path(m["regions"][0]["style"]["path"]).stem): m["result"] for m in made}
    styles = {
        Path(m["regions"][0]["style"]["path"]).stem: Path(m["regions"][0]["style"]["path"])
        for m in made
        if Path(m["regions"][0]["style"]["path"]).stem in arguments.styles
    }
    contents = sorted({content for content, style in results if style in styles})
    rows: list[list[Path | None]] = [[None, *(styles[name] for name in arguments.styles)]]
    rows += [
        [content, *(arguments.folder / results[content, name] for name in arguments.styles)] for content in contents
    ]
    side, gap = arguments.side, 8
    heights = [side // 2, *(side * 2 // 3 if is_wide(content) else side for content in contents)]
    sheet = Image.new("RGB", (len(rows[0]) * (side + gap) - gap, sum(heights) + gap * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, path in enumerate(row):
            if path is not None:
                sheet.paste(ImageOps.fit(load_image(path), (side, height)), (column * (side + gap), top))
        top += height + gap
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.sheet, quality=90)


def is_wide(path: Path) -> bool:
    width, height = load_image(path).size
    return width > 1.2 * height


if __name__ == "__main__":
    main()
