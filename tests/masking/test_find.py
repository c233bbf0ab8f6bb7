"""Masks of one picture: algebra, edits, borders, files, and what each masker's answer becomes."""

import json
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from diffstyler.backbones import StableDiffusion
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.examples import HERE
from diffstyler.images import load_image
from diffstyler.masking import AttentionMasker, Masker, NothingFoundError, check_masks, find_masks
from diffstyler.masking.attention import AttentionRecorder
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.types import StyleRegion, Triple

PICTURE = Image.new("RGB", (40, 30), "gray")


class Halves(Masker):
    """Knows `left`, `top` and a `dot`; points and boxes are noted."""

    def __init__(self) -> None:
        self.asked: list = []

    @property
    def settings(self) -> dict:
        return {"class": "Halves"}

    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        mask = torch.zeros(picture.height, picture.width)
        places = {"left": (slice(None), slice(0, 20)), "top": (slice(0, 15),), "dot": (15, 20)}
        if phrase not in places:
            raise NothingFoundError(f"nothing matches '{phrase}'")
        mask[places[phrase]] = 1
        return mask

    def find_points(self, picture, positive, negative) -> torch.Tensor:
        self.asked.append((positive, negative))
        return torch.ones(picture.height, picture.width)


def masks(*prompts: str, **settings) -> list[torch.Tensor]:
    return find_masks(Halves(), PICTURE, [parse_mask_prompt(prompt) for prompt in prompts], **settings)


def rows(mask: torch.Tensor) -> slice:
    found = mask.amax(1).nonzero().flatten()
    return slice(int(found[0]), int(found[-1]) + 1)


LEFT, TOP = masks("left")[0], masks("top")[0]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    {
        "everything": torch.ones(30, 40),
        "left + top": torch.maximum(LEFT, TOP),
        "left - top": LEFT * (1 - TOP),
        "not left": 1 - LEFT,
        "not (left + top)": (1 - LEFT) * (1 - TOP),
        "everything - left - top": (1 - LEFT) * (1 - TOP),
    }.items(),
    ids=str,
)
def test_algebra(prompt, expected):
    assert torch.equal(masks(prompt)[0], expected)


def test_box_is_itself_in_pixels_and_fractions():
    box, fractions = masks("box: 10,6,20,15", "box: 0.25,0.2,0.5,0.5")
    assert torch.equal(box, fractions)
    assert torch.equal(box.nonzero().amin(0), torch.tensor([6, 10]))
    assert torch.equal(box.nonzero().amax(0), torch.tensor([14, 19]))
    assert box.sum() == 9 * 10


def test_points_reach_the_masker_in_pixels():
    masker = Halves()
    find_masks(masker, PICTURE, [parse_mask_prompt("point: 0.5,0.1 not 1.0,0.2")])
    assert masker.asked == [([(20, 3)], [(40, 6)])]


@pytest.mark.parametrize("pixels", [1, 3, 6.5])
def test_grow_and_shrink_are_euclidean(pixels):
    y, x = torch.meshgrid(torch.arange(30), torch.arange(40), indexing="ij")
    distance = ((y - 15) ** 2 + (x - 20) ** 2).float().sqrt()
    grown, back = masks(f"dot [grow {pixels}]", f"not ((not dot) [shrink {pixels}])")
    assert torch.equal(grown, (distance <= pixels + 0.5).float())
    assert torch.equal(grown, back)


def test_grow_and_shrink_keep_nothing_and_everything():
    assert torch.equal(masks("everything [shrink 5]")[0], torch.ones(30, 40))
    with pytest.raises(NothingFoundError, match=r"mask '\(left - left\) \[grow 5\]' is empty"):
        masks("(left - left) [grow 5]")


def test_feather_fades_to_both_sides_and_no_further():
    soft = masks("left [feather 4]")[0][0]
    assert torch.equal(soft[:16], torch.ones(16))
    assert torch.equal(soft[24:], torch.zeros(16))
    assert (soft[16:24].diff() < 0).all()
    torch.testing.assert_close(soft[16:20] + soft[20:24].flip(0), torch.ones(4))


def test_default_feather_spares_what_is_soft_or_whole():
    hard, own, whole = masks("left", "left [feather 2]", "everything", feather=4)
    assert torch.equal(hard, masks("left [feather 4]")[0])
    assert torch.equal(own, masks("left [feather 2]")[0])
    assert torch.equal(whole, torch.ones(30, 40))


def test_background_is_what_the_others_leave():
    background, left, top = masks("background", "left", "top [feather 3]", feather=2)
    assert torch.equal(background, 1 - torch.maximum(left, top))
    assert torch.equal(masks("left", "background - top")[1], torch.minimum(1 - LEFT, 1 - TOP))


def test_nothing_found_is_an_error_or_what_the_caller_wants():
    with pytest.raises(NothingFoundError, match="nothing matches 'dragon'"):
        masks("left", "dragon")
    assert torch.equal(masks("dragon", empty=0.0)[0], torch.zeros(30, 40))
    assert torch.equal(masks("left - left", empty=1.0)[0], torch.ones(30, 40))


