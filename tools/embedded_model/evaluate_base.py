"""Measures of a trained pipeline directory: how well it encodes, how well it predicts noise, and a sheet of samples."""

from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from painting import PROMPTS, STYLES, TRAINING_STYLES, paint
from PIL import Image, ImageDraw
from world import render_scene

HELD_OUT_SEED = 10_000_000  # scenes from here on are never trained on
#: of the sheet of samples: a style and the words of a scene
SHEET = (
    ("photo", "day, sky, clouds, hill, tree"),
    ("photo", "indoors, background, cat"),
    ("oil", "sunset, sky, sun, mountain, field, house"),
    ("oil", "indoors, table, wall, vase, flower"),
    ("watercolor", "day, sky, mountain, water, boat"),
    ("watercolor", "day, sky, house, tree"),
    ("pointillism", "day, sky, hill, tree"),
    ("hatching", "day, sky, house, tree"),
    ("poster", "night, sky, moon, hill, pine"),
    ("poster", "day, sky, building, road, car"),
    ("woodcut", "day, sky, mountain, pine"),
    ("engraving", "day, sky, mountain, water, boat"),
    ("pastel", "sunset, sky, sun, hill, field"),
    ("ink", "night, sky, moon, mountain"),
    ("knife", "day, sky, clouds, mountain, field"),
    ("halftone", "indoors, wall, face, hair, shirt, person"),
    ("glass", "day, sky, sun, hill, house"),
    ("charcoal", "indoors, table, wall, apple, bottle"),
    ("embroidery", "day, sky, field, flower"),
    ("pencil", "day, sky, house, tree"),
)
#: eta 1: each step puts noise back, which takes out what earlier steps got wrong
STEPS, GUIDANCE, ETA = 250, 5.0, 1.0


def evaluate(model: Path, sheet: Path | None, renders: int, device: str) -> None:
    """Print a table of measures for the pipeline directory `model` and write samples to `sheet`, if any."""
    pipeline = StableDiffusionPipeline.from_pretrained(str(model), dtype=torch.float32, safety_checker=None)
    pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    scenes = [render_scene(HELD_OUT_SEED + i) for i in range(renders)]
    print(f"{'picture':<24}{'round trip, dB':>16}{'noise MSE':>12}", flush=True)
    for style in STYLES:
        pictures = [paint(scene.image, style, i) for i, scene in enumerate(scenes)]
        error = ""
        if style in TRAINING_STYLES:
            captions = [f"{PROMPTS[style]} {', '.join(scene.words)}" for scene in scenes]
            error = f"{noise_error(pipeline, pictures, captions):.4f}"
        name = style if style in TRAINING_STYLES else f"{style} (held out)"
        print(f"{name:<24}{np.mean(round_trip_psnr(pipeline.vae, pictures)):>16.2f}{error:>12}", flush=True)
    photographs = real_photographs()
    decibels = round_trip_psnr(pipeline.vae, list(photographs.values()))
    for name, psnr in zip([*photographs, "mean of the three"], [*decibels, np.mean(decibels)], strict=True):
        print(f"{name:<24}{psnr:>16.2f}", flush=True)
    if sheet is not None:
        draw_samples(pipeline).save(sheet)


def real_photographs(size: int = 256) -> dict[str, np.ndarray]:
    """Three photographs (H, W, 3) float32 in [0, 1], cut square; for measuring only, never for training."""
    named = {"astronaut": skimage.data.astronaut(), "coffee": skimage.data.coffee(), "cat": skimage.data.chelsea()}
    pictures = {}
    for name, picture in named.items():
        side = min(picture.shape[:2])
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        square = picture[top : top + side, left : left + side].astype(np.float32) / 255
        pictures[name] = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return pictures


@torch.no_grad()
def round_trip_psnr(vae: AutoencoderKL, pictures: list[np.ndarray]) -> list[float]:
    """Peak signal-to-noise ratio in dB of each picture (H, W, 3) in [0, 1] after encoding and decoding."""
    decibels = []
    for picture in pictures:
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].to(vae.device, vae.dtype) * 2 - 1
        latents = vae.encode(pixels, return_dict=False)[0].mean
        decoded = vae.decode(latents, return_dict=False)[0].clamp(-1, 1)  # type: ignore[arg-type]
        decibels.append(float(10 * torch.log10(4 / torch.mean((decoded - pixels) ** 2))))
    return decibels


@torch.no_grad()
def noise_error(pipeline: StableDiffusionPipeline, pictures: list[np.ndarray], captions: list[str]) -> float:
    """Mean squared error of the predicted noise, over timesteps spread evenly from 0 to the last."""
    device, generator = pipeline.unet.device, torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
    means = [pipeline.vae.encode(row[None].to(device), return_dict=False)[0].mean for row in pixels]
    latents = torch.cat(means) * pipeline.vae.config.scaling_factor
    embeds, _ = pipeline.encode_prompt(captions, device, 1, do_classifier_free_guidance=False)
    errors, count = [], len(pictures)
    for shift in (0.25, 0.75):
        spread = (torch.arange(count) + shift) / count * pipeline.scheduler.config.num_train_timesteps
        timesteps = spread.long().to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
        errors.append(torch.mean((pipeline.unet(noisy, timesteps, embeds).sample - noise) ** 2))
    return float(torch.stack(errors).mean())


def draw_samples(pipeline: StableDiffusionPipeline, size: int = 256, columns: int = 5) -> Image.Image:
    """The pictures of :data:`SHEET`, each with its prompt above it, in rows."""
    header = 18
    sheet = Image.new("RGB", (size * columns, (size + header) * -(-len(SHEET) // columns)), "white")
    label = ImageDraw.Draw(sheet)
    for place, (style, words) in enumerate(SHEET):
        prompt = f"{PROMPTS[style]} {words}"
        images = pipeline(
            prompt,
            height=size,
            width=size,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            eta=ETA,
            generator=torch.Generator().manual_seed(place),
            return_dict=False,
        )[0]
        left, top = place % columns * size, place // columns * (size + header)
        label.text((left + 2, top + 3), f"{place + 1}: {prompt.partition(' of ')[0]}: {words}", fill="black")
        sheet.paste(images[0], (left, top + header))
    return sheet
