"""Names and metadata of every dialect, alphas and ranks of every kind, and wrong files (see also test_lora_matrix)."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from low_rank import by_peft, filled_pack, from_peft, random_modules
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file

from diffstyler.adapters import (
    LoRA,
    LoRAFileError,
    LowRank,
    Rows,
    inspect_lora,
    kohya_family,
    read_lora,
    save_kohya,
    save_lora,
)
from diffstyler.adapters.dialects import kohya_name, place_of

TARGETS = {"attention": ["to_q", "to_k", "to_v", "to_out.0"]}
RANK, ALPHA = 4, 10
LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TIMESTEP = torch.tensor([501])


@pytest.fixture
def state(tiny, request) -> dict[str, torch.Tensor]:
    return by_peft(random_modules(tiny.unet, LoraConfig(r=RANK, target_modules=TARGETS[request.param])))


def config(state: dict[str, torch.Tensor]) -> LoraConfig:
    names = sorted({key.rsplit(".lora_", 1)[0] for key in state})
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)


def diffusers_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    return save_lora(tmp_path / "lora", {"unet": from_peft(state, ALPHA / RANK)}, {"unet": config(state)})


def kohya_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    lora = read_lora(diffusers_file(tmp_path, state))
    return save_kohya(tmp_path / "kohya.safetensors", lora, family="sd1", title="Test", trigger="painting of <sss>")


def peft_folder(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(
        {f"base_model.model.{key}": tensor for key, tensor in state.items()}, folder / "adapter_model.safetensors"
    )
    fields = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def merged(tiny, updates: dict[str, torch.Tensor]) -> torch.Tensor:
    """The UNet's output with updates added to its weights."""
    for name, update in updates.items():
        module = tiny.unet.get_submodule(name)
        module.weight.data += update.view(module.weight.shape)
    return tiny.predict(LATENTS, TIMESTEP, tiny.encode_prompt(["a red tree"]))


def ours(tiny, path: Path) -> torch.Tensor:
    lora = read_lora(path)
    pack = filled_pack(tiny.unet, lora.parts["unet"])
    with pack.rows(Rows(torch.tensor([0]))):
        output = tiny.predict(LATENTS, TIMESTEP, tiny.encode_prompt(["a red tree"]))
    pack.detach()
    return output


def updates(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {key.rsplit(".lora_", 1)[0] for key in state}
    a, b = ({n: state[f"{n}.lora_{side}.weight"].flatten(1) for n in names} for side in "AB")
    return {name: ALPHA / RANK * b[name] @ a[name] for name in names}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("sd1", ("sd_v1", "False", "stable-diffusion-v1/lora", "512x512", "epsilon")),
        ("sd2-512", ("sd_v2", "True", "stable-diffusion-v2-512/lora", "512x512", "epsilon")),
        ("sd2-768-v", ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "768x768", "v")),
        ("sdxl", ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "1024x1024", "epsilon")),
    ],
)
def test_kohyas_metadata(tmp_path, family, expected):
    update = LowRank(torch.ones(RANK, 8), torch.ones(8, RANK), ALPHA / RANK)
    lora = LoRA({"unet": {"mid_block.to_q": update}}, tmp_path)
    path = save_kohya(tmp_path / "kohya.safetensors", lora, family=family, title="Test", trigger="painting of <sss>")
    with safe_open(path, "pt") as file:
        metadata, alpha = file.metadata(), file.get_tensor("lora_unet_mid_block_to_q.alpha")
    keys = ("ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.resolution")
    assert tuple(metadata[key] for key in (*keys, "modelspec.prediction_type")) == expected
    assert "lora_adapter_metadata" not in metadata
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == str(RANK)
    assert float(metadata["ss_network_alpha"]) == alpha == ALPHA
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.title"] == "Test"
    assert metadata["modelspec.trigger_phrase"] == "painting of <sss>"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(path.read_bytes()[8 + header :]).hexdigest()
    assert kohya_family(inspect_lora(path)) == family


def test_shapes_do_not_tell_which_stable_diffusion_2(tmp_path):
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"unet.{module}.lora_A.weight": torch.ones(4, 1024), f"unet.{module}.lora_B.weight": torch.ones(64, 4)},
        tmp_path / "sd2.safetensors",
    )
    facts = inspect_lora(tmp_path / "sd2.safetensors")
    assert facts["family"] == "sd2"
    with pytest.raises(ValueError, match=r"nothing says whether 512 or 768-v; name one .* --family: .*sd2-768-v"):
        kohya_family(facts)


@pytest.mark.parametrize(("prediction_type", "family"), [("epsilon", "sd2-512"), ("v_prediction", "sd2-768-v")])
def test_what_we_fit_says_which_stable_diffusion_2_it_is_for(tmp_path, prediction_type, family):
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    update = LowRank(torch.ones(RANK, 1024), torch.ones(64, RANK), ALPHA / RANK)
    own = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[module])
    path = save_lora(tmp_path, {"unet": {module: update}}, {"unet": own}, prediction_type=prediction_type)
    assert kohya_family(inspect_lora(path)) == family


