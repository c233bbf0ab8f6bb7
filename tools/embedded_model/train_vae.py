"""The autoencoder's training: crops of rendered pictures and of dead leaves."""

import argparse
import copy
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from base_model import build_vae, load_vae, save_vae
from diffusers import AutoencoderKL
from evaluate_base import HELD_OUT_SEED, real_photographs, round_trip_psnr
from painting import STYLES, paint
from rendered import SIZES, load_pictures
from torch import Tensor, nn
from torch.nn import functional
from training import Clock, Ranks, clip, compile_if_possible, flat_gradients, follow, report, set_learning_rate
from world import render_scene

CROP = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", type=Path, help="what an earlier `vae` wrote, to go on from")
    parser.add_argument("--latent-channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=96, help=f"crops of {CROP} px in a batch of one rank")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--kl-weight", type=float, default=1e-4)


def train_vae(options: argparse.Namespace) -> None:
    """L1 of pixels, gradients and spectra, turning into squared error for the last part, and a little KL."""
    ranks = Ranks.join(options.device, options.seed)
    clock, device = Clock(options.minutes, ranks), ranks.device
    scenes, leaves = (
        load_pictures(options.pictures, kind, ranks.rank, ranks.count).to(device).contiguous()
        for kind in ("scenes", "leaves")
    )
    report(f"pictures of a rank: {len(scenes)} scenes, {len(leaves)} leaves")
    generator = torch.Generator(device).manual_seed(options.seed + ranks.rank)
    rng = np.random.default_rng(options.seed + ranks.rank)
    vae = build_vae(options.latent_channels) if options.resume is None else load_vae(options.resume).train()
    vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ranks.share(vae)
    average = copy.deepcopy(vae).requires_grad_(False)
    report(f"vae: {sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters")
    gradients = flat_gradients(vae.parameters())
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=0.0, weight_decay=0.0, betas=(0.9, 0.99), fused=device.type == "cuda"
    )

    def step(network: nn.Module, square: float) -> tuple[Tensor, Tensor, Tensor]:
        pixels = draw_crops(scenes, leaves, options.batch, generator, rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            decoded, mean, logvar = network(pixels)
        decoded, mean, logvar = decoded.float(), mean.float(), logvar.float()
        error = functional.mse_loss(decoded, pixels)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        sharp = functional.l1_loss(decoded, pixels) + 0.25 * spectral_l1(decoded, pixels)
        loss = (1 - square) * sharp + (0.4 - 0.3 * square) * gradient_l1(decoded, pixels)
        loss = loss + square * 10 * error + options.kl_weight * kl
        gradients.zero_()
        loss.backward()
        ranks.average(gradients)
        clip(gradients, 1.0)
        optimizer.step()
        return loss.detach(), error.detach(), kl.detach()

    def save(steps: int) -> None:
        if ranks.rank == 0:
            save_vae(average, *latent_statistics(average, scenes), options.out)
            photographs = np.mean(round_trip_psnr(average, list(real_photographs().values())))
            report(f"vae saved after {steps} steps; real photographs {photographs:.2f} dB")

    network = compile_if_possible(Autoencoding(vae), partial(step, square=0.0), options.compile)
    clock.begin(reserve=min(25, 0.1 * 60 * options.minutes))
    i = 0
    while (progress := clock.progress()) < 1:
        fall = 0.5 + 0.5 * math.cos(math.pi * progress)
        set_learning_rate(optimizer, options.learning_rate * min(1, (i + 1) / 100) * max(0.005, fall))
        loss, error, kl = step(network, square=float(np.clip((progress - 0.5) / 0.2, 0, 1)))
        i += 1
        follow(average, vae, i, most=0.999)
        if clock.time_to_report():
            psnr = 10 * math.log10(4 / error.item())
            report(f"vae step {i} progress {progress:.2f} loss {loss:.4f} psnr {psnr:.2f} kl {kl:.2f}")
        if clock.time_to_save():
            save(i)
    save(i)
    if ranks.rank == 0:
        tell_held_out(average)


def tell_held_out(vae: AutoencoderKL) -> None:
    scenes = [render_scene(HELD_OUT_SEED + k, SIZES[0]).image for k in range(4)]
    for style in STYLES:
        pictures = [paint(image, style, HELD_OUT_SEED + k) for k, image in enumerate(scenes)]
        report(f"held-out scenes, {style}: {np.mean(round_trip_psnr(vae, pictures)):.2f} dB")


class Autoencoding(nn.Module):
    """`AutoencoderKL` with its noise, as one plain function that compiles well."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        assert vae.quant_conv is not None
        assert vae.post_quant_conv is not None
        self.quant, self.post_quant = vae.quant_conv, vae.post_quant_conv

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] to (decoded, mean, log variance)."""
        mean, logvar = self.quant(self.vae.encoder(pixels)).chunk(2, dim=1)
        logvar = logvar.float().clamp(-30, 20)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.vae.decoder(self.post_quant(latents)), mean, logvar


def draw_crops(
    scenes: Tensor, leaves: Tensor, count: int, generator: torch.Generator, rng: np.random.Generator
) -> Tensor:
    """Half scenes, half leaves, (count, 3, CROP, CROP) in [-1, 1]: crops or halved pictures, flipped and recolored."""
    device, half = scenes.device, count // 2
    rows = [
        pictures[torch.randint(len(pictures), (n,), device=device, generator=generator)]
        for pictures, n in ((scenes, half), (leaves, count - half))
    ]
    dice = rng.random(8).tolist()  # on the host, so that the device need not be waited for
    side = rows[0].shape[-1]
    if dice[0] < 0.15:
        pixels = functional.avg_pool2d(torch.cat(rows).float(), side // CROP)
    else:
        top, left = int(dice[1] * (side - CROP + 1)), int(dice[2] * (side - CROP + 1))
        pixels = torch.cat([row[:, :, top : top + CROP, left : left + CROP] for row in rows]).float()
    pixels = pixels / 127.5 - 1
    if dice[3] < 0.5:
        pixels = pixels.flip(-1)
    if dice[4] < 0.5:
        pixels = pixels.transpose(-1, -2)
    if dice[5] < 0.4:
        pixels = pixels[:, rng.permutation(3).tolist()]
    if dice[6] < 0.2:
        pixels = (pixels * (0.4 + 0.6 * dice[7]) + 0.6 * (dice[6] / 0.2 - 0.5)).clamp(-1, 1)
    return pixels.contiguous(memory_format=torch.channels_last)


def spectral_l1(a: Tensor, b: Tensor) -> Tensor:
    return (torch.fft.rfft2(a, norm="ortho") - torch.fft.rfft2(b, norm="ortho")).abs().mean()


def gradient_l1(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the horizontal and vertical steps between neighbors, at halved sizes too."""
    difference, total = a - b, a.new_zeros(())
    for _ in range(scales):
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        difference = functional.avg_pool2d(difference, 2)
    return total / scales


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the latents' channels over some of `pictures` (N, 3, H, W) uint8."""
    some = pictures[:: max(1, len(pictures) // 256)]
    latents = torch.cat(
        [vae.encode(batch.float() / 127.5 - 1, return_dict=False)[0].mean for batch in some.split(32)]
    ).float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))
