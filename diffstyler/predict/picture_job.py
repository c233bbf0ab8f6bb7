"""A row of the manifest with everything about it settled: what will be made, and the key that tells it from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image

from diffstyler.files import file_sha256
from diffstyler.images import is_picture, to_tensor
from diffstyler.masking.prompt import Everything, File, MaskPrompt
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.adapter_resolver import AdapterFile, style_picture
from diffstyler.storage import told
from diffstyler.types import StyleRegion, Triple


@dataclass(frozen=True, eq=False)
class RegionJob:
    """One region: its row with every setting filled in, and its LoRA.

    ``mask_files``: sha256 of the files in its mask prompt. ``mask`` (H, W) at the content's size, None = everywhere.
    """

    row: StyleRegion
    adapter: AdapterFile
    mask_files: tuple[str, ...]
    mask: torch.Tensor | None = None

    @classmethod
    def settled(cls, row: StyleRegion, adapter: AdapterFile, **defaults: object) -> RegionJob:
        """``defaults``: of the run, by the row's fields."""
        filled = replace(row, **{name: value for name, value in defaults.items() if getattr(row, name) is None})
        files = [node.path for node in parse_mask_prompt(row.mask).walk() if isinstance(node, File)]
        return cls(replace(filled, prompt=filled.prompt.strip(" ,")), adapter, tuple(map(file_sha256, files)))  # type: ignore[union-attr]

    @property
    def mask_prompt(self) -> MaskPrompt:
        return parse_mask_prompt(self.row.mask)

    @property
    def look(self) -> tuple[AdapterFile, str]:
        """What tells the part of a style picture that it is to look like from others."""
        return self.adapter, self.row.style_mask

    @property
    def finds_something(self) -> bool:
        return self.mask is None or bool(self.mask.any())

    def acts_at(self, time: float) -> bool:
        """At a step's ``time``: 1 = pure noise, 0 = the finished picture."""
        return self.row.stop < time <= self.row.start

    @property
    def request(self) -> dict:
        """What determines this region's share of the picture."""
        hashes = {"style": self.adapter.picture, "lora": self.adapter.sha256, "mask_files": list(self.mask_files)}
        return {**self.row.record, **hashes}

    def describe(self) -> dict:
        """For the sidecar."""
        style = {"path": told(self.row.style)}
        if is_picture(self.row.style):
            style["sha256"] = str(self.adapter.picture)
        elif (picture := style_picture(self.row)) is not None:
            style["picture"] = told(picture)
        lora = {"path": told(self.adapter.path), "sha256": self.adapter.sha256}
        return {**self.row.record, "style": style, "lora": lora}


@dataclass(frozen=True)
class PictureJob:
    """One picture: its upright ``image``, the ``size`` (height, width) that it is worked on at, and its regions.

    ``settings``: plain values of what determines it besides its row.
    """

    triple: Triple
    image: Image.Image
    size: tuple[int, int]
    content_sha256: str
    content_adapter: AdapterFile | None
    regions: tuple[RegionJob, ...]
    settings: dict

    @property
    def pixels(self) -> torch.Tensor:
        """(3, H, W) in [-1, 1] at working size."""
        return to_tensor(self.image, self.size)

    @property
    def adapters(self) -> Iterator[AdapterFile | None]:
        """All that must be loaded for it."""
        yield self.content_adapter
        yield from (region.adapter for region in self.regions)

    @property
    def is_masked(self) -> bool:
        return any(not isinstance(region.mask_prompt, Everything) for region in self.regions)

    @cached_property
    def key(self) -> str:
        """sha256 of everything that determines the picture."""
        request = {
            "content": self.content_sha256,
            "content_adapter": self.content_adapter.sha256 if self.content_adapter else None,
            "regions": [region.request for region in self.regions],
            "seed": self.triple.seed,
            "settings": self.settings,
        }
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
