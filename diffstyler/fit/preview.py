"""LoRAs that are done, still in their slots -> what each draws from its prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from PIL import Image

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.backbones import Backbone
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.fit.slot import Slot
from diffstyler.images import to_image
from diffstyler.types import PromptEmbeds, Trajectory

log = logging.getLogger(__name__)

#: DDIM steps of a preview, and the shortest LoRA that gets one unasked
PREVIEW_STEPS, PREVIEWED_STEPS = 8, 50


@torch.no_grad()
def draw_previews(
    backbone: Backbone,
    pack: LoRAPack,
    slots: Sequence[Slot],
    num_inference_steps: int | None,
    *,
    encode_under_lora: bool = False,
    exact: bool = False,
) -> list[Image.Image | None]:
    """A picture for each slot that is to have one, by plain DDIM without guidance, all in the same UNet calls.

    Args:
        backbone: with its encoders on the device.
        pack: with the LoRAs.
        slots: of the LoRAs.
        num_inference_steps: 0 = no previews; None = 8, and none of LoRAs of fewer than 50 steps.
        encode_under_lora: the LoRAs reach the text encoders.
        exact: a picture does not depend on the others, to the last bit on a CPU.
    """
    if num_inference_steps is None:
        chosen = [slot for slot in slots if slot.job.settings.steps >= PREVIEWED_STEPS]
    else:
        chosen = list(slots) if num_inference_steps else []
    if not chosen:
        return [None] * len(slots)
    prompts = _encoded(backbone, pack, chosen) if encode_under_lora else [slot.prompt for slot in chosen]
    schedule = backbone.sampling_schedule(num_inference_steps or PREVIEW_STEPS)
    device = pack.flat.device
    with torch.compiler.set_stance("force_eager"):
        nothing = backbone.encode_prompt([""])
        canvases = []
        for slot, prompt in zip(chosen, prompts, strict=True):
            generator = torch.Generator().manual_seed(slot.job.settings.seed)
            noise = torch.randn(slot.latents.shape[1:], generator=generator).to(device)
            nowhere = Trajectory(schedule.timesteps, noise.expand(len(schedule) + 1, *noise.shape))
            canvases.append(Canvas(noise, nowhere, (Region(slot.index, prompt, nothing, guidance_scale=1.0),)))
        denoiser = Denoiser(backbone, pack, rows_per_call=max(2, pack.slots) if exact else None, recorded=False)
        drawn = denoise(denoiser, canvases, schedule, nothing)
        decoded = [backbone.decode_latents(latents[None].float())[0] for latents in drawn]
    pictures = []
    for slot, pixels in zip(chosen, decoded, strict=True):
        is_finite = bool(torch.isfinite(pixels).all())
        if not is_finite:
            log.warning("%s: its preview came out as NaN or infinity and is left out", slot.name)
        pictures.append(to_image(pixels) if is_finite else None)
    by_slot = {slot.index: picture for slot, picture in zip(chosen, pictures, strict=True)}
    return [by_slot.get(slot.index) for slot in slots]


def _encoded(backbone: Backbone, pack: LoRAPack, slots: Sequence[Slot]) -> list[PromptEmbeds]:
    """Each slot's prompt under its LoRA."""
    rows = Rows(torch.tensor([slot.index for slot in slots], device=pack.flat.device))
    with pack.rows(rows):
        embeds = backbone.encode_prompt([slot.job.settings.prompt for slot in slots])
    return [embeds[[index]] for index in range(len(slots))]
