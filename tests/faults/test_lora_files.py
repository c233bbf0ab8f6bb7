"""LoRA files of impossible shapes and metadata: an error that names the file, and facts that are valid JSON."""

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file

from diffstyler.adapters import LoRAFileError, inspect_lora, read_lora
from diffstyler.cli.main import main
from diffstyler.cli.messages import _Printable
from diffstyler.images import is_picture

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
UNET = "unet." + MODULE
QUOTED = MODULE.replace(".", r"\.")
DOWN, UP = torch.ones(2, 8), torch.ones(16, 2)


def file(folder: Path, tensors: dict[str, torch.Tensor], config: object = None, *, text: str | None = None) -> Path:
    path = folder / "lora.safetensors"
    told = text if text is not None else json.dumps(config)
    save_file(tensors, path, {LORA_ADAPTER_METADATA_KEY: told} if text is not None or config is not None else None)
    return path


def kohya(down: torch.Tensor = DOWN, up: torch.Tensor = UP, alpha: torch.Tensor | None = None) -> dict:
    name = f"lora_unet_{MODULE.replace('.', '_')}"
    pair = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return pair if alpha is None else {**pair, f"{name}.alpha": alpha}


def refused(path: Path) -> None:
    with pytest.raises(LoRAFileError, match=r"lora\.safetensors"):
        read_lora(path)
    facts = inspect_lora(path) if path.is_file() else {}
    json.loads(json.dumps(facts, allow_nan=False))
    assert facts["problem"]


SHAPES = {
    "rank 0": (torch.ones(0, 8), torch.ones(16, 0), None),
    "no input": (torch.ones(2, 0), UP, None),
    "one dimension up": (DOWN, torch.ones(16), None),
    "one dimension down": (torch.ones(8), UP, None),
    "numbers": (torch.tensor(1.0), torch.tensor(1.0), None),
    "three dimensions": (torch.ones(2, 8, 1), torch.ones(16, 2, 1), None),
    "another rank": (DOWN, torch.ones(16, 3), None),
    "empty alpha": (DOWN, UP, torch.ones(0)),
    "two alphas": (DOWN, UP, torch.ones(2)),
    "NaN alpha": (DOWN, UP, torch.tensor(float("nan"))),
    "infinite alpha": (DOWN, UP, torch.tensor(float("inf"))),
    "NaN": (DOWN * float("nan"), UP, None),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_that_no_lora_has(tmp_path, kind):
    refused(file(tmp_path, kohya(*SHAPES[kind])))


PEFT = {f"{UNET}.lora_A.weight": DOWN, f"{UNET}.lora_B.weight": UP}

CONFIGS = {
    "r as text": {"r": "two"},
    "r a list": {"r": [2]},
    "r true": {"r": True},
    "alpha as text": {"r": 2, "lora_alpha": "4"},
    "alpha null": {"r": 2, "lora_alpha": None},
    "alpha NaN": {"r": 2, "lora_alpha": float("nan")},
    "alpha infinite": {"r": 2, "lora_alpha": float("inf")},
    "pattern a list": {"r": 2, "alpha_pattern": ["to_k"]},
    "pattern a number": {"r": 2, "rank_pattern": 3},
    "pattern to text": {"r": 2, "alpha_pattern": {"to_k": "2"}},
    "pattern to null": {"r": 2, "alpha_pattern": {"to_k": None}},
    "no expression": {"r": 2, "alpha_pattern": {"(": 2}},
    "an expression that never ends": {"r": 2, "alpha_pattern": {"(([a-z0-9_.]+)+)+!": 2}},
    "an alternative that never ends": {"r": 2, "alpha_pattern": {"(a|a)*!": 2}},
    "another one": {"r": 2, "rank_pattern": {"(.*)*x" * 9: 2}},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_metadata_that_say_nothing_usable(tmp_path, kind):
    refused(file(tmp_path, PEFT, CONFIGS[kind]))


@pytest.mark.parametrize("text", ["null", "[]", "3", '"text"', "{", "", "[" * 100_000])
def test_metadata_that_are_no_object(tmp_path, text):
    with pytest.raises(LoRAFileError, match=r"lora\.safetensors: its LoRA configuration is"):
        read_lora(file(tmp_path, PEFT, text=text))


@pytest.mark.parametrize("pattern", ["to_[kqv]", r".*\.to_k", "to_k", "attn2.to_k", "^" + MODULE, MODULE + "$", QUOTED])
def test_patterns_that_name_modules_are_read(tmp_path, pattern):
    path = file(tmp_path, PEFT, {"r": 2, "lora_alpha": 2, "alpha_pattern": {pattern: 6}})
    assert read_lora(path).parts["unet"][MODULE].scale in (1.0, 3.0)
    assert inspect_lora(path)["problem"] is None


@pytest.mark.parametrize("name", ["A.SAFETENSORS", "a.Safetensors"])
def test_weights_in_capitals_are_weights(tmp_path, name):
    path = file(tmp_path, PEFT).rename(tmp_path / name)
    assert not is_picture(path)
    assert read_lora(path).parts["unet"].keys() == {MODULE}


@pytest.mark.parametrize("name", ["a.pt", "a.PTH", "a.ckpt", "a.bin"])
def test_pickles_are_no_pictures_and_are_not_opened(tmp_path, name):
    torch.save({}, tmp_path / name)
    assert not is_picture(tmp_path / name)
    with pytest.raises(LoRAFileError, match="other formats can run code"):
        read_lora(tmp_path / name)


def texts(value: object) -> list[str]:
    """All texts in a JSON value."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [text for one in inner for text in texts(one)]


CONTROLS = ["\x1b[2J\x1b]0;mine\x07", "\x9b31m", "\x7f\b\b", "\r", "\u202e"]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("place", ["key", "prompt", "base model", "tag", "configuration"])
def test_what_files_tell_never_reaches_the_terminal_raw(tmp_path, capsys, control, place):
    tensors = {**PEFT, f"un{control}known": DOWN.clone()} if place == "key" else PEFT
    metadata = {
        "prompt": {"modelspec.trigger_phrase": control},
        "base model": {"ss_base_model_version": control},
        "tag": {"ss_tag_frequency": json.dumps({"all": {control: 1}})},
        "configuration": {LORA_ADAPTER_METADATA_KEY: json.dumps({"r": 2, "alpha_pattern": {f"({control}": 2}})},
    }
    save_file(tensors, path := tmp_path / "lora.safetensors", metadata.get(place))
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert place == "configuration" or control in "".join(texts(json.loads(told)))
    main(["export", str(path), "--output", str(tmp_path / "out.safetensors")])
    assert all(character.isprintable() or character == "\n" for character in told + "".join(capsys.readouterr()))


@pytest.mark.parametrize("control", CONTROLS)
def test_what_is_logged_is_printable(control):
    record = logging.LogRecord("diffstyler", logging.WARNING, "", 0, "a %s\nb\tc", (control,), None)
    quiet = _Printable("%(message)s").format(record)
    assert quiet.startswith("a ")
    assert quiet.endswith("\nb\tc")
    assert all(character.isprintable() or character in "\n\t" for character in quiet)
