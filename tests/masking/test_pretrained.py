"""Maskers of transformers' models, on tiny random ones: what they ask the models, and where the answers land."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from tiny_maskers import save_tiny
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput
from transformers.models.owlv2.modeling_owlv2 import Owlv2ObjectDetectionOutput

from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.masking import CLIPSegMasker, GroundedSAMMasker, NothingFoundError, SAMMasker, find_masks, pretrained
from diffstyler.masking.prompt_parser import parse_mask_prompt

WIDTH, HEIGHT = 90, 60
PICTURE = Image.effect_noise((WIDTH, HEIGHT), 80).convert("RGB")
OTHERS = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "green", "blue")]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("maskers")
    return {name: str(save_tiny(name, folder / name)) for name in ("sam", "sam2", "clipseg", "owlv2", "dino")}


def box_mask(x0: float, y0: float, x1: float, y1: float) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[round(y0) : round(y1), round(x0) : round(x1)] = 1
    return mask


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return (torch.minimum(one, other).sum() / torch.maximum(one, other).sum()).item()


# ---- SAM and SAM 2


@pytest.fixture(params=["sam", "sam2"])
def sam(request, models) -> SAMMasker:
    return SAMMasker(models[request.param])


def draws_its_boxes(masker, monkeypatch, calls: list | None = None) -> None:
    """The model answers each box with the box itself, in its own low-resolution coordinates."""
    model, _ = masker._sam.model.loaded

    def forward(*, input_boxes, image_embeddings, multimask_output):
        assert not multimask_output
        if calls is not None:
            calls.append(input_boxes)
        masks = torch.full((1, input_boxes.shape[1], 1, 16, 16), -8.0)
        for mask, box in zip(masks[0, :, 0], input_boxes[0] / 64 * 16, strict=True):
            x0, y0, x1, y1 = box.round().int().tolist()
            mask[y0:y1, x0:x1] = 8
        return type("Answer", (), {"pred_masks": masks, "iou_scores": torch.ones(1, input_boxes.shape[1], 1)})

    monkeypatch.setattr(model, "forward", forward)


def test_a_box_is_asked_for_and_answered_at_its_place(sam, monkeypatch):
    """On a picture that is not square: SAM pads it, SAM 2 stretches it."""
    draws_its_boxes(sam, monkeypatch)
    for box in ((22.5, 15, 67.5, 45), (0, 30, 45, 60)):
        found = sam.find_box(PICTURE, box)
        assert found.shape == (HEIGHT, WIDTH)
        assert iou(found, box_mask(*box)) > 0.85


def test_one_point_takes_the_answer_that_the_model_is_surest_of(sam, monkeypatch):
    model, _ = sam._sam.model.loaded
    asked = []

    def forward(*, input_points, input_labels, image_embeddings, multimask_output):
        asked.append((input_points.tolist(), input_labels.tolist(), multimask_output))
        masks = torch.full((1, 1, 3, 16, 16), -8.0)
        masks[0, 0, 1, :, :8] = 8
        return type("Answer", (), {"pred_masks": masks, "iou_scores": torch.tensor([[[0.2, 0.9, 0.5]]])})

    monkeypatch.setattr(model, "forward", forward)
    found = sam.find_points(PICTURE, [(45, 30)], [])
    assert iou(found, box_mask(0, 0, 45, HEIGHT)) > 0.95
    sam.find_points(PICTURE, [(45, 30)], [(0, 60)])
    (one, labels, several), (two, more, not_several) = asked
    assert (labels, several, more, not_several) == ([[[1]]], True, [[[1, 0]]], False)
    across = one[0][0][0]
    assert across[0] == pytest.approx(32, abs=0.5)
    assert two[0][0][1][0] == 0
    assert two[0][0][0] == across


def test_several_boxes_in_one_call_are_each_alone(sam):
    boxes = [(5, 5, 40, 40), (50, 10, 80, 55), (0, 0, 90, 60)]
    together = sam._sam.boxes(PICTURE, boxes)
    alone = torch.stack([sam.find_box(PICTURE, box) for box in boxes])
    assert together.shape == (3, HEIGHT, WIDTH)
    assert (together != alone).float().mean() < 1e-3  # rounding where a logit is 0


def test_a_picture_is_encoded_once_and_the_last_few_are_kept(sam, monkeypatch):
    model, _ = sam._sam.model.loaded
    encode, pictures = model.get_image_embeddings, []
    monkeypatch.setattr(model, "get_image_embeddings", lambda pixels: pictures.append(pixels) or encode(pixels))
    first = sam.find_box(PICTURE, (5, 5, 40, 40))
    for picture in (PICTURE.copy(), *OTHERS[:2]):
        sam.find_points(picture, [(10, 10)], [])
    assert len(pictures) == 3
    assert torch.equal(sam.find_box(PICTURE, (5, 5, 40, 40)), first)
    sam.find_points(OTHERS[2], [(10, 10)], [])
    sam.find_points(PICTURE, [(10, 10)], [])
    assert len(pictures) == 5


def test_sam_knows_no_words(sam):
    with pytest.raises(DiffstylerError, match="SAMMasker knows no words, only point: and box:; GroundedSAMMasker"):
        sam.find_text(PICTURE, "a cat")


# ---- words by a detector


@pytest.fixture(params=["dino", "owlv2"])
def grounded(request, models, monkeypatch) -> GroundedSAMMasker:
    """Whose detector finds three things and a shadow of the first one; SAM draws their boxes."""
    masker = GroundedSAMMasker(models[request.param], models["sam2"], threshold=0.3)
    draws_its_boxes(masker, monkeypatch)
    detector, _ = masker._detector.loaded
    scores = torch.tensor([0.5, 0.9, 0.6, 0.1, 0.8]).logit()
    scale = torch.tensor([WIDTH, HEIGHT]) if request.param == "dino" else torch.tensor([WIDTH, WIDTH])
    corners = torch.tensor(THINGS).view(-1, 2, 2) / scale  # OWLv2 pads to a square
    boxes = torch.cat([corners.mean(1), corners[:, 1] - corners[:, 0]], 1)[None]
    asked = masker.asked = []

    def forward(**inputs):
        asked.append(inputs)
        logits = torch.full((1, 5, 8 if request.param == "dino" else 1), -20.0)
        logits[0, :, -1] = scores
        if request.param == "dino":
            return GroundingDinoObjectDetectionOutput(logits=logits, pred_boxes=boxes, input_ids=inputs["input_ids"])
        return Owlv2ObjectDetectionOutput(logits=logits, pred_boxes=boxes)

    monkeypatch.setattr(detector, "forward", forward)
    return masker


LEFT, RIGHT, LARGE = (0.0, 15.0, 22.5, 45.0), (67.5, 15.0, 90.0, 60.0), (28.125, 0.0, 61.875, 60.0)
#: 0.5, 0.9, 0.6, too unsure, and nearly the second one again
THINGS = [LEFT, RIGHT, LARGE, (0.0, 0.0, 90.0, 60.0), (67.5, 17.0, 90.0, 60.0)]


def found_by(masker, prompt: str) -> torch.Tensor:
    return find_masks(masker, PICTURE, [parse_mask_prompt(prompt)])[0]


def test_all_things_of_a_word_are_found(grounded):
    found = found_by(grounded, "a red cup")
    assert iou(found, sum(map(box_mask, *zip(LEFT, RIGHT, LARGE, strict=True)))) > 0.85
    assert len(grounded.find_objects(PICTURE, "a red cup")) == 3
    grounded.overlap = 1.0
    assert len(grounded.find_objects(PICTURE, "a red cup")) == 4


@pytest.mark.parametrize(
    ("pick", "thing"),
    {"1": RIGHT, "2": LARGE, "3": LEFT, "largest": LARGE, "smallest": LEFT, "left": LEFT, "right": RIGHT}.items(),
)
def test_one_of_the_things_is_picked(grounded, pick, thing):
    assert iou(found_by(grounded, f"a red cup [{pick}]"), box_mask(*thing)) > 0.85


def test_there_are_no_more_than_there_are(grounded):
    with pytest.raises(NothingFoundError, match=r"mask 'a red cup \[4\]': 3 of them found"):
        found_by(grounded, "a red cup [4]")


def test_a_word_that_no_box_is_sure_of(grounded):
    grounded.threshold = 0.95
    with pytest.raises(NothingFoundError, match=r"matches 'a cup': the surest box has 0\.900, .* is 0\.95"):
        found_by(grounded, "a cup")


def test_points_and_boxes_go_straight_to_sam(models):
    masker, sam = GroundedSAMMasker(models["dino"], models["sam2"]), SAMMasker(models["sam2"])
    box, points = (5, 5, 40, 40), ([(10, 10)], [(60, 30)])
    assert torch.equal(masker.find_box(PICTURE, box), sam.find_box(PICTURE, box))
    assert torch.equal(masker.find_points(PICTURE, *points), sam.find_points(PICTURE, *points))


@pytest.mark.parametrize("detector", ["dino", "owlv2"])
def test_a_whole_detector_runs(models, detector):
    found = GroundedSAMMasker(models[detector], models["sam"], threshold=0.0, overlap=1.0)
    boxes = found._boxes(PICTURE, "A red cup")
    assert boxes.shape[1] == 4
    assert boxes.amin() >= 0
    assert (boxes <= torch.tensor([WIDTH, HEIGHT] * 2)).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
    assert found.find_text(PICTURE, "a red cup").shape == (HEIGHT, WIDTH)


# ---- CLIPSeg


def test_clipseg_answers_at_its_place(models, monkeypatch):
    masker = CLIPSegMasker(models["clipseg"], threshold=0.6)
    model, _ = masker._clipseg.loaded

    def forward(**inputs):
        logits = torch.full((32, 32), -4.0)
        logits[16:, :8] = 4
        return type("Answer", (), {"logits": logits})

    monkeypatch.setattr(model, "forward", forward)
    assert iou(masker.find_text(PICTURE, "a cat"), box_mask(0, 30, 22.5, 60)) > 0.9
    masker.threshold = 0.99
    with pytest.raises(NothingFoundError, match=r"its highest probability is 0\.982, masker.threshold is 0\.99"):
        masker.find_text(PICTURE, "a cat")


def test_clipseg_is_the_models_own_answer(models):
    masker = CLIPSegMasker(models["clipseg"], threshold=0.5)
    model, processor = masker._clipseg.loaded
    inputs = processor(text=["a cat"], images=[PICTURE], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits.view(1, 1, 32, 32)
    middle = logits.sigmoid().median().item()
    found = CLIPSegMasker(models["clipseg"], threshold=middle).find_text(PICTURE, "a cat")
    full = torch.nn.functional.interpolate(logits.sigmoid(), (HEIGHT, WIDTH), mode="bilinear")[0, 0]
    assert torch.equal(found, (full >= middle).float())
    assert 0.2 < found.mean() < 0.8


# ---- weights


def test_what_is_not_here_is_refused_and_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a connection"))
    for kind, option in ((GroundedSAMMasker, "detector"), (CLIPSegMasker, "model"), (SAMMasker, "model")):
        with pytest.raises(DiffstylerError, match=rf"masker\.{option}: '.*' is neither .* `diffstyler fetch-masker "):
            kind()


def test_another_kind_of_model_is_refused(models, tmp_path):
    with pytest.raises(DiffstylerError, match=r"masker\.model: expected a model for AutoModelForMaskGeneration, but"):
        SAMMasker(models["clipseg"]).find_box(PICTURE, (1, 1, 9, 9))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffstylerError, match=r"masker\.model: expected a model for CLIPSeg"):
        CLIPSegMasker(str(tmp_path / "empty")).find_text(PICTURE, "a cat")


def test_weights_in_part_are_refused(models, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in Path(models["clipseg"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "decoder.film" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DiffstylerError, match=rf"lack {len(tensors) - len(kept)} tensors \(decoder\.film"):
        CLIPSegMasker(str(tmp_path)).find_text(PICTURE, "a cat")


def test_settings_tell_masks_apart(models):
    """They are in the key of a finished picture."""
    told = [
        GroundedSAMMasker(models["dino"], models["sam"]),
        GroundedSAMMasker(models["owlv2"], models["sam"]),
        GroundedSAMMasker(models["dino"], models["sam2"]),
        GroundedSAMMasker(models["dino"], models["sam"], threshold=0.2),
        GroundedSAMMasker(models["dino"], models["sam"], overlap=0.2),
        SAMMasker(models["sam"]),
        CLIPSegMasker(models["clipseg"]),
        CLIPSegMasker(models["clipseg"], threshold=0.2),
    ]
    texts = [json.dumps(masker.settings, sort_keys=True) for masker in told]
    assert len(set(texts)) == len(texts)
    assert told[0].settings["detector_sha256"] != told[1].settings["detector_sha256"]


def test_they_run_on_the_backbones_device_unless_told_otherwise(models, tiny):
    for masker, told in ((SAMMasker(models["sam"]), None), (SAMMasker(models["sam"], device="cpu"), "cpu")):
        masker.setup(tiny.to("meta"))
        assert masker._sam.model.device.type == (told or "meta")
    assert SAMMasker(models["sam"])._sam.model.device.type == "cpu"


def test_fetching_asks_for_what_a_masker_needs(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    assert main(["fetch-masker", "GroundedSAMMasker"]) == 0
    assert main(["fetch-masker", "google/owlv2-base-patch16-ensemble"]) == 0
    assert [name for name, _ in asked] == [pretrained.DINO, pretrained.SAM2, "google/owlv2-base-patch16-ensemble"]
    assert all(options == {"allow_patterns": list(pretrained.FILES)} for _, options in asked)
    assert capsys.readouterr().out.split() == [str(tmp_path)] * 3
    assert main(["fetch-masker", "sam"]) == 1
    assert "expected GroundedSAMMasker, CLIPSegMasker, SAMMasker, or a hub id" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [SAMMasker, CLIPSegMasker, GroundedSAMMasker])
def test_defaults_are_what_fetching_fetches(kind):
    from dataclasses import fields

    named = tuple(f.default for f in fields(kind) if f.name in {"model", "detector", "segmenter"})
    assert pretrained.DEFAULTS[kind.__name__] == named
