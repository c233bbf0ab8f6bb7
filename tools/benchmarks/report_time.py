"""How long a report of many rows takes to open from its file in headless Chromium, and the memory that its page holds.

python tools/benchmarks/report_time.py stylized --rows 2000

The rows are those of a folder that diffstyler predict has written, one after another until there are enough.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

from diffstyler.files import read_json
from diffstyler.predict.contact_sheet import write_sheet

SEEN = "document.querySelector('.result img')?.naturalWidth > 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)  # None: playwright's own
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        fill(Path(work), sorted(arguments.folder.glob("*.json")), arguments.rows)
        page = write_sheet(Path(work))
        print(f"{arguments.rows} rows, {page.stat().st_size / 1e6:.1f} MB")
        for _ in range(arguments.times):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            seconds, held = opened(browser, page)
            print(f"first result seen after {seconds:.2f} s, {held / 1e6:.0f} MB of its own", flush=True)
            browser.close()


def fill(folder: Path, sidecars: list[Path], rows: int) -> None:
    for number, source in enumerate(itertools.islice(itertools.cycle(sidecars), rows)):
        told = read_json(source)
        id = f"row{number:05}"
        shutil.copyfile(source.with_name(told["result"]), folder / f"{id}.png")
        (folder / f"{id}.json").write_text(json.dumps({**told, "id": id, "result": f"{id}.png"}))


def opened(browser: Browser, path: Path) -> tuple[float, int]:
    """Seconds until the first result is drawn; bytes that no other process shares with the page's."""
    page = browser.new_page()
    started = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_function(SEEN)
    seconds = time.perf_counter() - started
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    return seconds, max(psutil.Process(pid).memory_full_info().uss for pid in renderers)


if __name__ == "__main__":
    main()
