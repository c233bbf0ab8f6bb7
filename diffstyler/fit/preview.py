"""LoRAs that are done, still in their slots -> what each draws from its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from diffstyler.adapters import LoRAPack
from diffstyler.backbones import Backbone
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.fit.slot import Slot
from diffstyler.images import to_image
from diffstyler.types import PromptEmbeds, Trajectory


@torch.no_grad()
def draw_samples(
    backbone: Backbone,
    pack: LoRAPack,
    slots: Sequence[Slot],
    prompts: Sequence[PromptEmbeds],
    num_inference_steps: int,
    *,
    exact: bool = False,
) -> list[Image.Image]:
    """A picture for each slot, of its prompt, by plain DDIM without guidance, all in the same UNet calls.

    ``exact``: a picture does not depend on the others, to the last bit on a CPU.
    """
    schedule = backbone.sampling_schedule(num_inference_steps)
    with torch.compiler.set_stance("force_eager"):
        device = pack.flat.device
        backbone.park_encoders(device)
        nothing = backbone.encode_prompt([""])
        canvases = []
        for slot, prompt in zip(slots, prompts, strict=True):
            generator = torch.Generator().manual_seed(slot.job.picture.seed)
            noise = torch.randn(slot.latents.shape[1:], generator=generator).to(device)
            nowhere = Trajectory(schedule.timesteps, noise.expand(len(schedule) + 1, *noise.shape))
            region = Region(slot.index, prompt, nothing, guidance_scale=1.0)
            canvases.append(Canvas(noise, nowhere, (region,)))
        denoiser = Denoiser(backbone, pack, rows_per_call=max(2, pack.slots) if exact else None)
        drawn = denoise(denoiser, canvases, schedule, nothing)
        pictures = [to_image(backbone.decode_latents(latents[None].float())[0]) for latents in drawn]
        backbone.park_encoders("cpu")
    return pictures
