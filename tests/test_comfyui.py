"""The nodes, imported as ComfyUI does it: by path, as a package without a parent."""

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


class LoadImage:
    """ComfyUI's own: pictures (1, H, W, 3) in [0, 1], and a mask."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"image": (["photo.png"], {"image_upload": True})}}

    def load(self, image):
        pixels = torch.from_numpy(np.array(load_image(Path(image)))).float()[None] / 255
        return pixels, torch.zeros(pixels.shape[:3])


class SaveImage:
    """ComfyUI's own, which ends a graph."""

    RETURN_TYPES = ()
    FUNCTION = "save"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images, filename_prefix):
        for one in images:
            Image.fromarray((one.numpy() * 255).round().astype(np.uint8)).save(f"{filename_prefix}.png")
        return {"ui": {"images": [filename_prefix]}}


def prompt_of(graph, kinds):
    """A workflow as ComfyUI's page sends it: links by node and slot, widgets by name, in the order that is stated."""
    sources = {number: [str(source), slot] for number, source, slot, *_ in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        stated = kinds[node["type"]].INPUT_TYPES()
        stated = {**stated["required"], **stated.get("optional", {})}
        widgets = [name for name, (kind, *_) in stated.items() if isinstance(kind, list) or kind in WIDGETS]
        inputs = dict(zip(widgets, node.get("widgets_values", []), strict=False))
        inputs |= {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN"}


class Executor:
    """Runs prompts as ComfyUI's does: in a thread of its own, in inference mode, each node made once and its outputs
    kept as lists for the next prompt, each input checked against what the node states."""

    def __init__(self, kinds):
        self.kinds, self.objects, self.kept = kinds, {}, {}
        self.ran = []

    def __call__(self, prompt):
        self.ran = []
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._run, prompt).result()

    def _run(self, prompt):
        with torch.inference_mode():
            for id, node in prompt.items():
                if node["class_type"] == "SaveImage":
                    self._outputs(prompt, id)

    def _outputs(self, prompt, id):
        node = prompt[id]
        kind = self.kinds[node["class_type"]]
        stated = kind.INPUT_TYPES()
        assert stated["required"].keys() <= node["inputs"].keys()
        values = {}
        for name, value in node["inputs"].items():
            type_, *more = {**stated["required"], **stated.get("optional", {})}[name]
            if isinstance(value, list):
                assert self.kinds[prompt[value[0]]["class_type"]].RETURN_TYPES[value[1]] == type_
                values[name] = self._outputs(prompt, value[0])[value[1]]
            else:
                values[name] = [{"INT": int, "FLOAT": float}.get(str(type_), str)(value)]
                if more and "min" in more[0]:
                    assert more[0]["min"] <= value <= more[0]["max"]
        known = json.dumps(self._settled(prompt, id))
        if self.kept.get(id, ("",))[0] != known:
            self.ran.append(id)
            node_object = self.objects.setdefault(id, kind())
            count = max(map(len, values.values()))
            made = [
                getattr(node_object, kind.FUNCTION)(**{k: v[min(i, len(v) - 1)] for k, v in values.items()})
                for i in range(count)
            ]
            made = [one.get("result", ()) if isinstance(one, dict) else one for one in made]
            assert all(len(one) == len(kind.RETURN_TYPES) for one in made)
            self.kept[id] = known, [[one[slot] for one in made] for slot in range(len(kind.RETURN_TYPES))]
        return self.kept[id][1]

    def _settled(self, prompt, id):
        """All that determines a node's outputs."""
        inputs = prompt[id]["inputs"].items()
        return [prompt[id]["class_type"]] + [
            [name, self._settled(prompt, value[0]) + value[1:] if isinstance(value, list) else value]
            for name, value in inputs
        ]


def test_the_workflow_runs_as_comfyui_runs_it_and_again_with_another_setting(nodes, studio, tiny_dir, monkeypatch):
    monkeypatch.chdir(studio)
    graph = json.loads((FOLDER / "regions.json").read_text())
    kinds = {**nodes.NODE_CLASS_MAPPINGS, "LoadImage": LoadImage, "SaveImage": SaveImage}
    prompt = prompt_of(graph, kinds)
    by_kind = {}
    for node in prompt.values():
        by_kind.setdefault(node["class_type"], []).append(node["inputs"])
    for inputs, style in zip(by_kind["DiffstylerLoadLora"], ("gold", "tomato"), strict=True):
        inputs["lora"] = str(next((studio / "loras").glob(f"{style}-*")))
    for inputs in by_kind["DiffstylerMaskPrompt"] + by_kind["DiffstylerStylizeRegions"]:
        inputs["model"] = str(tiny_dir)
    by_kind["DiffstylerMaskPrompt"][0]["prompt"] = "box: 0,0,30,64"
    (stylizing,) = by_kind["DiffstylerStylizeRegions"]
    stylizing["steps"] = 2
    run_prompt = Executor(kinds)
    run_prompt(prompt)
    assert len(run_prompt.ran) == len(prompt)
    first = np.asarray(load_image(studio / "diffstyler.png")).astype(int)
    photo = np.asarray(load_image(studio / "photo.png")).astype(int)
    assert first.shape == photo.shape
    assert np.abs(first - photo).mean() > 1
    stylizing["strength"] = 0.0
    run_prompt(prompt)
    assert [prompt[id]["class_type"] for id in run_prompt.ran] == ["DiffstylerStylizeRegions", "SaveImage"]
    second = np.asarray(load_image(studio / "diffstyler.png")).astype(int)
    assert np.abs(first - second).mean() > 0.5
    stylizing["strength"] = 1.0
    run_prompt(prompt)
    assert np.array_equal(np.asarray(load_image(studio / "diffstyler.png")), first)


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


def test_a_model_stays_loaded_until_another_one_is_named(nodes, tiny_dir, tiny_dirs):
    one = nodes._stylizer(str(tiny_dir), num_inference_steps=1).backbone
    assert nodes._stylizer(str(tiny_dir), num_inference_steps=2).backbone is one
    assert nodes._stylizer(str(tiny_dirs["v_prediction"])).backbone is not one
