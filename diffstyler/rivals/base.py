"""The one interface of all rivals: a content, a style and its LoRA in; a picture out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from PIL import Image

from diffstyler.adapters import LoRAPack, LowRank, largest_rank, match_modules, read_lora
from diffstyler.backbones import NETWORK, Backbone
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.images import fit_size, picture_sha256, to_image, to_tensor
from diffstyler.types import PromptEmbeds, Schedule, Trajectory

Adapter = Mapping[str, LowRank]


@dataclass(frozen=True, eq=False)
class Task:
    """One picture to make, with the folders of its LoRAs and the prompts that they were fitted with."""

    content: Image.Image
    style: Image.Image
    style_lora: Path | None = None
    style_prompt: str = ""
    content_lora: Path | None = None
    content_prompt: str = ""
    seed: int = 0


class Rival(ABC):
    """A method of style transfer."""

    #: the LoRAs that it runs under
    needs_style_lora: bool = True
    needs_content_lora: bool = False

    @abstractmethod
    def __call__(self, studio: Studio, task: Task) -> Image.Image:
        """The stylized content, at the content's size."""


class Studio:
    """A loaded model, and what every rival does with it. Inversions are kept: the next style of a content has them.

    Args:
        backbone: loaded.
        num_inference_steps: N, of sampling and inversion.
        resolution: short side that pictures are worked on at; None = the model's.
    """

    def __init__(self, backbone: Backbone, *, num_inference_steps: int = 50, resolution: int | None = None) -> None:
        self.backbone = backbone
        self.schedule: Schedule = backbone.sampling_schedule(num_inference_steps)
        self.resolution = resolution or backbone.resolution
        self._inverted: dict[tuple[str, object, tuple[int, int]], Trajectory] = {}

    def size(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) that a picture is worked on at."""
        return fit_size(image.size, self.resolution, self.backbone.size_multiple)

    @torch.no_grad()
    def clean(self, image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        """z_0 (C, h, w)."""
        return self.backbone.encode_image(to_tensor(image, size)[None])[0]

    @torch.no_grad()
    def embed(self, prompt: str) -> PromptEmbeds:
        return self.backbone.encode_prompt([prompt])

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, like: Image.Image) -> Image.Image:
        """x_0 as a picture of the size of another one."""
        return to_image(self.backbone.decode_latents(latents[None])[0], (like.height, like.width))

    def adapter(self, lora: Path) -> Adapter:
        """Of a LoRA's file, by the names of this model's denoiser."""
        modules = read_lora(lora).parts[NETWORK]
        return {new: modules[old] for old, new in match_modules(self.backbone.network, modules).items()}

    @contextmanager
    def denoiser(self, *adapters: Adapter) -> Iterator[Denoiser]:
        """With these in the slots 0, 1 …; the model is as it was afterwards."""
        if not adapters:
            with closing(Denoiser(self.backbone)) as denoiser:
                yield denoiser
            return
        rank = max(map(largest_rank, adapters))
        config = LoraConfig(r=rank, target_modules=sorted({name for adapter in adapters for name in adapter}))
        pack = LoRAPack(self.backbone.network, config, len(adapters))
        try:
            for slot, adapter in enumerate(adapters):
                pack.load_slot(slot, adapter)
            with closing(Denoiser(self.backbone, pack)) as denoiser:
                yield denoiser
        finally:
            pack.detach()

    def invert(
        self,
        denoiser: Denoiser,
        image: Image.Image,
        size: tuple[int, int],
        *,
        slot: int | None = None,
        under: object = None,
    ) -> Trajectory:
        """{z_t} under the adapter of a slot, which ``under`` tells from others; the base's without."""
        key = picture_sha256(image), under, size
        if key not in self._inverted:
            clean = Clean(self.clean(image, size), self.embed(""), slot)
            (self._inverted[key],) = invert(denoiser, [clean], self.schedule)
        return self._inverted[key]

    def sample(
        self,
        denoiser: Denoiser,
        start: torch.Tensor,
        region: Region,
        *,
        schedule: Schedule | None = None,
        content: Trajectory | None = None,
    ) -> torch.Tensor:
        """x_0 (C, h, w) by DDIM from x at the schedule's first step; ``content``: whose source rows may steer."""
        schedule = schedule if schedule is not None else self.schedule
        if content is None:
            content = Trajectory(schedule.timesteps, start.expand(len(schedule) + 1, *start.shape))
        return denoise(denoiser, [Canvas(start, content, (region,))], schedule, self.embed(""))[0]


def joined(prompts: Sequence[str]) -> str:
    return ", ".join(prompt.strip(" ,") for prompt in prompts if prompt.strip(" ,"))
