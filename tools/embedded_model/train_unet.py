"""The training of the UNet and the text encoder, on latents of rendered pictures."""

import argparse
import copy
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from base_model import Denoiser, build_scheduler, load_denoiser, load_vae, save_shards, tokenize
from captions import build_tokenizer
from diffusers import AutoencoderKL
from grounding import PLACED, grounding_loss, word_tokens
from rendered import PAINTED_PER_SCENE, SIZES, Scenes, read_scenes
from torch import Tensor, nn
from training import Clock, Ranks, compile_if_possible, follow, report, set_learning_rate
from transformers import CLIPTokenizer

from diffstyler.masking.attention import AttentionRecorder

CAPTIONS_PER_PICTURE = 4
GROUNDED = 4  # a batch that teaches where the words lie is so much smaller: its maps are not compiled
CUTS = ((16, 32), (32, 16), (24, 32), (32, 24))  # (h, w) of rectangles in latents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vae", type=Path, required=True, help="directory that `vae` wrote, or a pipeline directory")
    parser.add_argument("--resume", type=Path, help="what an earlier `unet` wrote, or a pipeline, to go on from")
    parser.add_argument("--batch", type=int, default=384, help="latents in a batch of one rank")
    parser.add_argument("--grounding", type=float, default=0.05, help="weight of where the words lie")
    parser.add_argument("--learning-rate", type=float, default=8e-4)


