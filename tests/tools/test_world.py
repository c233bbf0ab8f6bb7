"""The rendered world: determinism, exact masks, distinct styles, captions that the tokenizer knows."""

import numpy as np
import pytest
from captions import MAX_TOKENS, MORE_WORDS, build_tokenizer, write_caption
from dead_leaves import render_leaves
from grounding import PLACED, word_masks
from painting import HELD_OUT_STYLES, PROMPTS, STYLES, TRAINING_STYLES, paint
from world import KINDS, PARTS, SETTINGS, WORDS, render_scene

SEEDS = range(12)


def test_same_seed_renders_same_picture():
    first, second, other = render_scene(3), render_scene(3), render_scene(4)
    np.testing.assert_array_equal(first.image, second.image)
    assert first.words == second.words
    assert not np.array_equal(first.image, other.image)
    np.testing.assert_array_equal(render_leaves(3), render_leaves(3))


@pytest.mark.parametrize("size", [128, 256])
def test_pictures_have_size_and_range(size):
    for picture in (render_scene(0, size).image, render_leaves(0, size)):
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture.std() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_masks_partition_picture_and_parts_lie_in_their_wholes(kind):
    for seed in SEEDS[:4]:
        masks = render_scene(seed, 128, kind=kind).masks
        wholes = [mask for word, mask in masks.items() if word not in PARTS]
        assert (np.sum(wholes, axis=0) == 1).all()
        for part in set(PARTS) & set(masks):
            assert not (masks[part] & ~masks[PARTS[part]]).any(), part


def test_every_part_is_seen_somewhere():
    kinds = ("landscape", "portrait")
    seen = {word for kind in kinds for seed in SEEDS for word in render_scene(seed, 128, kind=kind).masks}
    assert set(PARTS) <= seen


def test_parts_of_portrayed_person_partition_them():
    for seed in SEEDS:
        masks = render_scene(seed, 128, kind="portrait").masks
        parts = [masks[word].astype(int) for word in ("face", "hair", "hat", "shirt") if word in masks]
        np.testing.assert_array_equal(sum(parts), masks["person"].astype(int))


def test_words_are_setting_and_masks():
    for seed in SEEDS:
        scene = render_scene(seed)
        assert scene.words[0] in SETTINGS
        assert set(scene.words[1:]) == set(scene.masks)
        assert set(scene.words) <= set(WORDS)
        assert all(mask.any() for mask in scene.masks.values())


def test_sky_mask_covers_what_looks_like_sky():
    scenes = [render_scene(seed, kind="landscape") for seed in SEEDS]
    days = [scene for scene in scenes if scene.words[0] == "day"]
    assert days
    for scene in days:
        red, _, blue = scene.image[scene.masks["sky"]].mean(0)
        assert blue > red


def test_every_style_changes_picture_in_its_own_way():
    image = render_scene(2, kind="landscape").image
    painted = {style: paint(image, style, 0) for style in STYLES}
    np.testing.assert_array_equal(painted["photo"], image)
    for style, picture in painted.items():
        assert picture.shape == image.shape
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        for other in STYLES[: STYLES.index(style)]:
            assert np.abs(picture - painted[other]).mean() > 0.015, (style, other)
    np.testing.assert_array_equal(paint(image, "hatching", 5), paint(image, "hatching", 5))
    assert not np.array_equal(paint(image, "hatching", 5), paint(image, "hatching", 6))


def test_unknown_style_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'cubism'.*mosaic"):
        paint(np.zeros((64, 64, 3), np.float32), "cubism", 0)


def test_held_out_styles_are_not_for_training():
    assert not set(HELD_OUT_STYLES) & set(TRAINING_STYLES)
    assert set(PROMPTS) == set(TRAINING_STYLES)


def test_captions_fit_and_hold_known_tokens_only():
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    for seed in SEEDS:
        seen = render_scene(seed, 128).words
        for style in TRAINING_STYLES:
            caption = write_caption(rng, style, seen)
            words = caption.replace(",", " ,").split()
            ids = tokenizer(caption).input_ids
            assert len(ids) == len(words) + 2 <= MAX_TOKENS  # every word is one token, between start and end
            assert tokenizer.eos_token_id not in ids[:-1]  # which stands for unknown ones too
    for word in (*WORDS, *" ".join(PROMPTS.values()).split(), *MORE_WORDS.split()):
        assert len(tokenizer(word).input_ids) == 3, word


@pytest.mark.parametrize("kind", KINDS)
def test_every_mask_has_its_place_in_the_grounding(kind):
    for seed in SEEDS[:4]:
        scene = render_scene(seed, 128, kind=kind)
        cells = word_masks(scene)
        assert set(scene.masks) == {word for word, cell in zip(PLACED, cells, strict=True) if cell.any()} | {
            word for word, mask in scene.masks.items() if mask.mean() < 1e-3
        }
