"""Whatever comes in, no exception but the package's own: mask prompts, manifests, LoRA keys and metadata, pictures."""

import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from diffstyler.adapters import inspect_lora, read_lora
from diffstyler.adapters.dialects import place_of
from diffstyler.errors import DiffstylerError
from diffstyler.images import image_size, load_image
from diffstyler.manifests.lora_jobs import LoRAJobCells, read_lora_jobs
from diffstyler.manifests.pictures import COLUMNS, read_manifest
from diffstyler.masking.prompt_parser import parse_mask_prompt

quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

NAMES = ["house", "everything", "background", "box:", "point:", "file:", "not", "left", "value 3"]
WORDS = [*NAMES, "+", "-", "&", "(", ")", "[grow", "]", "[1]", ",", "5", "1e9", '"', "\\", "é", "0,0,9,9", "-3"]
WORDS += ["value 3", " ", "\n", "\x1b[2J"]


@quick
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
@example("(" * 5000)
@example("not " * 5000 + "house")
def test_mask_prompts(text):
    with suppress(DiffstylerError):
        tree = parse_mask_prompt(text)
        assert parse_mask_prompt(str(tree)) == tree


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["a.png", "3", ".."])
)
cells = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@quick
@given(
    st.lists(
        st.dictionaries(st.sampled_from([*COLUMNS, "regions", "picture", "rank", "x"]), cells, max_size=8), max_size=4
    )
)
def test_manifests_in_json_lines(rows):
    read_both("m.jsonl", "\n".join(json.dumps(row) for row in rows).encode())


@quick
@given(
    header=st.lists(st.sampled_from([*COLUMNS, *LoRAJobCells.model_fields, ""]), max_size=6),
    body=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: text.encode("utf-8", "ignore"))),
    suffix=st.sampled_from(["csv", "jsonl", "parquet"]),
)
def test_manifests_of_any_bytes(header, body, suffix):
    read_both(f"m.{suffix}", ",".join(header).encode() + b"\n" + body)


def read_both(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        (path.parent / "a.png").touch()
        for read in (read_manifest, read_lora_jobs):
            with suppress(DiffstylerError):
                read(path)
            with suppress(DiffstylerError):
                read(path, [])


PARTS = ["unet", "lora_unet", "text_encoder", "lora_te1", "transformer", "down_blocks", "0", "attentions", "to_q",
         "to_out", "lora_A", "lora_down", "lora_up", "alpha", "weight", "processor", "", "hada_w1_a", "é"]  # fmt: skip
keys = st.builds(
    lambda parts, joint: joint.join(parts), st.lists(st.sampled_from(PARTS), max_size=8), st.sampled_from("._")
)


@quick
@given(st.one_of(keys, st.text(max_size=40)))
def test_lora_keys(key):
    place_of(key)


shapes = st.lists(st.integers(0, 3), max_size=4)
config = st.dictionaries(st.sampled_from(["unet.r", "unet.lora_alpha", "unet.alpha_pattern", "r"]), cells)
metadata = st.one_of(st.text(max_size=20), cells.map(json.dumps), config.map(json.dumps))


@quick
@given(tensors=st.dictionaries(keys.filter(bool), shapes, min_size=1, max_size=4), told=metadata)
def test_lora_files(tensors, told):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        told = told.encode("utf-8", "ignore").decode()
        save_file({key: torch.ones(shape) for key, shape in tensors.items()}, path, {LORA_ADAPTER_METADATA_KEY: told})
        with suppress(DiffstylerError):
            read_lora(path)
        with suppress(DiffstylerError):
            json.dumps(inspect_lora(path), allow_nan=False)


@pytest.mark.filterwarnings("ignore")
@quick
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    kept=st.floats(0, 1),
)
def test_pictures_with_bytes_changed_and_cut(kind, places, kept):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for place, byte in places:
        content[int(place * min(len(content) - 1, 200))] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content[: int(kept * len(content)) + 1])
        for read in (image_size, load_image):
            with suppress(DiffstylerError):
                read(path)
