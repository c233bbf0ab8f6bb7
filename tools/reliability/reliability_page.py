"""The tests of faults in; docs/reliability.md, what is tried and what holds, out."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """\
# Reliability

What is tried against diffstyler in every run of its tests, and what then holds. This page is made from `tests/faults`
by `python tools/reliability/reliability_page.py`; each line is a test. `python tools/reliability/crashes.py` kills runs
at random moments, as often as you like.

Same seed, same bytes on a CPU in float32, in any order, beside any others, by any number of ranks, resumed or not: of
a fit with `trainer.deterministic` at one `data.pack_size`, of a predict with `model.rows_per_call`. Without the
latter a picture depends, by a gray level, on what else is computed in the same call (`data.batch_size`).

Kills seen, of a tiny random model on a CPU: `python tools/reliability/crashes.py --kills 30 predict …` (nine pictures
of three contents and three styles, two thirds of them masked, with a cache): 29 kills survived, one run had ended
before; `--kills 30 fit …` (three LoRAs of 12 steps, two at once, saved every third step): 26 survived, four had ended
before. All files equal.

SIGINT and SIGTERM end every command with 130 and 143, one line and no traceback, within 10 s: 8 s after it came, what
has not ended is ended as by a kill. Seen at 30 moments of fit (also while it compiles), predict, check, test, studio
and demo: 4.8 s at the most, on a machine with other work. Before the command's own first line, a tenth of a second
after its start, Python answers.

Not promised: damage inside a JPEG that happens to be valid code is not told (of pictures with five bytes changed at
random, one in five). A LoRA fitted beside others is bitwise the same at equal widths of the pack alone; a run of
fewer LoRAs than `data.pack_size` narrows it.

A million rows (a CSV over 100 pictures and 3 LoRAs, each row with a mask and a seed): all that `diffstyler check
predict` does of them took 47 s of one CPU core and 326 MB beside the imported libraries, most of it for the manifest.

A picture of 9400 x 9400 pixels with a mask file as large (peak of a predict of its own process, tiny model, CPU): 3.5
GiB, where a small picture takes 1.1.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts.append(f"## {(ast.get_docstring(tree) or path.stem).splitlines()[0]}\n")
        parts.append(f"Tried in `tests/faults/{path.name}`:\n")
        parts.append("".join(f"- {_words(test)}\n" for test in tree.body if _is_test(test)))
    return "\n".join(parts)


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")


def _words(test: ast.stmt) -> str:
    assert isinstance(test, ast.FunctionDef)
    words = test.name.removeprefix("test_").replace("_", " ")
    told = (ast.get_docstring(test) or "").splitlines()
    return words + (f": {told[0].rstrip('.')}" if told else "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
