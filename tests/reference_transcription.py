"""The authors' way, written out plainly and slowly: a copy of the UNet for each style, three rows at a time.

Nothing of diffstyler is used here. LoRA weights are merged into the copies.
"""

import copy

import cv2
import numpy as np
import torch

FEATURES = "up_blocks.1.resnets.1.conv2"
INJECTED = [
    f"up_blocks.{block}.attentions.{layer}.transformer_blocks.0.attn1"
    for block, layers in {1: (1, 2), 2: (0, 1, 2), 3: (0, 1, 2)}.items()
    for layer in layers
]


@torch.no_grad()
def transcribe(unet, loras, masks, prompts, negative, empty, content, timesteps, alphas, start, guidance_scale):
    """x_0 (C, h, w).

    unet: a diffusers UNet2DConditionModel that predicts ε; loras: one {name: B A s} a style; masks: one uint8 picture
    a style; prompts: one (1, L, D) a style; negative, empty: (1, L, D); content: {t: z_t}; alphas: ᾱ at each of the
    timesteps, then the last; start: x at the first timestep.
    """
    styled = [with_lora(unet, lora) for lora in loras]
    size = tuple(start.shape[1:])
    inside = [torch.from_numpy(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR) != 0) for mask in masks]
    n, x = len(timesteps), start
    for step, t in enumerate(timesteps):
        rate = min(1.0, 2 * t / 1000)
        eps_neg, eps_pos = three_rows(unet, content[t], x, t, (empty, negative, empty), True, True, rate)
        for model, prompt, where in zip(styled, prompts, inside, strict=True):
            inject = (step < 0.6 * n, step < 0.5 * n)
            neg, pos = three_rows(model, content[t], x, t, (empty, negative, prompt), *inject, rate)
            eps_neg, eps_pos = torch.where(where, neg, eps_neg), torch.where(where, pos, eps_pos)
        eps = eps_neg + guidance_scale * (eps_pos - eps_neg)
        a, a_next = alphas[step], alphas[step + 1]
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = a_next**0.5 * x0 + (1 - a_next) ** 0.5 * eps
    return x


def three_rows(unet, z, x, t, texts, features, attention, rate):
    """ε of the second and third row; what the first row computes at the injected layers steers them."""
    handles = []

    def steer(share):
        def hook(module, args, out):
            source = out[:1]
            return torch.cat([source, *(share * source + (1 - share) * out[i : i + 1] for i in (1, 2))])

        return hook

    if features:
        handles.append(unet.get_submodule(FEATURES).register_forward_hook(steer(1.0)))
    if attention:
        for name in INJECTED:
            for part in ("to_q", "to_k"):
                handles.append(unet.get_submodule(f"{name}.{part}").register_forward_hook(steer(rate)))
    try:
        out = unet(torch.stack([z, x, x]), t, encoder_hidden_states=torch.cat(texts)).sample
    finally:
        for handle in handles:
            handle.remove()
    return out[1], out[2]


def with_lora(unet, lora):
    """A copy of the UNet with the adapter merged into every attention, except attn1 of the injected layers."""
    model = copy.deepcopy(unet)
    for name, update in lora.items():
        if not any(name.startswith(f"{layer}.") for layer in INJECTED):
            model.get_submodule(name).weight.data += update
    return model


def circle(size, center, radius):
    """A mask picture (H, W) uint8: a white disk on black."""
    y, x = np.mgrid[0:size, 0:size]
    return (np.hypot(x - center[0], y - center[1]) < radius).astype(np.uint8) * 255