XL = {
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks_4_1_transformer_blocks_1_attn1_to_q",
    "down_blocks.2.attentions.1.proj_in": "input_blocks_8_1_proj_in",
    "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj": "middle_block_1_transformer_blocks_9_ff_net_0_proj",
    "mid_block.resnets.1.conv1": "middle_block_2_in_layers_2",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0": (
        "output_blocks_2_1_transformer_blocks_0_attn2_to_out_0"
    ),
    "up_blocks.1.attentions.0.proj_out": "output_blocks_3_1_proj_out",
    "up_blocks.2.resnets.0.conv2": "output_blocks_6_0_out_layers_3",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks_4_0_emb_layers_1",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
}


@pytest.mark.parametrize(("module", "original"), XL.items())
def test_names_of_sdxl_both_ways(module, original):
    assert kohya_name("unet", module, xl=True) == f"lora_unet_{original}"
    place = place_of(f"lora_unet_{original}.lora_down.weight")
    assert (place.part, place.module, place.role) == ("unet", module, "down")


@pytest.mark.parametrize(
    ("key", "part", "module"),
    [
        (
            "lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha",
            "text_encoder",
            "encoder.layers.3.self_attn.q_proj",
        ),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "text_encoder_2", "encoder.layers.0.mlp.fc1"),
        ("text_encoder.text_model.encoder.layers.1.mlp.fc2.lora_A.weight", "text_encoder", "encoder.layers.1.mlp.fc2"),
        ("unet.mid_block.attentions.0.proj_in.lora.up.weight", "unet", "mid_block.attentions.0.proj_in"),
        ("mid_block.attentions.0.proj_in.lora_A.weight", "unet", "mid_block.attentions.0.proj_in"),
        (
            "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.up.weight",
            "text_encoder",
            "encoder.layers.1.self_attn.out_proj",
        ),
        ("text_encoder_2.text_projection.lora_A.weight", "text_encoder_2", "text_projection"),
        ("lora_te2_text_projection.alpha", "text_encoder_2", "text_projection"),
    ],
)
def test_parts_of_the_model(key, part, module):
    place = place_of(key)
    assert (place.part, place.module) == (part, module)


@pytest.mark.parametrize(
    "key", ["lora_A.weight", "unet.conv_in.weight", "transformer.x.lora_A.weight", "lora_unet_x.diff"]
)
def test_foreign_keys_have_no_place(key):
    assert place_of(key) is None


@pytest.mark.parametrize("state", ["attention"], indirect=True)
@torch.no_grad()
def test_alphas_that_differ_between_modules(tiny, tmp_path, state):
    path, wanted = kohya_file(tmp_path, state), updates(state)
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for index, key in enumerate(sorted(key for key in tensors if key.endswith(".alpha"))):
        tensors[key] = torch.tensor(float(1 + index % 3))
        module = place_of(key).module
        wanted[module] = wanted[module] / ALPHA * (1 + index % 3)
    save_file(tensors, path)
    torch.testing.assert_close(ours(tiny, path), merged(tiny, wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("state", ["attention"], indirect=True)
def test_ranks_and_alphas_by_pattern(tmp_path, state):
    folder = peft_folder(tmp_path, state)
    fields = json.loads((folder / "adapter_config.json").read_text())
    fields |= {"r": 8, "rank_pattern": {"to_[qkv]": RANK, "to_out.0": RANK}, "alpha_pattern": {"attn1.to_q": 2 * ALPHA}}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    lora, wanted = read_lora(folder), updates(state)
    for name, update in wanted.items():
        actual = lora.parts["unet"][name].update
        torch.testing.assert_close(actual, update * (2 if name.endswith("attn1.to_q") else 1))


@pytest.mark.parametrize("state", ["attention"], indirect=True)
def test_wrong_files_are_named(tmp_path, state):
    def written(**more: torch.Tensor) -> Path:
        tensors = {f"unet.{key}": tensor for key, tensor in state.items()}
        save_file(
            tensors | {key.replace("__", "."): tensor for key, tensor in more.items()}, tmp_path / "x.safetensors"
        )
        return tmp_path / "x.safetensors"

    one = torch.ones(4, 8)
    for keys, message in {
        "something__else": rf"matched {len(state)} of {len(state) + 1}, not something\.else",
        "unet__mid__to_q__lora_A__weight": "unet mid.to_q has no up weights",
        "unet__mid__to_q__dora_scale": "holds DoRA weights",
        "lora_unet_mid_to_q__hada_w1_a": "holds LoHa weights",
    }.items():
        with pytest.raises(LoRAFileError, match=message):
            read_lora(written(**{keys: one}))
    partial = read_lora(written(something__else=one), allow_partial=True)
    assert partial.unmatched == ("something.else",)
    assert by_peft(partial.parts["unet"]).keys() == state.keys()
    (tmp_path / "x.ckpt").write_bytes(b"")
    with pytest.raises(LoRAFileError, match="other formats can run code"):
        read_lora(tmp_path / "x.ckpt")
