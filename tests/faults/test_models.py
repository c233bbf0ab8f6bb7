"""Models of other kinds are refused, loaded or only checked, and never taken for what they are not."""

import json
import shutil
from pathlib import Path

import pytest

from diffstyler.backbones import StableDiffusion
from diffstyler.errors import DiffstylerError

REFUSED = {
    "sample": ({"prediction_type": "sample"}, "predicts sample; expected epsilon or v_prediction"),
    "flow": ({"prediction_type": "flow_prediction"}, "predicts flow_prediction; expected"),
    "null": ({"prediction_type": None}, "predicts None; expected"),
    "typing error": ({"prediction_type": "v-prediction"}, "predicts v-prediction; expected"),
    "flow matching": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "noise levels of FlowMatch"),
    "flow sigmas": ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "noise levels of UniPC"),
    "EDM": ({"_class_name": "EDMEulerScheduler"}, "noise levels of EDMEuler"),
    "unknown": ({"_class_name": "MyScheduler"}, "a scheduler that diffusers knows, got 'MyScheduler'"),
    "no scheduler": ({"_class_name": "UNet2DConditionModel"}, "a scheduler that diffusers knows"),
}


@pytest.fixture
def changed(tiny_dir: Path, tmp_path: Path):
    def change(settings: dict) -> StableDiffusion:
        folder = tmp_path / "model"
        shutil.copytree(tiny_dir, folder, copy_function=lambda old, new: Path(new).symlink_to(old))
        for file, own in {"scheduler/scheduler_config.json": settings, "model_index.json": {}}.items():
            config = json.loads((folder / file).read_text())
            if "scheduler" in config and "_class_name" in settings:
                own = {"scheduler": ["diffusers", settings["_class_name"]]}
            (folder / file).unlink()
            (folder / file).write_text(json.dumps({**config, **own}))
        return StableDiffusion(str(folder))

    return change


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("step", ["check", "load"])
def test_what_is_no_diffusion_of_noise_or_velocity_is_refused(changed, kind, step):
    settings, told = REFUSED[kind]
    with pytest.raises(DiffstylerError, match=f"model '.*{told}"):
        getattr(changed(settings), step)()


@pytest.mark.parametrize("sampler", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_whatever_sampler_a_model_is_saved_with(changed, sampler):
    backbone = changed({"_class_name": sampler})
    backbone.check()
    assert backbone.load().prediction.name == "epsilon"
