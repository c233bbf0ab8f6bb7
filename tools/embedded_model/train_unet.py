"""The training of the UNet and the text encoder, on latents of rendered pictures."""

import argparse
import copy
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from base_model import LATENT_CHANNELS, Denoiser, build_scheduler, load_denoiser, load_vae, save_shards, tokenize
from captions import MAX_TOKENS, build_tokenizer
from diffusers import AutoencoderKL
from grounding import PLACED, grounding_loss, word_tokens
from rendered import CHUNK, LARGE_EVERY, PAINTED_PER_SCENE, SIZES, Scenes, read_scenes, scene_chunks
from torch import Tensor, nn
from training import Clock, Ranks, clip, compile_if_possible, flat_gradients, follow, report, set_learning_rate
from transformers import CLIPTokenizer

from diffstyler.cuda import Captured
from diffstyler.masking.attention import AttentionRecorder

CAPTIONS_PER_PICTURE = 4
GROUNDED = 4  # a batch that teaches where the words lie is so much smaller: it is not compiled
CUTS = ((16, 32), (32, 16), (24, 32), (32, 24))  # (h, w) of rectangles in latents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vae", type=Path, required=True, help="directory that `vae` wrote, or a pipeline directory")
    parser.add_argument("--resume", type=Path, help="what an earlier `unet` wrote, or a pipeline, to go on from")
    parser.add_argument("--batch", type=int, default=256, help="latents in a batch of one rank")
    parser.add_argument("--grounding", type=float, default=0.05, help="weight of where the words lie")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--scenes", type=int, default=9000, help="the most scenes to hold, over all ranks")
    parser.add_argument(
        "--compile-when", type=Path, help="compile once this file is there: another run has filled the compiler's cache"
    )


