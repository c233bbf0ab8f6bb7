"""StyleID (Chung et al. 2024): the style's own keys and values in the content's self-attention; no LoRA, no fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.denoiser import Group, Row
from diffstyler.diffusion.initial import FromContentAdaIN
from diffstyler.rivals.base import Rival, Studio, Task

CONTENT, STYLE, TARGET = 0, 1, 2


@dataclass(frozen=True)
class StyleID(Rival):
    """Rows z_t^c, z_t^s and x_t of one forward; in the target's self-attention

    q = T · (γ q_content + (1 − γ) q), k = k_style, v = v_style (eq. 5 … 7), from x_T = AdaIN(z_T^c, z_T^s) (eq. 8).

    Args:
        gamma: γ, how much of the content's queries is kept.
        temperature: T, sharpens the attention.
        blocks: decoder blocks whose self-attention is changed: layers 6 … 11 of Stable Diffusion 1 and 2.
    """

    gamma: float = 0.75
    temperature: float = 1.5
    blocks: tuple[str, ...] = ("up_blocks.2.", "up_blocks.3.")

    needs_style_lora = False

    @torch.no_grad()
    def __call__(self, studio: Studio, task: Task) -> Image.Image:
        size, nothing = studio.size(task.content), studio.embed("")
        with studio.denoiser() as denoiser:
            content, style = (studio.invert(denoiser, image, size) for image in (task.content, task.style))
            x = FromContentAdaIN()(content.latents[0], style.latents[0], task.seed)
            with self._injecting(studio.backbone.network):
                for step in studio.schedule:
                    latents = content.latents[step.index], style.latents[step.index], x
                    rows = tuple(Row(z, step.timestep, step.level, nothing) for z in latents)
                    (noise_preds,) = denoiser([Group(None, rows)])
                    x = ddim_step(x, noise_preds[TARGET], step.level, step.level_to)
        return studio.decode(x, task.content)

    @contextmanager
    def _injecting(self, network: nn.Module) -> Iterator[None]:
        """Hooks on the projections of these self-attentions; none of them is left."""
        handles = []
        try:
            for name, module in network.named_modules():
                if name.startswith(self.blocks) and name.endswith(".attn1"):
                    hooks = {"to_q": self._queries(), "to_k": _from_style, "to_v": _from_style}
                    handles += [module.get_submodule(n).register_forward_hook(hook) for n, hook in hooks.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _queries(self) -> Callable:
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            mixed = torch.lerp(output[TARGET], output[CONTENT], self.gamma)
            return torch.stack([output[CONTENT], output[STYLE], self.temperature * mixed])

        return hook


def _from_style(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """Keys or values (3, cells, C): the target's become the style's."""
    return output[[CONTENT, STYLE, STYLE]]
