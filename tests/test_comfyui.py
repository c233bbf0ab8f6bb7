"""The nodes, imported as ComfyUI does it: by path, as a package without a parent."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffstyler.images import load_image

FOLDER = Path(__file__).parents[1] / "integrations/comfyui"


@pytest.fixture(scope="module")
def nodes():
    name = str(FOLDER).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


def run(kind, **inputs):
    """As ComfyUI runs a node: made without arguments, called by name with what its inputs say."""
    stated = kind.INPUT_TYPES()
    assert stated["required"].keys() <= inputs.keys() <= stated["required"].keys() | stated.get("optional", {}).keys()
    outputs = getattr(kind(), kind.FUNCTION)(**inputs)
    assert len(outputs) == len(kind.RETURN_TYPES)
    return outputs[0]


def test_a_picture_goes_through_the_graph(nodes, studio, tiny_dir):
    kinds = nodes.NODE_CLASS_MAPPINGS
    model = str(tiny_dir)
    photo = torch.from_numpy(np.array(load_image(studio / "photo.png"))).float()[None] / 255
    loras = [next((studio / "loras").glob(f"{name}-*")) for name in ("gold", "tomato")]
    gold, tomato = (run(kinds["DiffstylerLoadLora"], lora=str(folder)) for folder in loras)
    left = run(kinds["DiffstylerMaskPrompt"], image=photo, prompt="box: 0,0,30,64", model=model)
    assert left.shape == (1, 64, 72)
    column, soft = torch.arange(72), 2  # the border's, to both sides
    assert bool((left[..., column < 30 - soft] == 1).all())
    assert bool((left[..., column >= 30 + soft] == 0).all())
    right = torch.zeros(64, 72)
    right[:, 50:] = 1
    below = run(kinds["DiffstylerRegion"], lora=gold, mask=left)
    regions = run(kinds["DiffstylerRegion"], lora=tomato, mask=right, below=below)
    settings = {"content_prompt": "", "steps": 1, "guidance_scale": 1.0, "strength": 1.0, "model": model}
    made = run(kinds["DiffstylerStylizeRegions"], image=photo, regions=regions, **settings)
    assert made.shape == photo.shape
    change = (made - photo).abs().amax((0, 1, 3))
    assert change[35:45].max() < 1e-6
    assert change[:25].min() > 0.01
    assert change[55:].min() > 0.01


def test_a_wrong_lora_is_told_at_its_node(nodes, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        run(nodes.LoadLora, lora=str(tmp_path / "nothing"))


def test_the_workflow_fits_the_nodes(nodes):
    """Every input, output, widget and link of it is one that the nodes state."""
    graph = json.loads((FOLDER / "regions.json").read_text())
    by_id = {node["id"]: node for node in graph["nodes"]}
    own = {node["type"] for node in graph["nodes"]} & nodes.NODE_CLASS_MAPPINGS.keys()
    assert own == nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in (node for node in graph["nodes"] if node["type"] in own):
        kind = nodes.NODE_CLASS_MAPPINGS[node["type"]]
        stated = {**kind.INPUT_TYPES()["required"], **kind.INPUT_TYPES().get("optional", {})}
        widgets = [name for name, (type_, *_) in stated.items() if type_ in {"STRING", "INT", "FLOAT"}]
        assert len(node["widgets_values"]) == len(widgets)
        assert {entry["name"]: entry["type"] for entry in node["inputs"]} == {
            name: type_ for name, (type_, *_) in stated.items() if name not in widgets
        }
        assert [output["type"] for output in node["outputs"]] == list(kind.RETURN_TYPES)
    for number, source, output, target, place, type_ in graph["links"]:
        assert number in by_id[source]["outputs"][output]["links"]
        assert by_id[target]["inputs"][place]["link"] == number
        assert by_id[source]["outputs"][output]["type"] == by_id[target]["inputs"][place]["type"] == type_
