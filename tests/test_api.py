"""fit and stylize in a notebook."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageOps import invert
from runs import pixels

import diffstyler
from diffstyler.adapters import LoRALibrary
from diffstyler.backbones import StableDiffusion
from diffstyler.chatter import quiet
from diffstyler.diffusion.initial import FromStyle
from diffstyler.errors import DiffstylerError, RowsError
from diffstyler.fit.crops import Crops
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.images import load_image
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import StyleRegion


@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.parametrize("to_files", [True, False])
def test_stylize_returns_the_picture_with_files_and_without(studio, tiny_dir, to_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stylizer() -> Stylizer:
        output_dir = studio / "out" if to_files else None
        return Stylizer(
            StableDiffusion(str(tiny_dir)), lora_dir=studio / "loras", output_dir=output_dir, num_inference_steps=1
        )

    made = [diffstyler.stylize(studio / "photo.png", studio / "gold.png", stylizer()) for _ in range(2)]
    assert made[0].size == (72, 64)
    assert pixels(made[0]) == pixels(made[1])
    assert (studio / "out").exists() is to_files
    (studio / "broken.png").write_bytes(b"nothing")
    with pytest.raises(RowsError, match=r"broken\.png: .*expected a picture"):
        diffstyler.stylize(studio / "broken.png", studio / "gold.png", stylizer())
    assert not list(tmp_path.glob("stylized"))


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_stylize_brings_regions_into_their_styles(studio, tiny_dir):
    def stylizer() -> Stylizer:
        model = StableDiffusion(str(tiny_dir))
        return Stylizer(model, lora_dir=studio / "loras", output_dir=None, num_inference_steps=1, feather=0)

    gold, tomato, photo = studio / "gold.png", studio / "tomato.png", studio / "photo.png"
    boxes = [("box: 0,0,30,64", gold), StyleRegion(tomato, mask="box: 40,0,72,64")]
    made = np.asarray(diffstyler.stylize(photo, stylizer=stylizer(), regions=boxes)).astype(int)
    change = np.abs(made - np.asarray(load_image(photo))).max((0, 2))
    assert change[30:40].max() == 0
    assert change[:30].mean() > 5
    assert change[40:].mean() > 5
    for wrong in ({}, {"style": gold, "regions": boxes}):
        with pytest.raises(DiffstylerError, match="expected a style, or regions="):
            diffstyler.stylize(photo, **wrong)
    with pytest.raises(DiffstylerError, match="did you mean 'point'"):
        diffstyler.stylize(photo, regions=[("pointt: 1,2", gold)])


def test_types_are_part_of_the_package():
    assert (Path(diffstyler.__file__).parent / "py.typed").is_file()


IMPORTS = (
    "from diffstyler import FitData, LoRAFinetuner, fit, stylize",
    "from diffstyler.fit.crops import Crops; from diffstyler import fit",
    "import diffstyler; diffstyler.LoRAFinetuner; fit = diffstyler.fit",
)


def test_every_way_to_import_fit_gives_what_fits():
    """The room has the same name. In a process of its own, each time anew: what was imported before decides."""
    use = f"""
import sys
for imports in {IMPORTS}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffstyler"]:
        del sys.modules[name]
    exec(imports)
    import diffstyler.fit.crops
    diffstyler.fit.crops.Crops()
    try:
        fit()
    except TypeError as error:
        assert "argument: 'picture'" in str(error), (imports, error)
    else:
        raise AssertionError(imports)
