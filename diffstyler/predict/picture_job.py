"""A row of the manifest with everything about it settled."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from PIL import Image

from diffstyler.files import file_sha256
from diffstyler.images import is_picture, to_tensor
from diffstyler.masking.prompt import File, MaskPrompt
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.adapter_resolver import AdapterFile
from diffstyler.predict.writer import request_key
from diffstyler.types import StyleRegion, Triple


@dataclass(frozen=True)
class Style:
    """A region of the manifest with every setting settled. ``mask`` (H, W) at the content's size, None = everywhere."""

    region: StyleRegion
    adapter: AdapterFile
    prompt: str
    negative_prompt: str
    guidance_scale: float
    mask: torch.Tensor | None = None

    @property
    def mask_prompt(self) -> MaskPrompt:
        return parse_mask_prompt(self.region.mask)

    @property
    def settled(self) -> dict:
        """What the row left open."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance_scale,
        }

    @property
    def request(self) -> dict:
        """What determines this region's share of the picture."""
        files = [file_sha256(node.path) for node in self.mask_prompt.walk() if isinstance(node, File)]
        hashes = {"style": self.adapter.picture, "lora": self.adapter.sha256, "mask_files": files}
        return {**asdict(self.region), **hashes, **self.settled}

    def describe(self) -> dict:
        picture: dict[str, str | None] = {"path": str(self.region.style)}
        if is_picture(self.region.style):
            picture["sha256"] = self.adapter.picture
        described = {key: value for key, value in asdict(self.region).items() if key != "style"}
        lora = {"path": str(self.adapter.path), "sha256": self.adapter.sha256}
        return {**described, **self.settled, "style": picture, "lora": lora}


@dataclass(frozen=True)
class Work:
    """A triple made ready: its upright ``image``, and the ``size`` (height, width) that it is worked on at."""

    triple: Triple
    image: Image.Image
    size: tuple[int, int]
    content_sha256: str
    content_adapter: AdapterFile | None
    styles: tuple[Style, ...]
    settings: dict

    @property
    def pixels(self) -> torch.Tensor:
        """(3, H, W) in [-1, 1] at working size."""
        return to_tensor(self.image, self.size)

    @property
    def key(self) -> str:
        """sha256 of everything that determines the picture."""
        return request_key(
            {
                "content": self.content_sha256,
                "content_adapter": self.content_adapter.sha256 if self.content_adapter else None,
                "regions": [style.request for style in self.styles],
                "seed": self.triple.seed,
                "settings": self.settings,
            }
        )
