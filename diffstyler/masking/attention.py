"""A phrase -> a mask by the base model's own attention: no weights but those that draw the picture.

The words' cross-attention maps, averaged over heads, layers and a few noise levels (Tang et al. 2023, DAAM, eq. 6),
in part spread along the picture's self-attention (Nguyen et al. 2023), then cut at a share of their peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, fields
from functools import partial
from typing import Annotated

import torch
from PIL import Image
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn import functional

from diffstyler.backbones import Backbone
from diffstyler.errors import DiffstylerError, check_placeholders
from diffstyler.images import fit_size, picture_sha256, to_tensor
from diffstyler.masking.base import Masker, NothingFoundError, Share, checked_options

OTHERS = (
    "say where it is (box: x0,y0,x1,y1; point: x,y; file: a mask painted by hand), or name a masker that knows "
    "photographs: GroundedSAMMasker, CLIPSegMasker, FastSAMMasker"
)
CURE = f"the embedded model's words are those of a rendered world (sky, water, house, tree, mountain, hill); {OTHERS}"
#: t / T at which a picture shows whether the model was taught its like
UNLIKE_AT = 0.3
ARTICLES = frozenset({"the", "a", "an", "of", "and", "in", "on", "with"})


def _with_a_place(template: str) -> str:
    if "{phrase}" not in template:
        raise DiffstylerError(f"expected {{phrase}} in it, got '{template}'")
    return check_placeholders(template, ("phrase",))


@checked_options
@dataclass(eq=False)
class AttentionMasker(Masker):
    """Text by cross-attention, points by color and edges, boxes as they are.

    Args:
        noise_levels: timesteps, as fractions of all, that the maps are averaged over.
        template: the prompt that the phrase is put into.
        smoothing: λ, how much of the map is spread along the picture's self-attention, 0 … 1.
        threshold: a pixel is in where the map reaches this share of its peak.
        minimum: "nothing found" where the peak, the share of a place's attention that the phrase draws, is lower. None:
            what is known of the model (embedded: 0.33, and in pictures unlike those that it was taught, as photographs
            are, 0.82 on average over the place found); other models then always find something.
        seed: of the noise.
    """

    _: KW_ONLY
    noise_levels: Annotated[
        Sequence[Annotated[float, Field(ge=0, lt=1, strict=True)]], Field(min_length=1), AfterValidator(tuple)
    ] = (0.05, 0.15, 0.3)
    template: Annotated[str, AfterValidator(_with_a_place)] = "a photo of {phrase}"
    smoothing: Share = 0.3
    threshold: Share = 0.5
    minimum: Share | None = None
    seed: int = 0

    def setup(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.recorder = AttentionRecorder(backbone.network)
        self._latents: dict[str, torch.Tensor] = {}
        self._errors: dict[str, float] = {}

    @property
    def settings(self) -> dict:
        return {"class": type(self).__name__, **{option.name: getattr(self, option.name) for option in fields(self)}}

    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        tokens = self._tokens(phrase)
        grid = self._attend(picture, self.template.replace("{phrase}", phrase))
        room = next(iter(self.recorder.cross().values())).shape[-1] - 1  # the last one is the end
        if tokens[-1] >= room:
            raise NothingFoundError(
                f"'{phrase[:40]} …': expected words of at most {room - tokens[0]} tokens, got {len(tokens)}; say less"
            )
        maps = [
            functional.interpolate(_as_picture(attention[:, :, tokens].mean((0, 2)), grid), grid, mode="bilinear")
            for attention in self.recorder.cross().values()
            if attention.shape[1] * 4 >= math.prod(grid)
        ]
        found = torch.cat(maps).mean((0, 1)).flatten()
        peak, minimum = found.max().item(), self.backbone.mask_minimum if self.minimum is None else self.minimum
        if peak < minimum:
            raise NothingFoundError(
                f"nothing in the picture matches '{phrase}': it draws {peak:.3f} of the attention at most, "
                f"masker.minimum is {minimum}; {CURE if self.minimum is None else OTHERS}"
            )
        smooth = torch.lerp(found, self._spread(found, grid), self.smoothing)
        if self.minimum is None and self.backbone.mask_unlike is not None:
            self._check_sureness(picture, phrase, found[smooth >= self.threshold * smooth.max()].mean().item())
        return self._cut(smooth / smooth.max(), grid, picture)

    def _check_sureness(self, picture: Image.Image, phrase: str, mean: float) -> None:
        """In a picture unlike those that the model was taught, words draw attention to what they do not mean.

        Raises:
            NothingFoundError: it is such a picture, and the place found draws less than one that is meant.
        """
        most, least = self.backbone.mask_unlike or (math.inf, 0.0)
        if mean < least and (error := self.noise_error(picture)) > most:
            raise NothingFoundError(
                f"nothing in the picture surely matches '{phrase}': the embedded model was taught rendered scenes, "
                f"this picture is unlike them (noise error {error:.3f}, above {most}), and what is found draws "
                f"{mean:.2f} of the attention, not {least}; {OTHERS}"
            )

    def noise_error(self, picture: Image.Image) -> float:
        """Mean squared error of ε at UNLIKE_AT without words: low for pictures like those of the training."""
        key = picture_sha256(picture)
        if key not in self._errors:
            z_0, backbone = self._encode(picture), self.backbone
            timestep = torch.tensor([int(UNLIKE_AT * backbone.num_train_timesteps)])
            level = backbone.noise_levels(timestep).to(z_0)
            noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(self.seed)).to(z_0)
            with torch.no_grad():
                noised, prompt = level.noised(z_0, noise), backbone.encode_prompt([""])
                predicted = backbone.predict_noise(noised, timestep.to(z_0.device), prompt, level)
            self._errors = {key: functional.mse_loss(predicted, noise).item()}
        return self._errors[key]

    def _attend(self, picture: Image.Image, prompt: str) -> tuple[int, int]:
        """One forward of the noised picture at every noise level -> (h, w) of the latent grid; the recorder has it."""
        backbone = self.backbone
        z_0 = self._encode(picture)
        timesteps = torch.tensor([int(level * backbone.num_train_timesteps) for level in self.noise_levels])
        noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(self.seed)).to(z_0)
        prompts = backbone.encode_prompt([prompt] * len(timesteps))
        with torch.no_grad(), self.recorder.recording():
            backbone.predict(
                backbone.noise_levels(timesteps).to(z_0).noised(z_0, noise), timesteps.to(z_0.device), prompts
            )
        return z_0.shape[-2], z_0.shape[-1]

    def _encode(self, picture: Image.Image) -> torch.Tensor:
        """z_0 (1, C, h, w) of the latest picture, kept for the next phrase."""
        key = picture_sha256(picture)
        if key not in self._latents:
            size = fit_size(picture.size, self.backbone.resolution, self.backbone.size_multiple)
            device = next(self.backbone.network.parameters()).device
            with torch.no_grad():
                self._latents = {key: self.backbone.encode_image(to_tensor(picture, size)[None].to(device))}
        return self._latents[key]

    def _tokens(self, phrase: str) -> list[int]:
        """Where the phrase's own words are in the prompt's tokens, articles left out."""
        before = self.template.split("{phrase}")[0]
        words = phrase.split()
        own = [word for word in words if word.lower() not in ARTICLES] or words
        lengths = [len(self.backbone.token_ids(" ".join(words[: i + 1]))) for i in range(len(words))]
        start = 1 + len(self.backbone.token_ids(before))
        spans = zip(words, [0, *lengths[:-1]], lengths, strict=True)
        return [start + k for word, begin, end in spans if word in own for k in range(begin, end)]

    def _spread(self, found: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """S M, with S the finest self-attention, mean over its layers and noise levels; M (h w,) on the latent grid."""
        spread = self.recorder.finest_own()
        coarse = _grid_of(grid, len(spread))
        if coarse == grid:
            return spread @ found
        small = functional.adaptive_avg_pool2d(found.view(1, 1, *grid), coarse).flatten()
        return functional.interpolate((spread @ small).view(1, 1, *coarse), grid, mode="bilinear").flatten()

    def _cut(self, found: torch.Tensor, grid: tuple[int, int], picture: Image.Image) -> torch.Tensor:
        """A map with peak 1 on the grid, (h w,) -> the mask at the picture's size."""
        full = functional.interpolate(_as_picture(found, grid), (picture.height, picture.width), mode="bicubic")
        return (full[0, 0] >= self.threshold).float().cpu()


