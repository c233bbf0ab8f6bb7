"""The LoRAs of a run on the loaded model: what matches acts, text encoders included; what does not is an error."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from low_rank import random_modules
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny_models import tiny_pipeline

from diffstyler.adapters import LoRALibrary, read_lora, save_kohya, save_lora
from diffstyler.backbones import StableDiffusionXL
from diffstyler.predict import adapter_cache
from diffstyler.predict.adapter_cache import PROMPTS_KEPT, AdapterCache, ForeignLoRAError
from diffstyler.predict.adapter_resolver import AdapterFile, ResolvedAdapters, resolve_adapters
from diffstyler.types import StyleRegion, Triple

PROMPT = "a red tree"


@pytest.fixture
def files(tiny, tmp_path) -> dict[str, Path]:
    """A LoRA with a text-encoder part, and one without."""
    models = {"unet": tiny.unet, "text_encoder": tiny.text_encoder}
    targets = {"unet": ["to_v"], "text_encoder": ["q_proj", "v_proj", "fc1"]}
    return {
        "both": random_lora(tmp_path / "both", models, targets),
        "unet": random_lora(tmp_path / "unet", models, {"unet": ["to_v"]}),
    }


def random_lora(folder: Path, models: dict[str, torch.nn.Module], targets: dict[str, list[str]]) -> Path:
    configs = {part: LoraConfig(r=2, lora_alpha=6, target_modules=names) for part, names in targets.items()}
    parts = {}
    for seed, (part, config) in enumerate(configs.items()):
        modules = random_modules(models[part], config, seed=seed, size=0.2)
        parts[part] = {name.removeprefix("text_model."): module for name, module in modules.items()}
    return save_lora(folder, parts, configs)


def found(*paths: Path, **settings) -> tuple[ResolvedAdapters, list[AdapterFile]]:
    regions = [StyleRegion(path) for path in paths]
    triples = [Triple(region.style.stem, region.style, (region,)) for region in regions]
    adapters = resolve_adapters(triples, LoRALibrary(Path("nowhere")), model="", content_lora="off", **settings)
    if adapters.problems:
        raise ValueError(adapters.problems[0].reason)
    return adapters, [adapters.style(region) for region in regions]


def loaded(backbone, *paths: Path, **settings) -> tuple[AdapterCache, list[AdapterFile]]:
    """These LoRAs found, matched and loaded."""
    adapters, files = found(*paths, **settings)
    cache = AdapterCache(adapters, backbone, **settings)
    cache.load(files, torch.device("cpu"))
    return cache, files


@torch.no_grad()
def test_prompts_are_encoded_under_the_lora_as_diffusers_does(tiny, tiny_dir, files):
    cache, (_, both) = loaded(tiny, files["unet"], files["both"])
    base = tiny.encode_prompt([PROMPT]).tokens
    pipe = StableDiffusionPipeline.from_pretrained(tiny_dir)
    pipe.load_lora_weights(files["both"].parent, adapter_name="it")
    seen = []
    for strength in (1.0, 0.5):
        pipe.set_adapters(["it"], [strength])
        theirs, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
        seen.append(cache.embed(PROMPT, both, strength).tokens)
        torch.testing.assert_close(seen[-1], theirs, atol=1e-5, rtol=1e-4)
        assert (theirs - base).abs().max() > 1e-2
    assert not torch.allclose(*seen, atol=1e-3)
    assert cache.embed(PROMPT, both, 0.5).tokens is seen[1]


@torch.no_grad()
def test_nothing_of_a_lora_leaves_the_embeddings_bitwise(tiny, files):
    base = tiny.encode_prompt([PROMPT]).tokens
    cache, (unet, both) = loaded(tiny, files["unet"], files["both"])
    assert torch.equal(cache.embed(PROMPT).tokens, base)
    assert torch.equal(cache.embed(PROMPT, unet).tokens, base)
    assert torch.equal(cache.embed(PROMPT, both, 0.0).tokens, base)
    cache.close()
    assert torch.equal(tiny.encode_prompt([PROMPT]).tokens, base)
    assert not any(module._forward_hooks for module in tiny.modules())


@torch.no_grad()
def test_only_the_latest_prompts_are_kept(tiny, files):
    cache, (both,) = loaded(tiny, files["both"])
    first = cache.embed("0", both)
    for number in range(1, PROMPTS_KEPT):
        cache.embed(str(number), both)
    assert cache.embed("0", both) is first
    for number in range(1, PROMPTS_KEPT + 1):
        cache.embed(f"other {number}", both)
    again = cache.embed("0", both)
    assert again is not first
    assert torch.equal(again.tokens, first.tokens)


def test_the_least_recently_used_makes_room(tiny, files, monkeypatch):
    """Three LoRAs in two slots."""
    monkeypatch.setattr(adapter_cache, "KEPT", 2)
    read, real = [], adapter_cache.read_lora
    counted = lambda path, **how: read.append(path.parent.name) or real(path, **how)  # noqa: E731
    monkeypatch.setattr(adapter_cache, "read_lora", counted)
    third = files["unet"].parents[1] / "third"
    shutil.copytree(files["both"].parent, third)
    adapters, (a, b, c) = found(files["unet"], files["both"], third)
    cache = AdapterCache(adapters, tiny)
    for wanted in ([a], [b], [a], [c], [a], [b, a]):  # a was used after b, then after c
        cache.load([*wanted, None], torch.device("cpu"))
        assert len({cache.slot(file) for file in wanted}) == len(wanted)
    assert read == ["unet", "both", "third", "both"]
    assert cache.slot(None) is None
    cache.close()


def broken(path: Path, **changes: torch.Tensor) -> Path:
    """A copy with further keys."""
    changed = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file(load_file(path) | changed, path.with_name("broken.safetensors"))
    return path.with_name("broken.safetensors")


FOREIGN = {
    "unet__nowhere__to_v__lora_A__weight": torch.ones(2, 32),
    "unet__nowhere__to_v__lora_B__weight": torch.ones(32, 2),
}


def test_a_partial_match_is_an_error_unless_allowed(tiny, files, caplog):
    path = broken(files["both"], **FOREIGN)
    count = len(load_file(files["both"])) // 2
    with pytest.raises(ForeignLoRAError, match=rf"{count} of its {count + 1} modules match .*not unet nowhere\.to_v"):
        loaded(tiny, path)
    with caplog.at_level(logging.WARNING):
        cache, _ = loaded(tiny, path, allow_partial=True)
    assert f"{count} of its {count + 1} modules match" in caplog.text
    assert cache.pack is not None
    whole, _ = loaded(tiny, files["both"])
    assert torch.equal(cache.pack.flat, whole.pack.flat)


def test_keys_of_no_dialect_are_an_error_unless_allowed(tiny, files, caplog):
    path = broken(files["unet"], something__else=torch.ones(2))
    with pytest.raises(ValueError, match=r"not something\.else"):
        loaded(tiny, path)
    with caplog.at_level(logging.WARNING):
        loaded(tiny, path, allow_partial=True)
    assert "1 keys are of no known dialect; not something.else" in caplog.text


def test_a_lora_of_another_model_is_an_error_even_so(tiny, tmp_path):
    save_file({key.replace("__", "."): tensor for key, tensor in FOREIGN.items()}, tmp_path / "other.safetensors")
    with pytest.raises(ForeignLoRAError, match=r"0 of its 1 modules match .* made for another model"):
        loaded(tiny, tmp_path / "other.safetensors", allow_partial=True)


@torch.no_grad()
def test_both_text_encoders_of_sdxl(tmp_path):
    """Tokens and pooled embeddings, as diffusers encodes them; and a kohya file does the same."""
    pipe = tiny_pipeline("sdxl")
    pipe.save_pretrained(tmp_path / "model")
    backbone = StableDiffusionXL(str(tmp_path / "model")).load()
    models = {"unet": backbone.unet, **backbone.text_encoders}
    targets = {part: ["attn2.to_v"] if part == "unet" else ["q_proj", "fc2"] for part in models}
    path = random_lora(tmp_path / "lora", models, targets)
    kohya = save_kohya(tmp_path / "kohya.safetensors", read_lora(path), family="sdxl", title="Test")
    base = backbone.encode_prompt([PROMPT])
    pipe.load_lora_weights(path.parent)
    tokens, _, pooled, _ = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
    for file in (path, kohya):
        cache, (adapter,) = loaded(backbone, file)
        ours = cache.embed(PROMPT, adapter)
        cache.close()
        assert ours.pooled is not None
        torch.testing.assert_close(ours.tokens, tokens, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=1e-4)
        assert (ours.tokens - base.tokens).abs().max() > 1e-2
        assert (ours.pooled - base.pooled).abs().max() > 1e-2
