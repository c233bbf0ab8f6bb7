"""LoRA files: what goes out comes back, diffusers reads the same, and broken files are named."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors.torch import save_file

from diffstyler.adapters import WEIGHTS_NAME, LoRAFileError, LoRAPack, Rows, lora_scale, pack_for, read_lora, save_lora

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def config(targets: list[str] = ATTENTION, **more) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=16, target_modules=targets, **more)


def random_state(tiny, config: LoraConfig) -> dict[str, torch.Tensor]:
    pack = LoRAPack(tiny.unet, config, 1)
    pack.flat.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    pack.detach()
    return pack.state_dict(0)


@pytest.mark.parametrize(
    ("config", "scale"),
    [(config(), 4.0), (config(use_rslora=True), 8.0), (config(["to_q", "conv1", "conv_shortcut"]), 4.0)],
    ids=["attention", "rslora", "convolutions"],
)
@torch.no_grad()
def test_diffusers_reads_what_we_write(tiny, tiny_dir, tmp_path, config, scale):
    state = random_state(tiny, config)
    path = save_lora(tmp_path / "lora", state, config)
    lora = read_lora(path.parent)
    assert path == tmp_path / "lora" / WEIGHTS_NAME
    assert (lora.scale, lora.rank, lora.path) == (scale, 4, path)
    assert lora.scale == lora_scale(config)
    assert lora.state.keys() == state.keys()
    assert all(torch.equal(lora.state[key], state[key]) for key in state)

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompt = tiny.encode_prompt(["a red tree"])
    timestep = torch.tensor([501])
    pack = pack_for(tiny.unet, [lora.state], [lora.scale])
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
    lora = read_lora(tmp_path / "a.safetensors")
    assert (lora.scale, lora.rank) == (1.0, 2)
    assert set(lora.state) == {f"{KEY.removeprefix('unet.')}.lora_{m}.weight" for m in "AB"}


def test_nan_is_refused_and_nothing_written(tiny, tmp_path):
    state = random_state(tiny, config())
    key = next(iter(state))
    state[key][0, 0] = torch.nan
    with pytest.raises(LoRAFileError, match=f"lora: {key} has NaN or infinite values; nothing was written"):
        save_lora(tmp_path / "lora", state, config())
    assert not list(tmp_path.iterdir())


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
