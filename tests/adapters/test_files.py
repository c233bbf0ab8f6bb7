"""LoRA files: what goes out comes back, diffusers reads the same, and broken files are named."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from low_rank import by_peft, filled_pack, random_modules
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn

from diffstyler.adapters import (
    WEIGHTS_NAME,
    LoRAFileError,
    LowRank,
    Rows,
    by_part,
    lora_scale,
    match_modules,
    pack_of_parts,
    read_lora,
    save_lora,
)

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def config(targets: list[str] = ATTENTION, **more) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=16, target_modules=targets, **more)


@pytest.mark.parametrize(
    ("config", "scale"),
    [(config(), 4.0), (config(use_rslora=True), 8.0), (config(["to_q", "conv1", "conv_shortcut"]), 4.0)],
    ids=["attention", "rslora", "convolutions"],
)
@torch.no_grad()
def test_diffusers_reads_what_we_write(tiny, tiny_dir, tmp_path, config, scale):
    modules = random_modules(tiny.unet, config)
    path = save_lora(tmp_path / "lora", {"unet": modules}, {"unet": config})
    lora = read_lora(path.parent)
    assert path == tmp_path / "lora" / WEIGHTS_NAME
    assert lora.path == path
    assert {(module.scale, module.rank) for module in lora.parts["unet"].values()} == {(scale, 4)}
    assert scale == lora_scale(config)
    state, read = by_peft(modules), by_peft(lora.parts["unet"])
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompt = tiny.encode_prompt(["a red tree"])
    timestep = torch.tensor([501])
    pack = filled_pack(tiny.unet, lora.parts["unet"])
    with pack.rows(Rows(torch.tensor([0]))):
        ours = tiny.predict(latents, timestep, prompt)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_dir)
    pipe.load_lora_weights(path.parent)
    theirs = pipe.unet(latents, timestep, encoder_hidden_states=prompt.tokens).sample
    assert not torch.allclose(ours, tiny.predict(latents, timestep, prompt), atol=1e-3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_file_without_metadata_has_scale_one(tmp_path):
    save_file(
        {f"{KEY}.lora_A.weight": torch.ones(2, 8), f"{KEY}.lora_B.weight": torch.ones(8, 2)}, tmp_path / "a.safetensors"
    )
    ((name, module),) = read_lora(tmp_path / "a.safetensors").parts["unet"].items()
    assert (name, module.scale, module.rank) == (KEY.removeprefix("unet."), 1.0, 2)


def test_nan_is_refused_and_nothing_written(tiny, tmp_path):
    modules = random_modules(tiny.unet, config())
    name = next(iter(modules))
    modules[name].down[0, 0] = torch.nan
    with pytest.raises(LoRAFileError, match=f"lora: unet {name} has NaN or infinite values; nothing was written"):
        save_lora(tmp_path / "lora", {"unet": modules}, {"unet": config()})
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_contradicts_the_scales_is_refused(tiny, tmp_path):
    doubled = {n: LowRank(m.down, m.up, 2 * m.scale) for n, m in random_modules(tiny.unet, config()).items()}
    with pytest.raises(LoRAFileError, match="what was read back differs from what was written"):
        save_lora(tmp_path / "lora", {"unet": doubled}, {"unet": config()})


def test_the_level_that_some_text_encoders_have_is_in_a_file_once(tmp_path):
    """Those with a projection keep `text_model` in transformers 5; a LoRA's own names are without it."""
    encoder = nn.ModuleDict({"text_model": nn.ModuleDict({"fc1": nn.Linear(8, 8)})})
    models = {"unet": nn.ModuleDict({"to_q": nn.Linear(8, 8)}), "text_encoder_2": encoder}
    configs = {"unet": config(["to_q"]), "text_encoder_2": config(["fc1"])}
    pack = pack_of_parts(models, configs, 1, device=torch.device("cpu"), dtype=torch.float32)
    pack.init_slot(0, seed=0, scale=4.0)
    path = save_lora(tmp_path / "lora", by_part(pack.export(0)), configs)
    assert b'"text_encoder_2.text_model.fc1.lora_A.weight"' in path.read_bytes()
    assert match_modules(encoder, read_lora(path).parts["text_encoder_2"]) == {"fc1": "text_model.fc1"}


def write_truncated(file: Path) -> None:
    save_file({f"{KEY}.lora_A.weight": torch.ones(4, 8)}, file)
    file.write_bytes(file.read_bytes()[:-16])


def write_tensors(metadata: dict | None = None, **tensors: torch.Tensor):
    """A writer of a file with these tensors, A and B standing for one module's."""
    keys = {"A": f"{KEY}.lora_A.weight", "B": f"{KEY}.lora_B.weight"}
    texts = {LORA_ADAPTER_METADATA_KEY: json.dumps(metadata)} if metadata else None
    return lambda file: save_file({keys.get(k, k): tensor for k, tensor in tensors.items()}, file, metadata=texts)


A, B = torch.ones(4, 8), torch.ones(8, 4)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.safetensors", lambda file: None, "no such file; expected a LoRA folder"),
        ("a.bin", lambda file: file.write_bytes(b"code"), r"expected a \.safetensors file; other formats can run code"),
        ("a.safetensors", lambda file: file.write_bytes(b"code"), "not a readable safetensors file"),
        ("a.safetensors", write_truncated, "was it cut off"),
        ("a.safetensors", write_tensors(), "matched 0 of 0, not any of a UNet"),
        (
            "a.safetensors",
            write_tensors(A=A, B=B, lora_unet_mid_alpha=A.clone()),
            "expected keys like .*matched 2 of 3, not lora_unet_mid_alpha",
        ),
        ("a.safetensors", write_tensors(A=A), "to_q has no up weights"),
        ("a.safetensors", write_tensors(B=B), "to_q has no down weights"),
        ("a.safetensors", write_tensors(A=A, B=B * torch.inf), "to_q has NaN or infinite values"),
        (
            "a.safetensors",
            write_tensors({"unet.r": 8, "unet.lora_alpha": 8}, A=A, B=B),
            "rank 4, but its metadata says 8",
        ),
    ],
    ids=["missing", "pickle", "garbage", "truncated", "empty", "foreign", "A alone", "B alone", "infinite", "rank"],
)
def test_files_that_are_no_lora_are_named(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(LoRAFileError, match=message) as error:
        read_lora(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_an_empty_folder_is_no_lora(tmp_path):
    with pytest.raises(LoRAFileError, match=f"{WEIGHTS_NAME}: no such file"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("{cut off", "is not JSON"),
        (json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.use_dora": True}), "asks for DoRA"),
    ],
)
def test_metadata_that_cannot_be_honored_is_refused(tmp_path, metadata, expected):
    state = {"unet.to_q.lora_A.weight": torch.ones(2, 4), "unet.to_q.lora_B.weight": torch.ones(4, 2)}
    path = tmp_path / "lora.safetensors"
    save_file(state, path, metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(LoRAFileError, match=expected):
        read_lora(path)