"""
    done = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_fit_in_a_notebook_gives_the_lora(studio, tiny_dir, tmp_path):
    finetuner = LoRAFinetuner(StableDiffusion(str(tiny_dir)), lora_dir=tmp_path, rank=1, preview_steps=0)
    data = FitData(pictures=[studio / "gold.png"], crops=Crops(resolution=64, crop_size=64, count=1))
    entry = diffstyler.fit(studio / "gold.png", finetuner, steps=1, data=data)
    assert entry.identity.name == "gold"
    assert (entry.folder / "pytorch_lora_weights.safetensors").is_file()


def test_pictures_and_masks_may_be_in_memory(studio, tiny_dir):
    def stylizer() -> Stylizer:
        model = StableDiffusion(str(tiny_dir))
        return Stylizer(model, lora_dir=studio / "loras", output_dir=None, num_inference_steps=1, feather=0)

    photo, box = load_image(studio / "photo.png"), "box: 0,0,30,64"
    (mask,) = diffstyler.masks(photo, [box], stylizer())
    assert (mask.size, mask.getbbox()) == (photo.size, (0, 0, 30, 64))
    assert pixels(diffstyler.masks(studio / "photo.png", [box, "background"], stylizer())[1]) == pixels(invert(mask))
    told: list[tuple[int, int]] = []
    where = [(photo, mask), (studio / "photo.png", box)]
    made = [
        diffstyler.stylize(
            picture,
            regions=[(part, studio / "gold.png")],
            stylizer=stylizer(),
            progress=lambda *steps: told.append(steps),
        )
        for picture, part in where
    ]
    assert pixels(made[0]) == pixels(made[1]) != pixels(photo)
    assert told[-1] == (3, 3)  # the content, the style and the picture
    assert told.count((3, 3)) >= 2


def test_a_look_on_the_way_changes_nothing_and_comes_nearer(studio, tiny_dir):
    def made(**more):
        model = StableDiffusion(str(tiny_dir))
        stylizer = Stylizer(model, lora_dir=studio / "loras", output_dir=None, num_inference_steps=6, feather=0)
        where = [("box: 0,0,32,64", studio / "gold.png")]
        return np.asarray(diffstyler.stylize(studio / "photo.png", stylizer=stylizer, regions=where, **more)).astype(
            int
        )

    seen: list = []
    watched = made(preview=seen.append, preview_every=2)
    assert (watched == made()).all()
    assert len(seen) == 2  # after the second and the fourth step
    photo = np.asarray(load_image(studio / "photo.png").resize(seen[0].size)).astype(int)
    result = np.asarray(Image.fromarray(watched.astype(np.uint8)).resize(seen[0].size)).astype(int)
    away = [np.abs(np.asarray(look).astype(int) - result)[:, :30].mean() for look in seen]
    assert away[1] < away[0]
    for look in seen:
        assert (np.asarray(look)[:, 34:] == photo[:, 34:]).all()


def test_seeds_and_rows(studio, tiny_dir):
    def stylizer(out=None) -> Stylizer:
        model = StableDiffusion(str(tiny_dir))
        return Stylizer(model, lora_dir=studio / "loras", output_dir=out, num_inference_steps=2, initial=FromStyle())

    photo, gold = studio / "photo.png", studio / "gold.png"
    (studio / "one.jsonl").write_text(
        json.dumps({"id": "it", "content": "photo.png", "style": "gold.png", "seed": 3}) + "\n"
    )
    (row,) = diffstyler.read_manifest(studio / "one.jsonl")
    made = diffstyler.stylize_row(row, stylizer(studio / "out"))
    assert pixels(load_image(studio / "out/it.png")) == pixels(made)
    assert json.loads((studio / "out/it.json").read_text())["seed"] == 3
    assert pixels(diffstyler.stylize(photo, gold, stylizer(), seed=3)) == pixels(made)


class StopError(Exception):
    pass


@pytest.mark.parametrize("what", ["fit", "stylize"])
def test_a_callback_ends_a_run_and_leaves_the_model_as_it_was(what, studio, tiny_dir, tmp_path):
    model = StableDiffusion(str(tiny_dir)).load()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def stop(done: int, total: int) -> None:
        assert total == {"fit": 9, "stylize": 9}[what]
        if done >= 3:
            raise StopError

    def go() -> None:
        if what == "fit":
            finetuner = LoRAFinetuner(model, lora_dir=tmp_path / "new", rank=1, preview_steps=0)
            diffstyler.fit(studio / "gold.png", finetuner, steps=9, data=small(), progress=stop)
        else:
            stylizer = Stylizer(model, lora_dir=studio / "loras", output_dir=None, num_inference_steps=3)
            diffstyler.stylize(studio / "photo.png", studio / "gold.png", stylizer, progress=stop)

    with pytest.raises(StopError):
        go()
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if what == "fit":
        assert list((tmp_path / "new/.unfinished").glob("*.pt"))


def small() -> FitData:
    return FitData(pictures=[Path("none")], crops=Crops(resolution=64, crop_size=64, count=1))


def test_several_fits_tell_of_each(studio, tiny_dir, tmp_path):
    settings = {"rank": 1, "preview_steps": 1, "preview_every": 2}
    finetuner = LoRAFinetuner(StableDiffusion(str(tiny_dir)), lora_dir=tmp_path, **settings)
    losses, drawn = [], []
    paths = [studio / "gold.png", studio / "tomato.png"]
    entries = diffstyler.fit_all(
        paths,
        finetuner,
        steps=3,
        data=small(),
        loss=lambda path, step, loss: losses.append((path, step, loss)),
        preview=lambda path, step, picture: drawn.append((path, step, picture.size)),
    )
    assert [entry.identity.name for entry in entries] == ["gold", "tomato"]
    assert sorted((path, step) for path, step, _ in losses) == [(path, step) for path in paths for step in (1, 2, 3)]
    assert sorted(drawn) == [(path, step, (64, 64)) for path in paths for step in (2, 3)]


def test_a_lora_of_another_tool_joins_the_library_and_acts(studio, tiny_dir, tmp_path):
    library = diffstyler.LoRALibrary(studio / "loras")
    (gold,) = [entry for entry in library.entries() if entry.identity.name == "gold"]
    file = diffstyler.export_lora(gold.folder, tmp_path / "from elsewhere.safetensors", family="sd1")
    model = StableDiffusion(str(tiny_dir))
    entry = diffstyler.add_lora(file, tmp_path / "own", picture=studio / "gold.png", backbone=model)
    assert [one.identity.name for one in diffstyler.LoRALibrary(tmp_path / "own").entries()] == ["from elsewhere"]

    def stylizer(lora_dir: Path) -> Stylizer:
        return Stylizer(model, lora_dir=lora_dir, output_dir=None, num_inference_steps=2, content_lora="off")

    own = diffstyler.stylize(studio / "photo.png", entry, stylizer(tmp_path / "own"))
    found = diffstyler.stylize(studio / "photo.png", studio / "gold.png", stylizer(tmp_path / "own"))
    assert pixels(own) == pixels(found)  # its picture finds it
    assert (
        np.abs(
            np.asarray(own).astype(int)
            - diffstyler.stylize(studio / "photo.png", studio / "gold.png", stylizer(studio / "loras"))
        ).max()
        <= 2
    )  # the prompt is another's
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(DiffstylerError, match=r"no\.safetensors: not a readable safetensors file"):
        diffstyler.add_lora(tmp_path / "no.safetensors", tmp_path / "own", backbone=model)
    with pytest.raises(DiffstylerError, match="it was made for another model"):
        diffstyler.add_lora(file, tmp_path / "own", backbone=StableDiffusion("embedded"))
    assert len(diffstyler.LoRALibrary(tmp_path / "own").entries()) == 1


def test_what_a_notebook_shows_fits_a_line(studio, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [
        LoRALibrary(studio / "loras").entries()[0],
        StableDiffusion("embedded"),
        LoRAFinetuner(rank=4),
        Stylizer(StableDiffusion(revision="main")),
    ]
    for thing in shown:
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__}(")
        assert "\n" not in text
        assert "object at" not in text
    assert len(repr(shown[2])) < 100
    assert "revision='main'" in repr(shown[3])


def test_loggers_say_again_what_they_would():
    logger = logging.getLogger("diffusers")
    before = logger.level
    with quiet():
        assert logger.level == logging.ERROR
    assert logger.level == before
