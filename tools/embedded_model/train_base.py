"""Train the latent diffusion model that the package embeds: a rendered world comes in, a pipeline directory goes out.

python tools/embedded_model/train_base.py vae --out runs/vae
python tools/embedded_model/train_base.py unet --vae runs/vae --out runs/unet
python tools/embedded_model/train_base.py export --vae runs/vae --unet runs/unet --out runs/embedded
python tools/embedded_model/train_base.py evaluate runs/embedded --sheet runs/samples.png
"""

import argparse
import copy
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from base_model import (
    Denoiser,
    build_scheduler,
    build_vae,
    export_pipeline,
    load_denoiser,
    load_vae,
    save_shards,
    save_vae,
    tokenize,
)
from captions import build_tokenizer, write_caption
from dead_leaves import render_leaves
from diffusers import AutoencoderKL
from evaluate_base import HELD_OUT_SEED, evaluate, real_photographs, round_trip_psnr
from grounding import PLACED, grounding_loss, word_masks, word_tokens
from painting import TRAINING_STYLES, paint
from torch import Tensor, nn
from torch.nn import functional
from world import render_scene

from diffstyler.masking.attention import AttentionRecorder

T = TypeVar("T")
SIZE = 256
CAPTIONS_PER_PICTURE = 4
PAINTED_PER_SCENE = 2
BEGAN = time.monotonic()


def main() -> None:
    options = parse_arguments()
    if options.command == "vae":
        train_vae(options)
    elif options.command == "unet":
        train_unet(options)
    elif options.command == "export":
        export_pipeline(options.vae, options.unet, options.out)
    else:
        evaluate(options.model, options.sheet, options.renders, options.device)


def parse_arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--out", type=Path, required=True, help="directory for the weights")
    training.add_argument("--minutes", type=float, default=8.7, help="wall clock for everything, rendering included")
    training.add_argument("--render-seconds", type=float, default=75, help="stop rendering after that long")
    training.add_argument("--workers", type=int, default=os.cpu_count())
    training.add_argument("--seed", type=int, default=0, help="first scene, and the seed of the networks")
    training.add_argument("--device", default="cuda" if cuda else "cpu")
    training.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    vae = commands.add_parser("vae", parents=[training], help="train the autoencoder")
    vae.add_argument("--scenes", type=int, default=3000, help="scenes to render, each as three pictures")
    vae.add_argument("--leaves", type=int, default=6000, help="dead-leaves pictures to render")
    vae.add_argument("--batch", type=int, default=96, help="crops of 128 px in a batch")
    vae.add_argument("--learning-rate", type=float, default=8e-4)
    vae.add_argument("--kl-weight", type=float, default=1e-4)
    unet = commands.add_parser("unet", parents=[training], help="train the UNet and the text encoder")
    unet.add_argument("--vae", type=Path, required=True, help="directory that `vae` wrote, or a pipeline directory")
    unet.add_argument("--scenes", type=int, default=9000, help="scenes to render, each as three pictures")
    unet.add_argument("--resume", type=Path, help="what an earlier `unet` wrote, or a pipeline, to go on from")
    unet.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    unet.add_argument("--batch", type=int, default=416)
    unet.add_argument("--grounding", type=float, default=0.05, help="weight of where the words lie")
    unet.add_argument("--learning-rate", type=float, default=5e-4)
    export = commands.add_parser("export", help="make the pipeline directory")
    export.add_argument("--vae", type=Path, required=True)
    export.add_argument("--unet", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True)
    evaluation = commands.add_parser("evaluate", help="measure a pipeline directory and draw samples")
    evaluation.add_argument("model", type=Path)
    evaluation.add_argument("--sheet", type=Path, default=Path("samples.png"), help="where the sample sheet goes")
    evaluation.add_argument("--renders", type=int, default=16, help="held-out scenes to measure on")
    evaluation.add_argument("--device", default="cpu")
    return parser.parse_args()


class Clock:
    """Wall-clock budget of the whole program; `progress` runs from 0 to 1 over what is left of it for training."""

    def __init__(self, minutes: float) -> None:
        self.deadline = BEGAN + 60 * minutes
        self.start, self.reported, self.saved = time.monotonic(), 0.0, time.monotonic()

    def begin(self, reserve: float) -> None:
        """Start the training; keep `reserve` seconds for what follows it."""
        self.start, self.deadline = time.monotonic(), self.deadline - reserve

    @property
    def progress(self) -> float:
        return min(1.0, (time.monotonic() - self.start) / max(self.deadline - self.start, 1e-3))

    def time_to_report(self, every: float = 20.0) -> bool:
        due = time.monotonic() - self.reported > every
        if due:
            self.reported = time.monotonic()
        return due

    def time_to_save(self, every: float = 120.0) -> bool:
        due = time.monotonic() - self.saved > every
        if due:
            self.saved = time.monotonic()
        return due


