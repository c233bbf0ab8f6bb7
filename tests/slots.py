"""LoRAs in the making on one linear layer."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

from diffstyler.adapters import LoRAIdentity, LoRAPack, Rows
from diffstyler.fit.jobs import FitJob, FitPicture, FitSettings
from diffstyler.fit.slot import LossScale, Slot, clip_, open_slot, take_steps
from diffstyler.types import PromptEmbeds


def open_slots(*seeds: int, optimizer=None, gradient_clip=None, early_stop=None, **loss_scale) -> list[Slot]:
    """LoRAs with these seeds on one linear layer."""
    layer = nn.Linear(16, 16, bias=False)
    layer.weight.data = torch.eye(16)
    model = nn.Sequential(OrderedDict(to_q=layer)).requires_grad_(False)
    pack = LoRAPack(model, LoraConfig(r=2, target_modules=["to_q"]), len(seeds))
    pack.train()
    latents = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    slots = []
    for index, seed in enumerate(seeds):
        job = FitJob(
            FitPicture((Path(f"{seed}.png"),), f"{seed}", f"{seed}"),
            FitSettings(
                prompt="a picture",
                seed=seed,
                steps=6,
                rank=2,
                gradient_clip=gradient_clip,
                early_stop=early_stop,
                optimizer=optimizer or (lambda weights: torch.optim.AdamW(weights, lr=0.1)),
                lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
            ),
            LoRAIdentity("style", f"{seed}", f"{seed}", "model", {}),
        )
        slots.append(
            open_slot(
                job,
                index,
                pack,
                latents,
                PromptEmbeds(torch.zeros(1, 2, 4)),
                loss_scale=LossScale(**loss_scale),
            )
        )
        slots[-1].model = model
    return slots


def backward(slots: list[Slot]) -> torch.Tensor:
    """One step's losses of slots of one pack, their gradients left in it."""
    pack, draws = slots[0].pack, [slot.draw(2, 1000) for slot in slots]
    inputs = torch.cat([slot.latents[draw.crops] for slot, draw in zip(slots, draws, strict=True)]).flatten(1)
    noise = torch.cat([draw.noise for draw in draws]).flatten(1)
    pack.flat.grad = None
    with pack.rows(Rows(None)):
        errors = (slots[0].model(inputs) - noise).square().mean(1)
    losses = errors.view(len(slots), 2).mean(1)
    (losses * torch.tensor([slot.loss_scale.value for slot in slots])).sum().backward()
    return losses.detach()


def train(*slots: Slot, steps: int) -> None:
    for _ in range(steps):
        losses = backward(list(slots))
        cut(*slots)
        take_steps(slots)
        for slot, loss in zip(slots, losses.tolist(), strict=True):
            slot.losses.append(loss)
            slot.step += 1


def cut(*slots: Slot) -> list[float]:
    """Gradients unscaled and cut -> their norms."""
    bounds = [slot.job.settings.gradient_clip or math.inf for slot in slots]
    scales = torch.tensor([slot.loss_scale.value for slot in slots])
    return clip_(slots[0].pack.flat.grad, scales, torch.tensor(bounds)).tolist()