def test_mask_files_keep_their_grays(tmp_path: Path):
    levels = torch.arange(1200).view(30, 40) % 256
    Image.fromarray(levels.to(torch.uint8).numpy()).save(tmp_path / "mask.png")
    assert torch.equal(masks(f"file: {tmp_path / 'mask.png'}", feather=3)[0], levels / 255)


def test_check_masks_lists_every_problem_before_anything_runs(tmp_path: Path):
    PICTURE.save(tmp_path / "photo.png")
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    prompts = ["left", "box: 0,0,41,9", "point: 3,31", "a [grw 3]", "box: 0,0,40,30", f"file: {tmp_path / 'small.png'}"]
    triples = [
        Triple(str(i), tmp_path / "photo.png", (StyleRegion(tmp_path, mask=prompt),), origin=f"m.csv row {i}")
        for i, prompt in enumerate(prompts)
    ]
    with pytest.raises(ValueError, match=r"m\.csv row 1") as error:
        check_masks(triples)
    told = str(error.value)
    assert [line for line in told.split("\n") if line.startswith("m.csv")] == [
        "m.csv row 1, column 'mask': mask 'box: 0,0,41,9': expected x within the picture's 40 pixels",
        "m.csv row 2, column 'mask': mask 'point: 3,31': expected y within the picture's 30 pixels",
        "m.csv row 3, column 'mask': expected grow, shrink, feather, largest, smallest, left, right, top, bottom or a "
        "number; did you mean 'grow'? (character 4)",
        f"m.csv row 5, column 'mask': mask '{prompts[5]}': expected 40 x 30 pixels like the content, got 8 x 8",
    ]


def test_recorded_attention_is_what_the_layer_computes(tiny):
    """A layer's output is its probabilities times its values, which are linear in them."""
    recorder = AttentionRecorder(tiny.unet)
    name = "up_blocks.2.attentions.1.transformer_blocks.0.attn2"
    layer, values = tiny.unet.get_submodule(name), []
    handles = [
        layer.to_v.register_forward_hook(lambda m, a, o: values.append(o)),
        layer.to_out[0].register_forward_pre_hook(lambda m, a: values.append(a[0])),
    ]
    prompt = tiny.encode_prompt(["a red tree"] * 2)
    with torch.no_grad(), recorder.recording():
        before = tiny.predict(torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), prompt)
    for handle in handles:
        handle.remove()
    heads = layer.heads
    layer.heads, whole = heads, recorder.cross()[name]
    assert whole.shape[0] == 2
    torch.testing.assert_close(whole.sum(-1), torch.ones(whole.shape[:2]))
    q, k = (recorder._seen[name, part].unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
    v = values[0].unflatten(-1, (heads, -1)).transpose(1, 2)
    mixed = ((q @ k.mT * layer.scale).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, values[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole, (q @ k.mT * layer.scale).softmax(-1).mean(1))
    assert not tiny.unet.get_submodule(f"{name}.to_q")._forward_hooks
    assert before.isfinite().all()


def test_attention_masker_takes_only_the_phrase_and_leaves_articles(tiny):
    masker = AttentionMasker(template="a photo of {phrase}, painted")
    masker.setup(tiny)
    ids = tiny.tokenizers[0]("a photo of the red tree, painted").input_ids
    found = [ids[place] for place in masker._tokens("the red tree")]
    assert found == [*tiny.token_ids("red"), *tiny.token_ids("tree")]
    assert [ids[place] for place in masker._tokens("the")] == tiny.token_ids("the")


def test_attention_masker_finds_nothing_honestly(tiny):
    masker = AttentionMasker(minimum=0.9)
    masker.setup(tiny)
    with pytest.raises(
        NothingFoundError, match=r"nothing in the picture matches 'tree': .* masker.minimum is 0.9"
    ) as e:
        masker.find_text(Image.new("RGB", (64, 64)), "tree")
    assert all(way in str(e.value) for way in ("box: ", "point: ", "file: ", "GroundedSAMMasker", "CLIPSegMasker"))
    assert "rendered world" not in str(e.value)  # this is another model
    tiny.mask_minimum = 0.9  # as of the embedded one
    masker = AttentionMasker()
    masker.setup(tiny)
    with pytest.raises(NothingFoundError, match="a rendered world"):
        masker.find_text(Image.new("RGB", (64, 64)), "tree")


@pytest.mark.parametrize(
    ("unlike", "minimum", "finds"),
    [
        ((0.0, 1.1), None, False),
        ((1e6, 1.1), None, True),  # a picture like those of the training
        ((0.0, 0.0), None, True),  # a sure find
        ((0.0, 1.1), 0.0, True),  # what a user asks for holds
    ],
)
def test_in_an_unlike_picture_only_sure_finds_count(tiny, unlike, minimum, finds):
    tiny.mask_unlike = unlike
    masker = AttentionMasker(minimum=minimum)
    masker.setup(tiny)
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    if finds:
        assert masker.find_text(picture, "tree").any()
        return
    with pytest.raises(NothingFoundError, match=r"surely matches 'tree': .* unlike them .* not 1\.1; say where"):
        masker.find_text(picture, "tree")


def test_the_embedded_model_finds_nothing_in_a_photograph_that_it_does_not_know():
    masker = AttentionMasker()
    masker.setup(StableDiffusion("embedded").load())
    for word in ("sky", "wall", "house"):
        with pytest.raises(NothingFoundError):
            masker.find_text(load_image(HERE / "pictures/cat.jpg"), f"the {word}")
    assert masker.find_text(load_image(HERE / "pictures/cottage.jpg"), "the sky").mean() > 0.3


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (72, 130)])
def test_attention_masks_have_the_pictures_size(tiny, size):
    masker = AttentionMasker(minimum=0.0)
    masker.setup(tiny)
    picture = Image.effect_noise(size, 80).convert("RGB")
    for mask in (masker.find_text(picture, "tree"), masker.find_points(picture, [(10, 20)], [])):
        assert mask.shape == (size[1], size[0])
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert mask.any()
    assert masker.find_points(picture, [(10, 20)], [])[20, 10] == 1


