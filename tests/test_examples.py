"""The notebooks run, cell after cell, with fewer steps, and so does what the README shows of one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffstyler.adapters import FittedLoRA
from diffstyler.images import load_image
from diffstyler.predict.stylizer import Stylizer

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
STEPS = "fit_steps, sampling_steps = 200, 50"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_whole(notebook):
    written = json.loads(notebook.read_text())
    assert (written["nbformat"], len({cell["id"] for cell in written["cells"]})) == (4, len(written["cells"]))
    assert all(cell["outputs"] == [] for cell in written["cells"] if cell["cell_type"] == "code")


def test_the_first_picture(tmp_path, monkeypatch):
    """On the embedded model, as it is: its pictures take the most of the time."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((NOTEBOOKS[0].parent / "first-picture.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum(STEPS in cell for cell in code) == 1
    names: dict = {}
    for cell in code:
        exec(compile(cell.replace(STEPS, "fit_steps, sampling_steps = 1, 2"), str(cell), "exec"), names)
    photo = load_image(names["photo"])
    assert [type(lora) for lora in names["loras"]] == [FittedLoRA] * 2
    assert all(isinstance(names[name], Image.Image) and names[name].size == photo.size for name in ("whole", "local"))
    change = np.abs(np.asarray(names["local"]).astype(int) - np.asarray(photo)).max(-1)
    width, height = photo.size
    assert change[:, int(0.85 * width) :].max() == 0
    assert change[int(0.5 * height), int(0.5 * width)] > 0


def test_what_the_readme_shows_of_a_notebook(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code.count("steps=200") == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diffstyler").symlink_to(ROOT / "diffstyler")
    monkeypatch.setitem(Stylizer.__init__.__kwdefaults__, "num_inference_steps", 2)
    names: dict = {}
    exec(code.replace("steps=200", "steps=1").replace("preview_every=10", "preview_every=1"), names)
    assert load_image(Path("cat-impasto.png")).size == names["local"].size == load_image(Path(names["photo"])).size
    assert names["half_way"]
    assert np.asarray(names["cat"]).mean() < 0.9 * 255