def _as_picture(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(L,) in the aspect of ``grid``, as (1, 1, h', w')."""
    return values.view(1, 1, *_grid_of(grid, len(values)))


def _grid_of(grid: tuple[int, int], positions: int) -> tuple[int, int]:
    """The latent grid (h, w) as a layer of so many positions sees it."""
    height = math.ceil(grid[0] / round(math.sqrt(math.prod(grid) / positions)))
    return height, positions // height


class AttentionRecorder:
    """Attention probabilities of the latest forward, worked out from the queries and keys of the layers.

    Use it as ``with recorder.recording(): network(…)``, then ask for :meth:`cross` or :meth:`finest_own`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = {name: m for name, m in network.named_modules() if name.endswith((".attn1", ".attn2"))}
        self._seen: dict[tuple[str, str], torch.Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forwards inside are kept until the next ones."""
        handles = [
            getattr(layer, part).register_forward_hook(partial(self._keep, name, part))
            for name, layer in self.layers.items()
            for part in ("to_q", "to_k")
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def cross(self) -> dict[str, torch.Tensor]:
        """For each cross-attention layer (rows, L, tokens), mean over heads: softmax(q kᵀ / √d)."""
        return {name: self._probabilities(name) for name in self.layers if name.endswith(".attn2")}

    def finest_own(self) -> torch.Tensor:
        """Self-attention (L, L) where there are the most positions L, mean over such layers, rows and heads."""
        positions = {name: self._seen[name, "to_q"].shape[1] for name in self.layers if name.endswith(".attn1")}
        finest = [name for name, count in positions.items() if count == max(positions.values())]
        return sum((self._probabilities(name).mean(0) for name in finest), torch.zeros(())) / len(finest)

    def _probabilities(self, name: str) -> torch.Tensor:
        heads, scale = int(self.layers[name].heads), float(self.layers[name].scale)  # type: ignore[arg-type]
        q, k = (self._seen[name, part].float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
        one_at_a_time = ((q[:, head] @ k[:, head].mT * scale).softmax(-1) for head in range(heads))  # to save memory
        return sum(one_at_a_time, torch.zeros(())) / heads

    def _keep(self, name: str, part: str, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._seen[name, part] = output
