"""LoRAs that reach the text encoder: packed as exactly as the UNet's, in the same file, resumed bitwise."""

from pathlib import Path

import pytest
import torch
from low_rank import by_peft
from peft import inject_adapter_in_model
from runs import KillAt, KilledError, finetune
from torch.nn.functional import mse_loss

from diffstyler.adapters import WEIGHTS_NAME, LoRALibrary, LoRAPack, inspect_lora, pack_of_parts, read_lora
from diffstyler.backbones import StableDiffusion
from diffstyler.fit.crops import Crops, take_crops
from diffstyler.fit.jobs import FitJob, FitPicture, FitSettings
from diffstyler.fit.slot import LossScale, open_slot

TARGETS = ["to_q", "to_v"]
TEXT = ["q_proj", "v_proj", "fc1"]
STEPS = 4
PROMPT = "painting of <sss>"


def fit_text(tiny_dir: Path, folder: Path, paths: list[Path], **settings) -> dict[str, bytes]:
    """The bytes of each LoRA's file."""
    settings = {"target_modules": TARGETS, "text_encoder_targets": TEXT, "steps": STEPS, **settings}
    finetune(tiny_dir, folder, paths, **settings)
    return {entry.identity.name: (entry.folder / WEIGHTS_NAME).read_bytes() for entry in LoRALibrary(folder).entries()}


def fit_with_peft(folder: Path, path: Path) -> torch.Tensor:
    """As the field fits one LoRA on both models; only the draws and the initial A are ours -> all weights."""
    backbone = StableDiffusion(str(folder)).load(torch.float64)
    settings = FitSettings(
        prompt=PROMPT, steps=STEPS, rank=4, target_modules=tuple(TARGETS), text_encoder_targets=tuple(TEXT)
    )
    models = {"unet": backbone.unet, "text_encoder": backbone.text_encoder}
    configs = {"unet": settings.config, "text_encoder": settings.text_config}
    with torch.no_grad():
        pixels, _ = take_crops([path], Crops(resolution=64, crop_size=64, count=3), 0, resolution=64, multiple=8)
        latents = torch.cat([backbone.encode_image(crop[None]) for crop in pixels])
    pack = pack_of_parts(models, configs, 1, device=torch.device("cpu"), dtype=torch.float64)
    job = FitJob(FitPicture((path,), "", path.stem), settings, None)
    slot = open_slot(
        job,
        0,
        pack,
        latents,
        None,
        loss_scale=LossScale(),
    )
    initial = by_peft(pack.export(0))
    pack.detach()
    weights = {}
    for part, model in models.items():
        inject_adapter_in_model(configs[part], model)
        own = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
        weights |= {f"{part}.{name}": parameter for name, parameter in own.items()}
    assert weights.keys() == initial.keys()
    for name, parameter in weights.items():
        parameter.data = initial[name].double()
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)
    for slot.step in range(STEPS):
        draw = slot.draw(2, len(backbone.alphas_cumprod))
        alphas = backbone.alphas_cumprod[draw.timesteps].view(-1, 1, 1, 1)
        noise = draw.noise.double()
        noised = alphas.sqrt() * latents[draw.crops].double() + (1 - alphas).sqrt() * noise
        tokens = backbone.encode_prompt([PROMPT]).tokens.expand(2, -1, -1)
        loss = mse_loss(backbone.unet(noised, draw.timesteps, encoder_hidden_states=tokens).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
    names = [name.removesuffix(".lora_A.weight") for name in weights if ".lora_A." in name]
    return torch.cat([weights[f"{name}.lora_{side}.weight"].detach().flatten() for name in names for side in "AB"])


def test_a_packed_lora_with_text_equals_pefts_own(tiny_dir, pictures, tmp_path, monkeypatch):
    oracle = fit_with_peft(tiny_dir, pictures[0])
    rows, kept = [], LoRAPack.exporting

    def remember(pack, slot, *more):  # in the pack's own precision, before a file rounds it
        rows.append(pack.flat.detach()[slot].clone())
        return kept(pack, slot, *more)

    monkeypatch.setattr(LoRAPack, "exporting", remember)
    fit_text(tiny_dir, tmp_path, pictures[:2], pack_size=2, precision="64-true")
    errors = sorted(((row - oracle).norm() / oracle.norm()).item() for row in rows)
    assert len(errors) == 2
    assert errors[0] < 1e-10
    assert errors[1] > 0.01


def test_text_is_fitted_bitwise_whatever_the_neighbors_and_interruptions(tiny_dir, pictures, tmp_path):
    settings = {"pack_size": 2, "deterministic": True, "checkpoint_every": 2}
    whole = fit_text(tiny_dir, tmp_path / "whole", pictures, **settings)
    with pytest.raises(KilledError):
        fit_text(tiny_dir, tmp_path / "cut", pictures[::-1], callbacks=[KillAt(3)], **settings)
    assert fit_text(tiny_dir, tmp_path / "cut", pictures[::-1], **settings) == whole


def test_both_parts_are_in_one_file_and_in_the_identity(tiny_dir, pictures, tmp_path):
    (content,) = fit_text(tiny_dir, tmp_path, pictures[:1], alpha=8, preview_steps=2).values()
    (entry,) = LoRALibrary(tmp_path).entries()
    lora = read_lora(entry.folder)
    assert set(lora.parts) == {"unet", "text_encoder"}
    assert all(module.scale == 2 for modules in lora.parts.values() for module in modules.values())
    updated = lora.parts["text_encoder"].values()
    assert len(updated) == 6
    assert all(module.update.abs().max() > 0 for module in updated)
    assert b"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" in content
    facts = inspect_lora(entry.folder)
    assert (facts["alphas"], facts["parts"]["text_encoder"], facts["problem"]) == ([8.0], 6, None)
    assert entry.identity.settings["text_encoder_targets"] == sorted(TEXT)
    fit_text(tiny_dir, tmp_path, pictures[:1], alpha=8, text_encoder_targets=())
    plain, other = sorted(LoRALibrary(tmp_path).entries(), key=lambda e: "text_encoder_targets" in e.identity.settings)
    assert "text_encoder_targets" not in plain.identity.settings
    assert other.identity.key == entry.identity.key
    assert set(read_lora(plain.folder).parts) == {"unet"}


def test_text_targets_that_match_nothing_are_named(tiny_dir, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"target_modules .*no_such.* matches no module"):
        fit_text(tiny_dir, tmp_path, pictures[:1], text_encoder_targets=["no_such"])