@dataclass(frozen=True)
class Latents:
    """What is known of the pictures of one size, on the device."""

    latents: Tensor  # (N, 2, C, h, w) float16: each picture and its mirror image
    tokens: Tensor  # (N, CAPTIONS_PER_PICTURE, T) int64
    places: Tensor  # (N / (1 + PAINTED_PER_SCENE), words, h, w) uint8

    @classmethod
    def join(cls, parts: "list[Latents]") -> "Latents":
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def train_unet(options: argparse.Namespace) -> None:
    """Noise prediction with min-SNR weights (Hang et al. 2023, eq. 3, gamma 5) and an averaged copy of the weights.

    Of eight steps six take whole pictures of 256 px, by the compiled network. The two others run eagerly and teach the
    cross-attention where each word lies, on whole pictures and rectangles cut from them in turn, and on larger ones.
    Some of their rows ask for words that their picture may not show: those teach the attention alone.
    """
    ranks = Ranks.join(options.device, options.seed)
    clock, device = Clock(options.minutes, ranks), ranks.device
    tokenizer = build_tokenizer()
    rng = np.random.default_rng([options.seed, ranks.rank])
    shapes = np.random.default_rng(options.seed)  # the same on all ranks
    vae = load_vae(options.vae).to(device)  # type: ignore[arg-type]
    data = []
    for size in SIZES:
        chunks = read_scenes(options.pictures, size, ranks.rank, ranks.count)
        data.append(Latents.join([_prepare(scenes, vae, tokenizer, rng) for scenes in chunks]))
        report(f"latents of a rank: {tuple(data[-1].latents.shape)}")
    empty = tokenize(tokenizer, [""]).to(device)
    asked = tokenize(tokenizer, [ask_for_words(rng) for _ in range(4096)]).to(device)
    named = word_tokens(tokenizer).to(device)

    denoiser = Denoiser(tokenizer) if options.resume is None else load_denoiser(options.resume, tokenizer)
    denoiser.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ranks.share(denoiser)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    report(f"denoiser: {sum(p.numel() for p in denoiser.parameters()) / 1e6:.2f} M parameters")
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=0.0, weight_decay=1e-3, betas=(0.9, 0.99), fused=device.type == "cuda"
    )
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator(device).manual_seed(options.seed + ranks.rank)
    recorder = AttentionRecorder(denoiser.unet)

    def draw(count: int, upper: int) -> Tensor:
        return torch.randint(upper, (count,), device=device, generator=generator)

    def step(
        unet: nn.Module, known: Latents, count: int, *, grounded: bool, cut: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step on `count` rows, whole or cut to (h, w) -> the grounding loss, the error of the noise."""
        rows, way = draw(count, len(known.latents)), draw(count, 2)
        clean, ids = known.latents[rows, way].float(), known.tokens[rows, draw(count, CAPTIONS_PER_PICTURE)]
        dice = torch.rand(count, 1, device=device, generator=generator)
        asking = (dice > 0.7) & torch.tensor(grounded, device=device)
        ids = torch.where(dice < 0.1, empty, torch.where(asking, asked[draw(count, len(asked))], ids))
        masks = None
        if grounded:
            masks = known.places[rows // (1 + PAINTED_PER_SCENE)].float() / 255
            masks = torch.where((way == 1).view(-1, 1, 1, 1), masks.flip(-1), masks)
        if cut is not None:
            spare = (clean.shape[-2] - cut[0], clean.shape[-1] - cut[1])
            top, left = (int(shapes.integers(more + 1)) for more in spare)
            window = (..., slice(top, top + cut[0]), slice(left, left + cut[1]))
            clean, masks = clean[window], None if masks is None else masks[window]
        clean = clean.contiguous(memory_format=torch.channels_last)
        noise = torch.randn(clean.shape, device=device, generator=generator).to(memory_format=torch.channels_last)
        timesteps = draw(count, len(alphas_cumprod))
        alpha = alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeds = denoiser.text_encoder(input_ids=ids)[0]
            if grounded:
                with recorder.recording():
                    noise_pred = unet(noisy, timesteps, embeds, return_dict=False)[0]
            else:
                noise_pred = unet(noisy, timesteps, embeds, return_dict=False)[0]
        error = ((noise_pred.float() - noise) ** 2).mean((1, 2, 3))
        snr = (alpha / (1 - alpha)).flatten()
        loss = (snr.clamp(max=5) / snr * error * ~asking.flatten()).mean()
        grounding = error.new_zeros(())
        if masks is not None:
            grounding = grounding_loss(recorder, ids, named, masks)
            loss = loss + options.grounding * grounding
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.average_gradients(denoiser.parameters())
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        return grounding.detach(), (error * ~asking.flatten()).sum().detach() / (~asking).sum()

    small, large = data
    unet = compile_if_possible(
        denoiser.unet, partial(step, known=small, count=options.batch, grounded=False), options.compile
    )
    clock.begin(reserve=min(15, 0.1 * 60 * options.minutes))
    i, seen, began, errors, grounding = 0, 0, time.monotonic(), [], torch.zeros(())
    while (progress := clock.progress()) < 1:
        rate = min(1, (i + 1) / 300) * max(0.01, min(1, 2 * (1 - progress)))
        set_learning_rate(optimizer, options.learning_rate * rate)
        turn, count = i % 8, options.batch
        if turn == 6:
            count = max(1, count // GROUNDED)
            cut = None if i % 16 == 6 else CUTS[int(shapes.integers(len(CUTS)))]
            grounding, error = step(denoiser.unet, small, count, grounded=True, cut=cut)
        elif turn == 7:
            count = max(1, count // GROUNDED)
            grounding, error = step(denoiser.unet, large, count, grounded=True)
        else:
            _, error = step(unet, small, count, grounded=False)
            errors.append(error)
        i, seen = i + 1, seen + count * ranks.count
        follow(average, denoiser, i, most=0.999)
        if clock.time_to_report():
            recent = torch.stack(errors or [error]).mean()
            errors.clear()
            speed = seen / (time.monotonic() - began)
            figures = f"mse {recent:.4f} grounding {grounding:.4f} {speed:.0f} samples/s"
            report(f"unet step {i} progress {progress:.2f} {figures}")
        if clock.time_to_save() and ranks.rank == 0:
            save_shards(average.state_dict(), options.out, "unet")
            report("unet saved")
    if ranks.rank == 0:
        save_shards(average.state_dict(), options.out, "unet")
    report(f"unet done after {i} steps, {seen} pictures seen")


def _prepare(scenes: Scenes, vae: AutoencoderKL, tokenizer: CLIPTokenizer, rng: np.random.Generator) -> Latents:
    tokens = tokenize(tokenizer, scenes.captions(rng, CAPTIONS_PER_PICTURE))
    tokens = tokens.view(len(scenes.pictures), CAPTIONS_PER_PICTURE, -1)
    return Latents(encode_both_ways(vae, scenes.pictures), tokens.to(vae.device), scenes.places.to(vae.device))


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


def ask_for_words(rng: np.random.Generator) -> str:
    """A caption of one to four words, whether a picture shows them or not."""
    words = rng.choice(PLACED, rng.integers(1, 5), replace=False)
    return f"{rng.choice(['a photo of', 'a painting of', ''])} {', '.join(words)}"