WRONG_OPTIONS = {
    "threshold": 1.5,
    "smoothing": True,
    "minimum": -1,
    "template": "a photo",
    "noise_levels": (),
    "noise_levels.1": (0.1, 1.0),
    "seed": "many",
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
def test_every_wrong_option_is_named_with_what_came(option):
    value = WRONG_OPTIONS[option]
    with pytest.raises(DiffstylerError, match=rf"^masker\.{option}: expected .*, got .+$") as error:
        AttentionMasker(**{option.split(".")[0]: value})
    assert "\n" not in str(error.value)


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(DiffstylerError) as error:
        AttentionMasker(threshold=2.0, template="a photo")
    assert [line.split(":")[0] for line in str(error.value).split("\n")] == ["masker.template", "masker.threshold"]


def test_settings_are_the_options_in_plain_values():
    """They are in the sidecars and request keys of finished pictures: another dict, and these are made again."""
    assert json.dumps(AttentionMasker(noise_levels=[0.1, 0.2], minimum=0.4, seed=3).settings) == (
        '{"class": "AttentionMasker", "noise_levels": [0.1, 0.2], "template": "a photo of {phrase}", '
        '"smoothing": 0.3, "threshold": 0.5, "minimum": 0.4, "seed": 3}'
    )
    assert AttentionMasker().settings["noise_levels"] == (0.05, 0.15, 0.3)


def test_options_come_from_the_command_line():
    parser = ArgumentParser()
    parser.add_argument("--masker", type=Masker)
    words = ["--masker", "AttentionMasker", "--masker.threshold", "0.4", "--masker.noise_levels", "[0.1, 0.5]"]
    masker = parser.instantiate(parser.parse_args(words)).masker
    assert masker.settings == AttentionMasker(threshold=0.4, noise_levels=(0.1, 0.5)).settings


def test_masks_of_the_command_tell_wrong_options_and_help(capsys, tmp_path):
    PICTURE.save(tmp_path / "photo.png")
    command = ["masks", "--content", str(tmp_path / "photo.png"), "--mask", "left"]
    assert main([*command, "--masker", "AttentionMasker", "--masker.threshold", "1.5"]) == 1
    assert "masker.threshold: expected a number in 0 … 1, got 1.5" in capsys.readouterr().err.split("\n")[0]
    with pytest.raises(SystemExit) as stopped:
        main(["masks", "--masker.help", "AttentionMasker"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--masker.{name}" in out for name in AttentionMasker().settings if name != "class")
    assert "share of its" in out


def test_a_mask_of_nearly_all_or_hardly_anything_is_said(caplog):
    masks("everything", "left", "top + not top - dot", "dot", origin="m.csv row 3")
    told = [message for message in caplog.messages if "of the picture" in message]
    assert told == [
        "m.csv row 3: mask 'top + not top - dot' covers 99.92 % of the picture; say `everything` if that is meant",
        "m.csv row 3: mask 'dot' covers 0.08333 % of the picture; is it the right place?",
    ]


def test_points_of_a_masker_without_objects_are_regions(tiny):
    """The default masker answers a point with the thing under it, not with all that its attention reaches."""
    picture = Image.new("RGB", (96, 64), "olive")
    picture.paste("white", (10, 10, 40, 50))
    masker = AttentionMasker()
    masker.setup(tiny)
    (mask,) = find_masks(masker, picture, [parse_mask_prompt("point: 25,30")])
    expected = torch.zeros(64, 96)
    expected[10:50, 10:40] = 1
    assert (mask != expected).float().mean() < 0.01


@pytest.mark.parametrize(
    ("prompt", "expected"), [("corners [1]", (20, 40)), ("corners [largest]", (20, 40)), ("corners [left]", (0, 10))]
)
def test_parts_of_a_mask_are_the_things_of_a_masker_without_objects(prompt, expected):
    class Corners(Halves):
        def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
            mask = torch.zeros(30, 40)
            mask[:5, :10] = mask[10:, 20:] = 1
            return mask

    (mask,) = find_masks(Corners(), PICTURE, [parse_mask_prompt(prompt)])
    columns = mask.amax(0).nonzero().flatten()
    assert (int(columns[0]), int(columns[-1]) + 1) == expected
