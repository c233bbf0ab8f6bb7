"""Targets x ranks x formats x loaders, for Stable Diffusion 1 and XL: every way gives what the merged weights give."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from low_rank import by_peft, filled_pack
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import tiny_text_encoder, tiny_vae
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from diffstyler.adapters import LoRA, LoRAPack, LowRank, Rows, match_modules, read_lora, save_kohya, save_lora
from diffstyler.backbones.source import EMBEDDED

TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
#: of the UNet, and of the text encoders
TARGETS = {
    "attention": (["attn1.to_q", "attn2.to_k", "attn2.to_v", "to_out.0"], []),
    "feed-forward": (["attn1.to_k", "ff.net.0.proj", "ff.net.2"], []),
    "projections": (["attn1.to_v", "proj_in", "proj_out"], []),
    "resnets": (["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"], []),
    "outside": (["conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2", "attn2.to_v"], []),
    "text": (["attn2.to_k"], TEXT),
    "text queries": (["attn2.to_q"], ["q_proj", "v_proj"]),
}
RANK, ALPHA = 3, 5
Deltas = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Family:
    """A tiny random pipeline; ``inputs``: a UNet's input and a text's tokens."""

    name: str
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline
    unet_inputs: dict
    tokens: torch.Tensor

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        names = ("unet", "text_encoder", "text_encoder_2")
        return {name: self.pipe.components[name] for name in names if name in self.pipe.components}

    def outputs(self, models: dict[str, torch.nn.Module] | None = None) -> dict[str, torch.Tensor]:
        """What each part of the model gives."""
        models = self.models if models is None else models
        found = {"unet": models["unet"](**self.unet_inputs).sample}
        for name in models.keys() - {"unet"}:
            output = models[name](self.tokens, output_hidden_states=True)
            found[name] = output.hidden_states[-2]
            found[f"{name} pooled"] = output[0]
        return found


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    shared = {"vae": tiny_vae(), "tokenizer": tokenizer, "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}
    extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    sd1 = StableDiffusionPipeline(unet=sd1_unet(), text_encoder=tiny_text_encoder(tokenizer), **shared, **extras)
    second = CLIPTextModelWithProjection(tiny_text_encoder(tokenizer).config)
    sdxl = StableDiffusionXLPipeline(
        unet=sdxl_unet(),
        text_encoder=tiny_text_encoder(tokenizer),
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        **shared,
    )
    tokens = tokenizer(["a red tree"], padding="max_length", return_tensors="pt").input_ids
    added = {"text_embeds": torch.randn(1, 16), "time_ids": torch.rand(1, 6) * 100}
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([501]),
        "encoder_hidden_states": torch.randn(1, 5, 32),
    }
    return {
        "sd1": Family("sd1", sd1, inputs, tokens),
        "sdxl": Family("sdxl", sdxl, {**inputs, "added_cond_kwargs": added}, tokens),
    }


def sd1_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32,
        attention_head_dim=(2, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        norm_num_groups=8,
    )


@dataclass(frozen=True)
class Drawn:
    """A random LoRA, and what the model gives with it merged into the weights."""

    family: Family
    parts: dict[str, dict[str, LowRank]]
    configs: dict[str, LoraConfig]
    deltas: Deltas
    merged: dict[str, torch.Tensor]


CASES = [(family, target, "uneven") for family in ("sd1", "sdxl") for target in TARGETS]
CASES += [(family, target, "equal") for family in ("sd1", "sdxl") for target in ("attention", "text")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def drawn(request, families) -> Drawn:
    name, target, ranks = request.param
    family = families[name]
    generator = torch.Generator().manual_seed(1)
    parts, configs = {}, {}
    for part, model in family.models.items():
        suffixes = tuple(f".{end}" for end in TARGETS[target][0 if part == "unet" else 1])
        names = [n for n, _ in model.named_modules() if f".{n}".endswith(suffixes)] if suffixes else []
        if not names:
            continue
        pattern = {n: 1 + i % 4 for i, n in enumerate(names) if 1 + i % 4 != RANK} if ranks == "uneven" else {}
        configs[part] = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, rank_pattern=pattern)
        parts[part] = {}
        for n in names:
            weight, rank = model.get_submodule(n).weight, pattern.get(n, RANK)
            down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.2
            up = torch.randn(len(weight), rank, *[1] * (weight.dim() - 2), generator=generator) * 0.2
            parts[part][n] = LowRank(down, up, ALPHA / rank)
    deltas = {
        part: {n: module.scale * module.up.flatten(1) @ module.down.flatten(1) for n, module in modules.items()}
        for part, modules in parts.items()
    }
    drawn = Drawn(family, parts, configs, deltas, {})
    with torch.no_grad(), merge(family, drawn.deltas):
        drawn.merged.update(family.outputs())
    return drawn


@contextmanager
def merge(family: Family, deltas: Deltas) -> Iterator[None]:
    weights = [(family.models[part].get_submodule(n).weight, d) for part, own in deltas.items() for n, d in own.items()]
    before = [weight.data.clone() for weight, _ in weights]
    for weight, delta in weights:
        weight.data += delta.view(weight.shape)
    yield
    for (weight, _), old in zip(weights, before, strict=True):
        weight.data.copy_(old)


# ---- formats


def diffusers_file(drawn: Drawn, folder: Path) -> Path:
    return save_lora(folder, {part: without_text_model(own) for part, own in drawn.parts.items()}, drawn.configs)


def kohya_file(drawn: Drawn, folder: Path) -> Path:
    lora = read_lora(diffusers_file(drawn, folder / "first"))
    return save_kohya(folder / "kohya.safetensors", lora, family=drawn.family.name, title="Test")


def peft_folder(drawn: Drawn, folder: Path) -> Path:
    """As peft itself saves a model, one folder for each part where there are several."""
    for part, modules in drawn.parts.items():
        model = get_peft_model(copy.deepcopy(drawn.family.models[part]), drawn.configs[part])
        state = by_peft(modules)
        set_peft_model_state_dict(model, {f"base_model.model.{key}": tensor for key, tensor in state.items()})
        model.save_pretrained(folder if len(drawn.parts) == 1 else folder / part)
    return folder


def old_diffusers_file(drawn: Drawn, folder: Path) -> Path:
    """`unet.….processor.to_q_lora.down.weight`; it states no alpha, so the scale goes into the weights."""
    tensors = {}
    for part, modules in drawn.parts.items():
        for name, module in modules.items():
            stem = f"{part}.{old_name(name, part)}"
            tensors |= {f"{stem}.down.weight": module.down, f"{stem}.up.weight": module.up * module.scale}
    folder.mkdir()
    save_file(tensors, folder / "old.safetensors")
    return folder / "old.safetensors"


def old_name(module: str, part: str) -> str:
    if part != "unet":
        return f"text_model.{module.removeprefix('text_model.')}.lora_linear_layer"
    stem, _, last = module.removesuffix(".0").rpartition(".")
    return f"{stem}.processor.{last}_lora" if last in {"to_q", "to_k", "to_v", "to_out"} else f"{module}.lora"


def without_text_model(modules: dict[str, LowRank]) -> dict[str, LowRank]:
    return {name.removeprefix("text_model."): module for name, module in modules.items()}


# ---- loaders


@torch.no_grad()
def ours(drawn: Drawn, path: Path) -> dict[str, torch.Tensor]:
    lora = read_lora(path)
    packs = [our_pack(drawn.family.models[part], lora, part) for part in lora.parts]
    with ExitStack() as stack:
        for pack in packs:
            stack.callback(pack.detach)
            stack.enter_context(pack.rows(Rows(torch.tensor([0]))))
        return drawn.family.outputs()


def our_pack(model: torch.nn.Module, lora: LoRA, part: str) -> LoRAPack:
    names = match_modules(model, lora.parts[part])
    assert names.keys() == lora.parts[part].keys()
    return filled_pack(model, {new: lora.parts[part][old] for old, new in names.items()})


@torch.no_grad()
def diffusers_loader(drawn: Drawn, path: Path) -> dict[str, torch.Tensor]:
    pipe = drawn.family.pipe
    try:
        pipe.load_lora_weights(path.parent, weight_name=path.name)
        return drawn.family.outputs()
    finally:
        pipe.unload_lora_weights()


@torch.no_grad()
def peft_loader(drawn: Drawn, path: Path) -> dict[str, torch.Tensor]:
    models = copy.deepcopy(drawn.family.models)
    for part in drawn.parts:
        folder = path if len(drawn.parts) == 1 else path / part
        models[part] = PeftModel.from_pretrained(models[part], folder)
    return drawn.family.outputs(models)


def close(actual: dict[str, torch.Tensor], drawn: Drawn) -> None:
    assert actual.keys() == drawn.merged.keys()
    for name, expected in drawn.merged.items():
        torch.testing.assert_close(actual[name], expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_the_lora_matters(drawn):
    base = drawn.family.outputs()
    for part in drawn.parts:
        assert (base[part] - drawn.merged[part]).abs().max() > 1e-3


FORMATS: list[tuple[Callable, Callable]] = [
    (diffusers_file, diffusers_loader),
    (kohya_file, diffusers_loader),
    (peft_folder, peft_loader),
    (old_diffusers_file, diffusers_loader),
]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's, on a text encoder
@pytest.mark.parametrize(("write", "load"), FORMATS, ids=["diffusers", "kohya", "peft", "old diffusers"])
def test_every_format_by_every_loader(drawn, tmp_path, write, load):
    path = write(drawn, tmp_path / "lora")
    close(ours(drawn, path), drawn)
    close(load(drawn, path), drawn)


# ---- kohya's files by an independent reader


@torch.no_grad()
def test_kohyas_file_by_the_published_names(drawn, tmp_path):
    """The update of a module is up @ down * alpha / rank, and its name is the original model's, with underscores."""
    with safe_open(kohya_file(drawn, tmp_path / "lora"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    names = published_names(drawn.family)
    deltas: Deltas = {}
    for key in [key for key in tensors if key.endswith(".lora_down.weight")]:
        stem = key.removesuffix(".lora_down.weight")
        down, up = tensors.pop(key).flatten(1), tensors.pop(f"{stem}.lora_up.weight").flatten(1)
        part, module = names[stem]
        deltas.setdefault(part, {})[module] = up @ down * tensors.pop(f"{stem}.alpha") / len(down)
    assert not tensors
    for part, own in drawn.deltas.items():
        for module, delta in own.items():
            torch.testing.assert_close(deltas[part][module], delta, atol=1e-6, rtol=1e-5)
    with merge(drawn.family, deltas):
        close(drawn.family.outputs(), drawn)


def published_names(family: Family) -> dict[str, tuple[str, str]]:
    """{name in the file: (part, module)} of every module of the model."""
    names = {}
    for part, model in family.models.items():
        prefix = {"text_encoder": "lora_te1" if family.name == "sdxl" else "lora_te", "text_encoder_2": "lora_te2"}
        blocks = original_blocks(model) if part == "unet" and family.name == "sdxl" else {}
        for module, _ in model.named_modules():
            name = module if part == "unet" else f"text_model.{module.removeprefix('text_model.')}"
            for block, original in blocks.items():
                if name == block or name.startswith(f"{block}."):
                    name = original + name.removeprefix(block)
            for ours_, theirs in RESBLOCK.items():
                if name.startswith(("input_blocks", "middle_block", "output_blocks")) and name.endswith(f".{ours_}"):
                    name = name.removesuffix(ours_) + theirs
            names[f"{prefix.get(part, 'lora_unet')}_{name.replace('.', '_')}"] = (part, module)
    return names


#: of ResBlock in the original code (openaimodel.py)
RESBLOCK = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def original_blocks(unet: torch.nn.Module) -> dict[str, str]:
    """diffusers' blocks by the numbers that the original UNet gives them, counted along the model."""
    found = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}
    found |= {f"time_embedding.linear_{n}": f"time_embed.{2 * n - 2}" for n in (1, 2)}
    found |= {f"add_embedding.linear_{n}": f"label_emb.0.{2 * n - 2}" for n in (1, 2)}
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            found[f"down_blocks.{i}.resnets.{layer}"] = f"input_blocks.{number}.0"
            found[f"down_blocks.{i}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            found[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    middle = ("resnets.0", "attentions.0", "resnets.1")
    found |= {f"mid_block.{name}": f"middle_block.{n}" for n, name in enumerate(middle)}
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            found[f"up_blocks.{i}.resnets.{layer}"] = f"output_blocks.{number}.0"
            found[f"up_blocks.{i}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        if block.upsamplers:
            found[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.2.conv"
    return found
