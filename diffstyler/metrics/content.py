"""What is left of the content in a result: one class for each published figure."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch.nn import functional
from torchmetrics.functional.image import image_gradients, structural_similarity_index_measure
from torchmetrics.functional.regression import pearson_corrcoef
from torchvision.transforms.functional import gaussian_blur

from diffstyler.metrics.base import Metric, Sample, luminance
from diffstyler.metrics.networks import dino, imagenet, lpips_alexnet, vgg19


class SSIM(Metric):
    """Mean structural similarity of luminance with the content (Wang et al. 2004), by torchmetrics.

    No network. Gaussian window of 11 pixels. Range -1 … 1, more is better; 1 = equal.
    """

    figures: ClassVar = {"ssim": True}

    def __call__(self, sample: Sample) -> dict[str, float]:
        value = structural_similarity_index_measure(luminance(sample.result), luminance(sample.content), data_range=1.0)
        assert isinstance(value, torch.Tensor)
        return {"ssim": value.item()}


class EdgeAgreement(Metric):
    """Correlation of edge strengths: of |∇ luminance|, blurred by σ = 1 before, in the result and in the content.

    No network. Pearson's correlation over all pixels, -1 … 1, more is better; blind to contrast and brightness. A
    picture without edges has none.
    """

    figures: ClassVar = {"edge_agreement": True}

    def __call__(self, sample: Sample) -> dict[str, float]:
        edges = [_edges(picture).flatten() for picture in (sample.result, sample.content)]
        if any(picture.std() < 1e-6 for picture in edges):
            return {}
        return {"edge_agreement": pearson_corrcoef(*edges).item()}


class LPIPS(Metric):
    """Learned perceptual distance to the content (Zhang et al. 2018), by torchmetrics.

    Network: AlexNet, weights by torchvision, linear layers v0.1. Pixels in [-1, 1]. At least 0, less is better;
    0 = equal.
    """

    figures: ClassVar = {"lpips": False}

    def __init__(self, alexnet: Path | None) -> None:
        self.network = lpips_alexnet(alexnet)

    def __call__(self, sample: Sample) -> dict[str, float]:
        return {"lpips": self.network(sample.result[None], sample.content[None]).item()}


class CFSD(Metric):
    """Content feature structural distance (Chung et al. 2024, StyleID): KL divergence of patch self-similarities.

    Network: VGG-19, weights by torchvision, relu3_1. ImageNet's normalization; feature maps of at most 64 x 64 cells.
    S = softmax of the cosine similarities of each cell with all; the mean over cells of KL(S_content ‖ S_result). At
    least 0, less is better; 0 = equal.
    """

    figures: ClassVar = {"cfsd": False}

    def __init__(self, vgg: Path | None) -> None:
        self.network = vgg19(vgg)[:12]  # relu3_1

    @torch.no_grad()
    def __call__(self, sample: Sample) -> dict[str, float]:
        content, result = (self._log_similarity(picture) for picture in (sample.content, sample.result))
        return {"cfsd": functional.kl_div(result, content, reduction="batchmean", log_target=True).item()}

    def _log_similarity(self, pixels: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (cells, cells)."""
        features = self.network(imagenet(pixels))
        features = functional.adaptive_avg_pool2d(features, [min(64, side) for side in features.shape[2:]])
        cells = functional.normalize(features[0].flatten(1), dim=0)
        return functional.log_softmax(cells.T @ cells, dim=1)


class DINOSimilarity(Metric):
    """Cosine of the [CLS] embeddings of result and content (Caron et al. 2021; as used by Ruiz et al. 2023).

    Network: a DINO vision transformer of transformers' form, with its own preprocessing. -1 … 1, more is better.
    """

    figures: ClassVar = {"dino": True}

    def __init__(self, folder: Path | None) -> None:
        self.network, self.prepare = dino(folder)

    @torch.no_grad()
    def __call__(self, sample: Sample) -> dict[str, float]:
        inputs = self.prepare(images=[sample.result_image, sample.content_image], return_tensors="pt")
        result, content = self.network(**inputs).last_hidden_state[:, 0]
        return {"dino": functional.cosine_similarity(result, content, dim=0).item()}


def _edges(pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [-1, 1] -> (H, W)."""
    down, right = image_gradients(gaussian_blur(luminance(pixels), [7, 7], [1.0, 1.0]))
    return torch.hypot(down, right)[0, 0]
