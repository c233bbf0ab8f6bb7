"""A tiny random backbone of Stable Diffusion's topology, and a browser."""

import copy
import gc
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from low_rank import random_modules
from peft import LoraConfig
from PIL import Image
from tiny_models import loaded, tiny_text_encoder, tiny_unet, tiny_vae
from transformers import CLIPTokenizer

from diffstyler.adapters import LoRAIdentity, LoRALibrary, save_lora
from diffstyler.backbones import StableDiffusion
from diffstyler.backbones.source import EMBEDDED
from diffstyler.images import load_image, picture_sha256

torch.set_num_threads(1)  # the models are tiny, and tests run side by side


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first: a long test that begins last is waited for with one worker idle."""
    items.sort(key=lambda item: item.path.parent.name not in {"tests", "faults", "farm"})


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: else every collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def chosen_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests mean the CPU, on a machine with a GPU too, in what they start as well; those marked ``gpu`` mean CUDA."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, driven by playwright; a machine without one of them skips the test."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Diffusers directories of the same tiny model, by prediction type."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    parts = {"unet": tiny_unet(), "vae": tiny_vae(), "text_encoder": tiny_text_encoder(tokenizer)}
    folders = {}
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
        )
        extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **extras)
        folders[prediction_type] = tmp_path_factory.mktemp(prediction_type)
        pipe.save_pretrained(folders[prediction_type])
    return folders


@pytest.fixture
def tiny_dir(request: pytest.FixtureRequest, tiny_dirs: dict[str, Path]) -> Path:
    """The tiny model's directory; parametrize it (indirect) with a prediction type, the default is ε."""
    return tiny_dirs[getattr(request, "param", "epsilon")]


@pytest.fixture
def tiny(tiny_dir: Path) -> StableDiffusion:
    """The tiny model, loaded; every test has its own copy."""
    return copy.deepcopy(loaded(tiny_dir))


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family (sd1, sd2, sdxl): ``model``, a diffusers directory, and ``model.safetensors``."""
    from tiny_models import FAMILIES, save_original, tiny_pipeline

    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp(family)
        pipeline = tiny_pipeline(family)
        pipeline.save_pretrained(folders[family] / "model")
        save_original(pipeline, folders[family] / "model.safetensors")
    return folders


RANK = 4


@pytest.fixture(scope="session")
def studios(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A model's directory -> ``studio`` as it is at first, made once."""

    @cache
    def make(tiny_dir: Path) -> Path:
        folder = tmp_path_factory.mktemp("studio")
        generator = torch.Generator().manual_seed(0)
        for name, size in {"photo": (72, 64), "tall": (64, 88), "gold": (64, 64), "tomato": (64, 64)}.items():
            small = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(small.numpy()).resize(size).save(folder / f"{name}.png")
        backbone = loaded(tiny_dir)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        library = LoRALibrary(folder / "loras")
        for name, role in {"gold": "style", "tomato": "style", "photo": "content"}.items():
            parts = {"unet": random_modules(backbone.unet, config, seed=sum(name.encode()), size=0.3)}
            sha256 = picture_sha256(load_image(folder / f"{name}.png"))
            identity = LoRAIdentity(role, name, sha256, backbone.fingerprint(), {"prompt": f"painting of {name}"})
            library.publish(identity, lambda folder, parts=parts: save_lora(folder, parts, {"unet": config}))
        return folder

    return make


@pytest.fixture
def studio(tmp_path: Path, tiny_dir: Path, studios: Callable[[Path], Path]) -> Path:
    """A folder with two photographs, two style pictures, and a library with random LoRAs for all of them."""
    shutil.copytree(studios(tiny_dir), tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name in ("red", "green", "blue"):
        small = torch.randint(256, (8, 9, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path_factory.getbasetemp() / f"{name}.png"
        Image.fromarray(small.numpy()).resize((72, 64), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths
