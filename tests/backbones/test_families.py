"""Every family, from a directory and from a single file: the numbers of diffusers' own pipelines, and clear errors."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from runs import generate
from tiny_models import FAMILIES

from diffstyler.backbones import StableDiffusion, StableDiffusionXL
from diffstyler.cli.main import main
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.sampling import Region
from diffstyler.images import load_image

EACH = pytest.mark.parametrize("family", list(FAMILIES))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def directory(families, family: str, **options):
    return FAMILIES[family](str(families[family] / "model"), **options)


def single_file(families, family: str, **options):
    config = {"config": str(families[family] / "model"), **options}
    return FAMILIES[family](str(families[family] / "model.safetensors"), **config)


@EACH
@pytest.mark.parametrize("layout", [directory, single_file])
@torch.no_grad()
def test_text_to_image_equals_diffusers_pipeline(families, family, layout):
    backbone = layout(families, family).load(torch.float64)  # so that no machine's rounding decides
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = pipeline.from_pretrained(families[family] / "model", dtype=torch.float64)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for negative in ("ugly", None):
        shared = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 48, "output_type": "latent"}
        expected = pipe("a red tree", negative_prompt=negative, latents=randn(1, 4, 8, 6).double(), **shared).images[0]
        prompts = (backbone.encode_prompt([text]) for text in ("a red tree", negative or ""))
        actual = generate(
            Denoiser(backbone), randn(4, 8, 6).double(), backbone.sampling_schedule(4), Region(None, *prompts, 3.0)
        )
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@EACH
@torch.no_grad()
def test_both_layouts_hold_the_same_model(families, family):
    one, other = (layout(families, family).load() for layout in (directory, single_file))
    pixels = randn(1, 3, 64, 64).clamp(-1, 1)
    assert torch.equal(one.encode_image(pixels), other.encode_image(pixels))
    assert torch.equal(one.decode_latents(randn(1, 4, 8, 8)), other.decode_latents(randn(1, 4, 8, 8)))
    assert one.prediction.name == other.prediction.name == ("v_prediction" if family == "sd2" else "epsilon")
    assert one.sites == other.sites
    assert one.fingerprint() != other.fingerprint()


def test_an_empty_prompt_is_zeros_in_sdxl_alone(families):
    with torch.no_grad():
        xl = directory(families, "sdxl").load().encode_prompt(["", "a red tree"])
        sd = directory(families, "sd1").load().encode_prompt([""])
    assert not xl.tokens[0].any()
    assert not xl.pooled[0].any()
    assert xl.tokens[1].any()
    assert sd.tokens.any()


def test_sites_of_sdxl(families):
    backbone = directory(families, "sdxl").load()
    assert backbone.sites.features == ("up_blocks.0.resnets.1.conv2",)
    places = [path.split(".transformer_blocks.")[0] for path in backbone.sites.attention]
    assert places == [f"up_blocks.0.attentions.{i}" for i in (1, 1, 2, 2)] + [
        f"up_blocks.1.attentions.{i}" for i in (0, 1, 2)
    ]


def test_sdxl_fits_and_predicts_through_the_command(families, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, color in {"content": (90, 120, 200), "style": (200, 90, 20)}.items():
        noise = Image.effect_noise((72, 64), 60).convert("RGB")
        Image.blend(noise, Image.new("RGB", noise.size, color), 0.5).save(f"{name}.png")
    rows = ["content,style,id,mask", "content.png,style.png,whole,", "content.png,style.png,part,the house"]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    model = ["--model.backbone", "StableDiffusionXL", "--model.backbone.model", str(families["sdxl"] / "model")]
    shared = ["--data.manifest", "rows.csv", "--lora_dir", "loras", "--trainer.accelerator", "cpu", *model]
    assert main(["fit", *shared, "--trainer.max_steps", "2", "--trainer.logger", "false"]) == 0
    steps = ["--output_dir", "out", "--model.num_inference_steps", "3"]
    assert main(["predict", *shared, *steps]) == 0
    for name in ("whole", "part"):
        assert load_image(tmp_path / f"out/{name}.png").size == (72, 64)
    model = json.loads((tmp_path / "out/whole.json").read_text())["settings"]["model"]
    assert model["family"] == "StableDiffusionXL"


@pytest.mark.parametrize("layout", [directory, single_file])
def test_another_family_is_named(families, layout):
    path = layout(families, "sdxl").model
    with pytest.raises(ValueError, match=r"is a StableDiffusionXLPipeline; expected a StableDiffusionPipeline"):
        StableDiffusion(path).load()
    with pytest.raises(ValueError, match=r"is a StableDiffusionPipeline; expected a StableDiffusionXLPipeline"):
        StableDiffusionXL(layout(families, "sd1").model).load()


@pytest.fixture
def copied(families, tmp_path):
    return shutil.copytree(families["sd1"] / "model", tmp_path / "model")


def test_a_file_that_was_cut_off_is_named(families, copied, tmp_path):
    for file in (copied / "unet/diffusion_pytorch_model.safetensors", tmp_path / "single.safetensors"):
        whole = (families["sd1"] / "model.safetensors").read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model.safetensors: not a whole safetensors file"):
        StableDiffusion(str(copied)).check()
    with pytest.raises(ValueError, match=r"single.safetensors: not a whole safetensors file"):
        StableDiffusion(str(tmp_path / "single.safetensors")).check()


def test_a_variant_must_be_there_and_is_loaded(copied):
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (copied / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    with pytest.raises(ValueError, match=r"no weights in .*unet; there is variant fp16: set model.backbone.variant"):
        StableDiffusion(str(copied)).load()
    with pytest.raises(ValueError, match=r"no weights of variant 'bf16' in .*unet; there is variant fp16"):
        StableDiffusion(str(copied), variant="bf16").load()
    assert StableDiffusion(str(copied), variant="fp16").load().unet.dtype == torch.float32


def test_a_part_that_is_missing_is_named(copied):
    shutil.rmtree(copied / "vae")
    with pytest.raises(ValueError, match=r"no weights in .*model/vae"):
        StableDiffusion(str(copied)).check()


def test_pickles_are_opened_by_consent_alone(families, copied, tmp_path):
    from safetensors.torch import load_file

    checkpoint = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(families["sd1"] / "model.safetensors")}, checkpoint)
    with pytest.raises(ValueError, match=r"model.ckpt is a pickle, .*allow_pickle true if you trust"):
        StableDiffusion(str(checkpoint))
    config = str(families["sd1"] / "model")
    loaded = StableDiffusion(str(checkpoint), config=config, allow_pickle=True).load()
    assert torch.equal(loaded.unet.conv_in.weight, directory(families, "sd1").load().unet.conv_in.weight)
    unet = copied / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin is a pickle"):
        StableDiffusion(str(copied)).check()


def test_a_file_that_is_no_whole_model(families, tmp_path):
    file = shutil.copy(families["sd1"] / "model/vae/diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"expected a whole checkpoint, with keys like conditioner.embedders.… or"):
        StableDiffusion(str(file)).check()


@pytest.fixture(scope="module")
def told_offline(families) -> dict[str, str]:
    """Model -> what is told of it in a process that may not ask the hub, whose library reads HF_HUB_OFFLINE once."""
    models = [str(families["sd1"] / "model.safetensors"), "nobody/nothing"]
    code = (
        "import json, sys\nfrom diffstyler import StableDiffusion\nfor model in sys.argv[1:]:\n"
        "    try: StableDiffusion(model).load()\n    except ValueError as error: print(json.dumps([model, str(error)]))"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *models], env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def test_a_single_file_without_configurations_offline(families, told_offline):
    told = told_offline[str(families["sd1"] / "model.safetensors")]
    assert "set model.backbone.config to a diffusers model" in told.splitlines()[-1]


def test_a_model_that_the_hub_does_not_give_offline(told_offline):
    told = told_offline["nobody/nothing"]
    assert "model 'nobody/nothing': not a directory or file here, and the hub did not give it" in told


def test_another_autoencoder(families, copied, tmp_path):
    vae = AutoencoderKL.from_pretrained(copied / "vae")
    vae.encoder.conv_out.bias.data.add_(1)
    vae.save_pretrained(tmp_path / "vae")
    plain, replaced = (directory(families, "sd1", vae=path) for path in (None, str(tmp_path / "vae")))
    assert plain.fingerprint() != replaced.fingerprint()
    assert replaced.identity()["vae"] == str(tmp_path / "vae")
    pixels = randn(1, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        moved = replaced.load().encode_image(pixels) - plain.load().encode_image(pixels)
    assert moved.abs().mean() > 0.01
    same = directory(families, "sd1", vae=str(families["sd1"] / "model.safetensors")).load()
    assert torch.equal(same.vae.encoder.conv_in.weight, plain.vae.encoder.conv_in.weight)
