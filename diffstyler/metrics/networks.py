"""Weight files on this machine -> the networks that some figures need; nothing is ever downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor

from diffstyler.metrics.base import NotComputedError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Networks:
    """Where the weights are that some figures need; None = those figures are not computed, and named as such.

    Args:
        alexnet: torchvision's AlexNet (``alexnet-owt-7be5be79.pth``), for LPIPS.
        vgg: torchvision's VGG-19 (``vgg19-dcbb9e9d.pth``), for Gram matrices and CFSD.
        inception: the Inception of FID as TorchScript (``inception-2015-12-05.pt``, as StyleGAN and clean-fid use it).
        clip: a folder of transformers' CLIP, such as ``openai/clip-vit-base-patch32``.
        dino: a folder of transformers' DINO, such as ``facebook/dino-vits16``.
    """

    alexnet: Path | None = None
    vgg: Path | None = None
    inception: Path | None = None
    clip: Path | None = None
    dino: Path | None = None


def lpips_alexnet(path: Path | None) -> nn.Module:
    """LPIPS' network on torchvision's AlexNet; the linear layers come with torchmetrics."""
    weights = _features(path, "alexnet")
    network = _NoTrainLpips(net="alex", pnet_rand=True)
    own = {f"{slice}.{index}.{kind}": weights[f"{index}.{kind}"] for slice, index, kind in _names(network.net)}
    network.net.load_state_dict(own)
    return network.requires_grad_(False)


def vgg19(path: Path | None) -> nn.Sequential:
    """torchvision's VGG-19 up to relu5_1, without the classifier."""
    weights = _features(path, "vgg")
    with torch.device("meta"):
        layers = torchvision.models.vgg19(weights=None).features[:30]  # type: ignore[index]
    layers.load_state_dict({k: v for k, v in weights.items() if int(k.split(".")[0]) < 30}, assign=True)  # type: ignore[union-attr]
    for layer in layers:  # type: ignore[union-attr]
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return layers.eval().requires_grad_(False)  # type: ignore[return-value]


def inception(path: Path | None) -> torch.jit.ScriptModule:
    with _reading(path, "inception"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, these files remain
        return torch.jit.load(_given(path, "inception"), map_location="cpu").eval()


def clip(path: Path | None) -> tuple[CLIPModel, CLIPProcessor]:
    with _reading(path, "clip"):
        folder = _given(path, "clip")
        model = CLIPModel.from_pretrained(folder, local_files_only=True)
        return model, CLIPProcessor.from_pretrained(folder, local_files_only=True)


def dino(path: Path | None) -> tuple[nn.Module, Callable]:
    with _reading(path, "dino"):
        folder = _given(path, "dino")
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        return model, AutoImageProcessor.from_pretrained(folder, local_files_only=True)


def imagenet(pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [-1, 1] -> (1, 3, H, W) with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels.float() / 2 + 0.5 - mean) / std)[None]


def _given(path: Path | None, name: str) -> Path:
    if path is None:
        raise NotComputedError(f"networks.{name} is not given")
    if not path.exists():
        raise NotComputedError(f"networks.{name}: expected weights at {path}, found nothing there")
    return path


@contextmanager
def _reading(path: Path | None, name: str) -> Iterator[None]:
    """What a library says of a file that it cannot read is told with the file's name."""
    try:
        yield
    except NotComputedError:
        raise
    except Exception as error:  # libraries raise all kinds of errors on such files
        reason = next(iter(str(error).split("\n")), "")[:120] or type(error).__name__
        raise NotComputedError(f"networks.{name}: {path} cannot be read as such weights ({reason})") from error


def _features(path: Path | None, name: str) -> dict[str, torch.Tensor]:
    """Convolutions of a torchvision classifier, by their names below ``features``."""
    with _reading(path, name):
        weights = torch.load(_given(path, name), map_location="cpu", weights_only=True)
        found = {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}
        if not found:
            raise NotComputedError(f"networks.{name}: {path} holds no convolutions of torchvision's network")
        return found


def _names(network: nn.Module) -> list[tuple[str, ...]]:
    return [tuple(key.split(".")) for key in network.state_dict()]