def train_vae(options: argparse.Namespace) -> None:
    """L1 and spectral L1, turning into squared error for the last third, and a little KL."""
    clock = Clock(options.minutes)
    scenes, _, _, _ = render_training_pictures(options)
    seeds = range(options.seed, options.seed + options.leaves)
    leaves = stack_pictures(gather(render_leaf_bytes, seeds, options))
    device = prepare_device(options)
    scenes, leaves = scenes.to(device), leaves.to(device)
    report(f"pictures: {len(scenes)} scenes, {len(leaves)} leaves")
    generator, rng = torch.Generator(device).manual_seed(options.seed), np.random.default_rng(options.seed)
    vae = build_vae().to(device)  # type: ignore[arg-type]
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    report(f"vae: {sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters")
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, weight_decay=0.0, betas=(0.9, 0.99), fused=True)

    def step(network: nn.Module, square: float) -> tuple[Tensor, Tensor, Tensor]:
        pixels = draw_crops(scenes, leaves, options.batch, generator, rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            decoded, mean, logvar = network(pixels)
        decoded, mean, logvar = decoded.float(), mean.float(), logvar.float()
        error = functional.mse_loss(decoded, pixels)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = (1 - square) * (functional.l1_loss(decoded, pixels) + 0.25 * spectral_l1(decoded, pixels))
        loss = loss + square * 10 * error + options.kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        return loss.detach(), error.detach(), kl.detach()

    network = compile_if_possible(Autoencoding(vae), partial(step, square=0.0), options)
    clock.begin(reserve=min(20, 0.1 * 60 * options.minutes))
    i = 0
    while (progress := clock.progress) < 1:
        set_learning_rate(optimizer, options.learning_rate * min(1, (i + 1) / 100) * max(0.01, 1 - progress))
        loss, error, kl = step(network, square=float(np.clip((progress - 0.55) / 0.2, 0, 1)))
        i += 1
        if clock.time_to_report():
            psnr = 10 * math.log10(4 / error.item())
            report(f"vae step {i} progress {progress:.2f} loss {loss:.4f} psnr {psnr:.2f} kl {kl:.2f}")
        if clock.time_to_save():
            save_vae(vae, *latent_statistics(vae, scenes), options.out)
            report(f"vae saved; real photographs {photograph_psnr(vae):.2f} dB")
    save_vae(vae, *latent_statistics(vae, scenes), options.out)
    report(f"vae done after {i} steps; real photographs {photograph_psnr(vae):.2f} dB")
    for style in TRAINING_STYLES:
        held_out = [render_scene(HELD_OUT_SEED + k, SIZE).image for k in range(4)]
        pictures = [paint(image, style, HELD_OUT_SEED + k) for k, image in enumerate(held_out)]
        report(f"held-out {style}: {np.mean(round_trip_psnr(vae, pictures)):.2f} dB")


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
    """Half scenes, half leaves, (count, 3, 128, 128) in [-1, 1]: crops or halved pictures, flipped and recolored."""
    device, half = scenes.device, count // 2
    rows = [
        pictures[torch.randint(len(pictures), (n,), device=device, generator=generator)]
        for pictures, n in ((scenes, half), (leaves, count - half))
    ]
    dice = rng.random(8).tolist()  # on the host, so that the device need not be waited for
    side = SIZE // 2
    if dice[0] < 0.15:
        pixels = functional.avg_pool2d(torch.cat(rows).float(), 2)
    else:
        top, left = int(dice[1] * (side + 1)), int(dice[2] * (side + 1))
        pixels = torch.cat([row[:, :, top : top + side, left : left + side] for row in rows]).float()
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


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the latents' channels over some of `pictures` (N, 3, H, W) uint8."""
    some = pictures[:: max(1, len(pictures) // 512)]
    latents = torch.cat(
        [vae.encode(batch.float() / 127.5 - 1, return_dict=False)[0].mean for batch in some.split(32)]
    ).float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


def photograph_psnr(vae: AutoencoderKL) -> float:
    return float(np.mean(round_trip_psnr(vae, list(real_photographs().values()))))


def train_unet(options: argparse.Namespace) -> None:
    """Noise prediction with min-SNR weights (Hang et al. 2023, eq. 3, gamma 5) and an averaged copy of the weights.

    Beside it the cross-attention learns where each word lies. Some rows ask for words that their picture may not
    show: those teach the attention alone.
    """
    clock = Clock(options.minutes)
    pictures, styles, words, places = render_training_pictures(options)
    tokenizer = build_tokenizer()
    rng = np.random.default_rng(options.seed)
    captions = [
        write_caption(rng, s, w) for s, w in zip(styles, words, strict=True) for _ in range(CAPTIONS_PER_PICTURE)
    ]
    device = prepare_device(options)
    tokens = tokenize(tokenizer, captions).view(len(pictures), CAPTIONS_PER_PICTURE, -1).to(device)
    empty = tokenize(tokenizer, [""]).to(device)
    asked = tokenize(tokenizer, [ask_for_words(rng) for _ in range(4096)]).to(device)
    named, places = word_tokens(tokenizer).to(device), places.to(device)
    latents = encode_both_ways(load_vae(options.vae).to(device), pictures)  # type: ignore[arg-type]
    report(f"latents: {tuple(latents.shape)}, std {latents.std():.3f}")

    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    denoiser = Denoiser(tokenizer) if options.resume is None else load_denoiser(options.resume, tokenizer)
    denoiser.to(device, memory_format=layout)  # type: ignore[call-overload]
    average = copy.deepcopy(denoiser).requires_grad_(False)
    report(f"denoiser: {sum(p.numel() for p in denoiser.parameters()) / 1e6:.2f} M parameters")
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=0.0, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator(device).manual_seed(options.seed)

    recorder = AttentionRecorder(denoiser.unet)

    def draw(count: int, upper: int) -> Tensor:
        return torch.randint(upper, (count,), device=device, generator=generator)

    def step(unet: nn.Module, crop: bool) -> tuple[Tensor, Tensor]:
        rows, way = draw(options.batch, len(latents)), draw(options.batch, 2)
        clean, ids = latents[rows, way].float(), tokens[rows, draw(options.batch, CAPTIONS_PER_PICTURE)]
        dice = torch.rand(options.batch, 1, device=device, generator=generator)
        asking = dice > 0.85
        ids = torch.where(dice < 0.12, empty, torch.where(asking, asked[draw(options.batch, len(asked))], ids))
        masks = places[rows // (1 + PAINTED_PER_SCENE)].float() / 255
        masks = torch.where((way == 1).view(-1, 1, 1, 1), masks.flip(-1), masks)
        if crop:
            half = clean.shape[-1] // 2
            top, left = rng.integers(half + 1, size=2).tolist()
            clean = clean[:, :, top : top + half, left : left + half]
            masks = masks[:, :, top : top + half, left : left + half]
        clean = clean.contiguous(memory_format=layout)
        noise = torch.randn(clean.shape, device=device, generator=generator).to(memory_format=layout)
        timesteps = draw(options.batch, len(alphas_cumprod))
        alpha = alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeds = denoiser.text_encoder(input_ids=ids)[0]
            with recorder.recording():
                noise_pred = unet(noisy, timesteps, embeds, return_dict=False)[0]
        error = ((noise_pred.float() - noise) ** 2).mean((1, 2, 3))
        snr = (alpha / (1 - alpha)).flatten()
        loss = (snr.clamp(max=5) / snr * error * ~asking.flatten()).mean()
        grounding = grounding_loss(recorder, ids, named, masks)
        loss = loss + options.grounding * grounding
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        return grounding.detach(), error[~asking.flatten()].mean().detach()

    unet = compile_if_possible(denoiser.unet, partial(step, crop=False), options)
    weights: list[Tensor] = list(denoiser.parameters())
    averaged: list[Tensor] = list(average.parameters())
    clock.begin(reserve=min(12, 0.1 * 60 * options.minutes))
    i, began, errors = 0, time.monotonic(), []
    while (progress := clock.progress) < 1:
        rate = min(1, (i + 1) / 200) * max(0.02, min(1, 2 * (1 - progress)))
        set_learning_rate(optimizer, options.learning_rate * rate)
        crop = i % 4 == 3  # half-size latents, by the uncompiled network, so that other sizes work too
        grounding, error = step(denoiser.unet if crop else unet, crop)
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 1 - min(0.9995, (1 + i) / (10 + i)))
        i += 1
        errors.append(error)
        if clock.time_to_report():
            speed = i * options.batch / (time.monotonic() - began)
            recent = torch.stack(errors).mean()
            errors.clear()
            figures = f"mse {recent:.4f} grounding {grounding:.4f} {speed:.0f} samples/s"
            report(f"unet step {i} progress {progress:.2f} {figures}")
        if clock.time_to_save():
            save_shards(average.state_dict(), options.out, "unet")
            report("unet saved")
    save_shards(average.state_dict(), options.out, "unet")
    report(f"unet done after {i} steps")


@torch.no_grad()
def encode_both_ways(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latents of `pictures` (N, 3, H, W) uint8 and of their mirror images, (N, 2, C, H / 8, W / 8) float16."""
    device = vae.device
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    rows = []
    for batch in pictures.split(128):
        pixels = (batch.to(device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            ways = [vae.encode(p, return_dict=False)[0].mean for p in (pixels, pixels.flip(-1))]
        rows.append(torch.stack(ways, dim=1).half())
    return torch.cat(rows)


def render_training_pictures(options: argparse.Namespace) -> tuple[Tensor, list[str], list[tuple[str, ...]], Tensor]:
    """Pictures (N, 3, H, W) uint8 on the CPU, the style and the words of each, and the masks of each scene's words."""
    seeds = range(options.seed, options.seed + options.scenes)
    scenes = gather(render_in_styles, seeds, options)
    rows = [row for group, _ in scenes for row in group]
    places = torch.from_numpy(np.stack([masks for _, masks in scenes]))
    pictures = stack_pictures([picture for picture, _, _ in rows])
    return pictures, [s for _, s, _ in rows], [w for _, _, w in rows], places


def render_in_styles(seed: int) -> tuple[list[tuple[np.ndarray, str, tuple[str, ...]]], np.ndarray]:
    """One scene as a photo and in some painted styles, (picture (H, W, 3) uint8, style, words), and its masks."""
    scene = render_scene(seed, SIZE)
    painted = np.random.default_rng(seed).choice(TRAINING_STYLES[1:], PAINTED_PER_SCENE, replace=False)
    styles = ("photo", *map(str, painted))
    return [(to_bytes(paint(scene.image, style, seed)), style, scene.words) for style in styles], word_masks(scene)


def ask_for_words(rng: np.random.Generator) -> str:
    """A caption of one to four words, whether a picture shows them or not."""
    words = rng.choice(PLACED, rng.integers(1, 5), replace=False)
    return f"{rng.choice(['a photo of', 'a painting of', ''])} {', '.join(words)}"


def render_leaf_bytes(seed: int) -> np.ndarray:
    return to_bytes(render_leaves(seed, SIZE))


def to_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)


def gather(work: Callable[[int], T], seeds: Sequence[int], options: argparse.Namespace) -> list[T]:
    """Do `work` for each seed on all cores, in order, until the time for rendering is over."""
    limit = time.monotonic() + options.render_seconds
    results: list[T] = []
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for result in pool.imap(work, seeds, chunksize=8):
            results.append(result)
            if time.monotonic() > limit:
                report(f"{work.__name__}: stopped at {len(results)} of {len(seeds)}, out of time")
                break
    report(f"{work.__name__}: {len(results)} rendered")
    return results


def stack_pictures(pictures: list[np.ndarray]) -> Tensor:
    """(N, 3, H, W) uint8."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def prepare_device(options: argparse.Namespace) -> torch.device:
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device(options.device)


def compile_if_possible(
    network: nn.Module, trial: Callable[[nn.Module], object], options: argparse.Namespace
) -> nn.Module:
    """Compile `network` and make a `trial` step with it; where that fails, go on without."""
    if not options.compile:
        return network
    compiled = torch.compile(network, dynamic=False)
    try:
        trial(compiled)  # type: ignore[arg-type]
    except Exception as error:  # any failure of the compiler means the same: run eagerly
        report(f"not compiled ({type(error).__name__}: {str(error)[:300]})")
        return network
    report("compiled")
    return compiled  # type: ignore[return-value]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def report(line: str) -> None:
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {line}", flush=True)


if __name__ == "__main__":
    main()
