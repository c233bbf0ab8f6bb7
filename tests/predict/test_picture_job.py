"""Which pictures are one and the same: the key of a request."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import pixels, row, stylize

from diffstyler.backbones import StableDiffusion
from diffstyler.diffusion.initial import FromContent, InitialLatents
from diffstyler.predict.adapter_resolver import AdapterFile
from diffstyler.predict.picture_job import PictureJob, RegionJob
from diffstyler.provenance import InexpressibleError
from diffstyler.types import StyleRegion, Triple

LORA = Path("no/gold.safetensors")


@pytest.fixture
def job() -> PictureJob:
    region = StyleRegion(LORA, mask="box: 1,2,30,40", strength=0.5, start=0.9, inject_features=0.2)
    settled = RegionJob.settled(
        region,
        AdapterFile(LORA, "b" * 64, "painting"),
        prompt="painting, a cup, ",
        negative_prompt="ugly",
        guidance_scale=4.5,
    )
    triple = Triple("x", Path("photo.png"), (region,), content_prompt="a cup", seed=3)
    settings = {"num_inference_steps": 50, "initial": {"class": "FromContent", "noise": 0.0}}
    content = AdapterFile(Path("c"), "d" * 64)
    return PictureJob(triple, Image.new("RGB", (8, 8)), (8, 8), "c" * 64, content, (settled,), settings)


def test_pictures_made_before_are_still_found(job):
    """The key that version 47465c4 gave this very request."""
    assert job.key == "8d5ab583161f18470f39e655259f7b48e7847184e83fca930a015c206cd31085"


def test_all_that_determines_a_picture_is_in_its_key(job):
    (region,) = job.regions
    other = {
        "content_sha256": "e" * 64,
        "content_adapter": None,
        "settings": {},
        "triple": replace(job.triple, seed=4),
        **{f"row {f.name}": replace(region, row=replace(region.row, **{f.name: 0.125})) for f in ROW},
        **{f"adapter {n}": replace(region, adapter=replace(region.adapter, **{n: "f"})) for n in ("sha256", "picture")},
        "mask files": replace(region, mask_files=("f",)),
    }
    changed = {
        name: replace(job, **({name: value} if hasattr(job, name) else {"regions": (value,)}))
        for name, value in other.items()
    }
    keys = {name: own.key for name, own in changed.items()}
    assert job.key not in keys.values()
    assert len(set(keys.values())) == len(keys)


#: where a style's picture lies does not matter
#: without the style and what its hash tells too, and without where the row stands
ROW = [f for f in dataclasses.fields(StyleRegion) if f.name not in ("style", "style_picture", "origin")]


def test_a_row_keeps_what_it_says(job):
    said = StyleRegion(LORA, prompt="sky", negative_prompt="", guidance_scale=0.0)
    settled = RegionJob.settled(said, AdapterFile(LORA, "b"), prompt="p", negative_prompt="n", guidance_scale=1.0)
    assert settled.row == said


# ---- what the settings of a run must tell


def test_tiles_give_another_picture_and_another_key(studio, tiny_dir):
    """Asked for, or chosen to save memory."""
    first, keys = None, []
    for tiling in (False, True):
        backbone = StableDiffusion(str(tiny_dir), vae_tiling=tiling)
        stylize(studio, tiny_dir, row(studio), out="out", backbone=backbone, num_inference_steps=1)
        sidecar = json.loads((studio / "out" / "photo-gold.json").read_text())
        assert sidecar["settings"].get("vae_tiling", False) is tiling
        keys.append(sidecar["key"])
        first = first or (studio / "out" / "photo-gold.json").stat().st_mtime_ns
    assert keys[0] != keys[1]
    assert (studio / "out" / "photo-gold.json").stat().st_mtime_ns != first


def test_tiles_chosen_to_save_memory_are_told_as_those_asked_for(studio, tiny_dir, monkeypatch):
    from diffstyler.memory.plan import PredictPlan
    from diffstyler.predict import stylizer

    for tiling in (False, True):
        plan = PredictPlan(rows=64, tiling=tiling, offload=False, bytes=0.0)
        monkeypatch.setattr(stylizer, "plan_predict", lambda *_, plan=plan: plan)
        stylize(studio, tiny_dir, row(studio), out=f"{tiling}", max_memory=1.0, num_inference_steps=1)
        sidecar = json.loads((studio / f"{tiling}" / "photo-gold.json").read_text())
        assert sidecar["settings"].get("vae_tiling", False) is tiling


@dataclass(frozen=True)
class FromChannels(InitialLatents):
    """Of each channel, so much; a strategy that is made of more than numbers and words."""

    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    names: frozenset[str] = frozenset({"b", "a"})
    inner: InitialLatents = field(default_factory=FromContent)

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        return self.inner(content, style, seed) * content.new_tensor(self.weights).view(-1, 1, 1)


class FromNoOne(InitialLatents):
    """Keeps nothing of what it was made with."""

    def __init__(self, how: object) -> None:
        super().__init__()

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        return content


def test_strategies_of_every_kind_are_recorded_or_refused(studio, tiny_dir):
    initial = FromChannels((1.0, 0.5, 1.0, 2.0))
    pictures = [
        stylize(studio, tiny_dir, row(studio), out=f"out{n}", initial=own, num_inference_steps=1)[0]
        for n, own in enumerate((initial, FromChannels()))
    ]
    assert pixels(pictures[0]) != pixels(pictures[1])
    recorded, other = (
        json.loads((studio / f"out{n}" / "photo-gold.json").read_text())["settings"]["initial"] for n in (0, 1)
    )
    assert recorded["weights"] == [1.0, 0.5, 1.0, 2.0]
    assert recorded["names"] == ["a", "b"]
    assert recorded["inner"]["class"] == "FromContent"
    assert recorded != other
    with pytest.raises(InexpressibleError, match="cannot be recorded"):
        stylize(studio, tiny_dir, row(studio), out="refused", initial=FromNoOne(lambda: 1))
    assert not list(studio.glob("refused/*.png"))