class Table:
    """What is known of the pictures of one size, on the device: rows up to `count` are there, more may come."""

    def __init__(self, scenes: int, side: int, device: torch.device) -> None:
        pictures, self.count = scenes * (1 + PAINTED_PER_SCENE), 0
        shape = (pictures, 2, LATENT_CHANNELS, side, side)
        self.latents = torch.empty(shape, dtype=torch.float16, device=device)  # each picture and its mirror image
        self.tokens = torch.empty(pictures, CAPTIONS_PER_PICTURE, MAX_TOKENS, dtype=torch.int64, device=device)
        self.places = torch.empty(scenes, len(PLACED), side, side, dtype=torch.uint8, device=device)

    def add(self, latents: Tensor, tokens: Tensor, places: Tensor) -> None:
        """Write what there is room for behind the last row."""
        room = min(len(latents), len(self.latents) - self.count) // (1 + PAINTED_PER_SCENE)
        rows = slice(self.count, self.count + room * (1 + PAINTED_PER_SCENE))
        for own, new in ((self.latents, latents), (self.tokens, tokens)):
            own[rows] = new[: rows.stop - rows.start]
        self.places[rows.start // (1 + PAINTED_PER_SCENE) :][:room] = places[:room]
        self.count = rows.stop


class Feed(threading.Thread):
    """Reads and encodes this rank's chunks as the renderer writes them, while the network learns from the first."""

    def __init__(self, options: argparse.Namespace, ranks: Ranks, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
        super().__init__(daemon=True)
        self.directory, self.ranks, self.vae, self.tokenizer = options.pictures, ranks, vae, tokenizer
        self.rng = np.random.default_rng([options.seed, ranks.rank])
        self.recording = threading.Lock()  # held while something else must have the device's memory for itself
        self.done: set[Path] = set()
        self.failure: BaseException | None = None
        most = math.ceil(options.scenes / ranks.count)
        large = math.ceil(most / LARGE_EVERY) + CHUNK
        self.tables = [
            Table(most + CHUNK - large, SIZES[0] // 8, ranks.device),
            Table(large, SIZES[1] // 8, ranks.device),
        ]

    def begin(self, seconds: float = 180) -> None:
        """Start, and wait until there are rows of every size."""
        self.start()
        limit = time.monotonic() + seconds
        while not all(table.count for table in self.tables):
            self.check()
            if time.monotonic() > limit:
                raise ValueError(f"{self.directory}: expected chunks of scenes of {SIZES} px; run `render` first")
            time.sleep(0.2)

    def check(self) -> None:
        """Raise what ended the thread."""
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            if self.ranks.device.type == "cuda":
                torch.cuda.set_device(self.ranks.device)
                torch.cuda.set_stream(torch.cuda.Stream())
            with ThreadPoolExecutor(3) as readers:
                while any(table.count < len(table.latents) for table in self.tables):
                    new = [
                        p for p in scene_chunks(self.directory, self.ranks.rank, self.ranks.count) if p not in self.done
                    ]
                    for at in range(0, len(new), 8):
                        for scenes in readers.map(read_scenes, new[at : at + 8]):
                            self._add(scenes)
                    self.done.update(new)
                    time.sleep(1)
        except BaseException as failure:  # told by `check`
            self.failure = failure

    def _add(self, scenes: Scenes) -> None:
        table = self.tables[SIZES.index(scenes.pictures.shape[-1])]
        if table.count == len(table.latents):
            return
        tokens = tokenize(self.tokenizer, scenes.captions(self.rng, CAPTIONS_PER_PICTURE))
        tokens = tokens.view(len(scenes.pictures), CAPTIONS_PER_PICTURE, -1)
        with self.recording:
            latents = encode_both_ways(self.vae, scenes.pictures)
            table.add(latents, tokens.to(latents.device), scenes.places.to(latents.device))
            if latents.device.type == "cuda":
                torch.cuda.current_stream().synchronize()


def train_unet(options: argparse.Namespace) -> None:
    """Noise prediction with min-SNR weights (Hang et al. 2023, eq. 3, gamma 5) and an averaged copy of the weights.

    Of twelve steps ten take whole pictures of 256 px, by the compiled network. The two others teach the
    cross-attention where each word lies, on whole pictures and rectangles cut from them in turn, and on larger ones.
    Some of their rows ask for words that their picture may not show: those teach the attention alone.
    """
    ranks = Ranks.join(options.device, options.seed)
    clock, device = Clock(options.minutes, ranks), ranks.device
    tokenizer = build_tokenizer()
    rng = np.random.default_rng([options.seed, ranks.rank])
    shapes = np.random.default_rng(options.seed)  # the same on all ranks
    vae = load_vae(options.vae).to(device)  # type: ignore[arg-type]
    feed = Feed(options, ranks, vae, tokenizer)
    empty = tokenize(tokenizer, [""]).to(device)
    asked = tokenize(tokenizer, [ask_for_words(rng) for _ in range(4096)]).to(device)
    named = word_tokens(tokenizer).to(device)

    denoiser = Denoiser(tokenizer) if options.resume is None else load_denoiser(options.resume, tokenizer)
    denoiser.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ranks.share(denoiser)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    report(f"denoiser: {sum(p.numel() for p in denoiser.parameters()) / 1e6:.2f} M parameters")
    gradients = flat_gradients(denoiser.parameters())
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=0.0, weight_decay=1e-3, betas=(0.9, 0.99), fused=device.type == "cuda"
    )
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator(device).manual_seed(options.seed + ranks.rank)
    recorder = AttentionRecorder(denoiser.unet)

    def draw(count: int, upper: int) -> Tensor:
        return torch.randint(upper, (count,), device=device, generator=generator)

    def draw_batch(known: Table, count: int, *, grounded: bool, cut: tuple[int, int] | None = None) -> list[Tensor]:
        """`count` rows, whole or cut to (h, w): clean latents, noise, timesteps, captions, weights, masks if wanted."""
        rows, way = draw(count, known.count), draw(count, 2)
        clean, ids = known.latents[rows, way].float(), known.tokens[rows, draw(count, CAPTIONS_PER_PICTURE)]
        dice = torch.rand(count, 1, device=device, generator=generator)
        asking = (dice > 0.7) & torch.tensor(grounded, device=device)
        ids = torch.where(dice < 0.1, empty, torch.where(asking, asked[draw(count, len(asked))], ids))
        masks = []
        if grounded:
            found = known.places[rows // (1 + PAINTED_PER_SCENE)].float() / 255
            masks.append(torch.where((way == 1).view(-1, 1, 1, 1), found.flip(-1), found))
        if cut is not None:
            spare = (clean.shape[-2] - cut[0], clean.shape[-1] - cut[1])
            top, left = (int(shapes.integers(more + 1)) for more in spare)
            window = (..., slice(top, top + cut[0]), slice(left, left + cut[1]))
            clean, masks = clean[window], [mask[window] for mask in masks]
        timesteps = draw(count, len(alphas_cumprod))
        alpha = alphas_cumprod[timesteps]
        weights = (alpha / (1 - alpha)).clamp(max=5) * (1 - alpha) / alpha * ~asking.flatten()
        clean = clean.contiguous(memory_format=torch.channels_last)
        noise = torch.randn(clean.shape, device=device, generator=generator).to(memory_format=torch.channels_last)
        return [clean, noise, timesteps, ids, weights, *masks]

    def learn(
        unet: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor, weights: Tensor, *masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put the gradients of one batch into `gradients` -> the error of the noise, the grounding loss."""
        gradients.zero_()
        alpha = alphas_cumprod[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeds = denoiser.text_encoder(input_ids=ids)[0]
            with recorder.recording() if masks else nullcontext():
                noise_pred = unet(noisy, timesteps, embeds, return_dict=False)[0]
        error = ((noise_pred.float() - noise) ** 2).mean((1, 2, 3))
        loss, grounding = (weights * error).mean(), error.new_zeros(())
        if masks:
            grounding = grounding_loss(recorder, ids, named, masks[0])
            loss = loss + options.grounding * grounding
        loss.backward()
        told = weights > 0
        return (error * told).sum().detach() / told.sum().clamp(min=1), grounding.detach()

    def learning(unet: nn.Module) -> Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]:
        """`learn` with this network; on CUDA recorded for each shape of batch."""

        def function(batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            return learn(unet, *batch)

        return Captured(function) if device.type == "cuda" else function

    def step(
        learn_from: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]], batch: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        key = (learn_from, tuple(tensor.shape for tensor in batch))
        with nullcontext() if key in known else feed.recording:
            error, grounding = learn_from(batch)
        known.add(key)
        ranks.average(gradients)
        clip(gradients, 1.0)
        optimizer.step()
        return error.clone(), grounding.clone()

    known: set[Hashable] = set()
    feed.begin()
    small, large = feed.tables
    draw_whole = partial(draw_batch, small, options.batch, grounded=False)
    few = max(1, options.batch // GROUNDED)
    learn_where, learn_whole = learning(denoiser.unet), learning(denoiser.unet)
    compiled = not options.compile
    clock.begin(reserve=min(15, 0.1 * 60 * options.minutes))
    i, seen, total, began, errors, grounding = 0, 0, 0, time.monotonic(), [], torch.zeros(())
    while (progress := clock.progress()) < 1:
        feed.check()
        if not compiled and i % 16 == 0 and ranks.agree(options.compile_when is None or options.compile_when.exists()):
            with feed.recording:
                unet = compile_if_possible(denoiser.unet, lambda network: learn(network, *draw_whole()), wanted=True)
            learn_whole, compiled = learning(unet), True
            known.clear()  # what was recorded of the network as it was is free now
        rate = min(1, (i + 1) / 300) * max(0.01, min(1, 2 * (1 - progress)))
        set_learning_rate(optimizer, options.learning_rate * rate)
        turn, count = i % 12, options.batch
        if turn == 5:
            count, cut = few, None if i % 24 == 5 else CUTS[int(shapes.integers(len(CUTS)))]
            error, grounding = step(learn_where, draw_batch(small, count, grounded=True, cut=cut))
        elif turn == 11:
            count = few
            error, grounding = step(learn_where, draw_batch(large, count, grounded=True))
        else:
            error, _ = step(learn_whole, draw_whole())
            errors.append(error)
        i, seen = i + 1, seen + count * ranks.count
        follow(average, denoiser, i, most=0.999)
        if clock.time_to_report():
            recent = torch.stack(errors or [error]).mean()
            errors.clear()
            speed = seen / (time.monotonic() - began)
            figures = f"mse {recent:.4f} grounding {grounding:.4f} {speed:.0f} samples/s, {small.count} pictures"
            report(f"unet step {i} progress {progress:.3f} {figures}")
            total, seen, began = total + seen, 0, time.monotonic()
        if clock.time_to_save() and ranks.rank == 0:
            save_shards(average.state_dict(), options.out, "unet")
            report("unet saved")
    if ranks.rank == 0:
        save_shards(average.state_dict(), options.out, "unet")
    report(f"unet done after {i} steps, {total + seen} pictures seen")


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
