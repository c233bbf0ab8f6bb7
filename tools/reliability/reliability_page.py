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

Not promised: damage inside a JPEG that happens to be valid code is not told (of pictures with five bytes changed at
random, one in five). A LoRA fitted beside others is bitwise the same at equal widths of the pack alone; a run of fewer
LoRAs than `data.pack_size` narrows it.

A million rows (a CSV of 54 MB over 100 pictures and 10 LoRAs) take 47 s of a CPU core to be checked, and 292 MB beside
the imported libraries.
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
