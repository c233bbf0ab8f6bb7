"""Teach the cross-attention where each word lies: rendered scenes know the exact mask of every word."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer
from world import SETTINGS, WORDS, Scene

from diffstyler.masking.attention import AttentionRecorder

PLACED = WORDS[len(SETTINGS) :]  # all words but the time of day and "indoors" have a place
CELL = 8  # pixels of a latent cell\'s side


def word_masks(scene: Scene) -> np.ndarray:
    """(words of `PLACED`, H / 8, W / 8) uint8: the share of each latent cell that the word covers, 0 … 255."""
    side = len(scene.image) // CELL
    masks = np.zeros((len(PLACED), side, side), np.uint8)
    for word, mask in scene.masks.items():
        cells = mask.reshape(side, CELL, side, CELL).mean((1, 3))
        masks[PLACED.index(word)] = np.round(255 * cells)
    return masks


def word_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """The token of each word of `PLACED`, (words,) int64: every word of the world is one token."""
    return torch.tensor([tokenizer(word).input_ids[1] for word in PLACED])


def grounding_loss(recorder: AttentionRecorder, ids: Tensor, tokens: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy between each word's attention and its mask, mean over the words that the captions hold.

    `ids` (B, T) captions; `tokens` (words,) from `word_tokens`; `masks` (B, words, h, w) in [0, 1] on the latent grid.
    Layers of at least a quarter of the grid's positions take part. Asks the device nothing, so that it can be recorded.
    """
    same = ids[:, :, None] == tokens
    named, word = same.any(-1), same.int().argmax(-1)  # (B, T)
    wanted = masks.gather(1, word[:, :, None, None].expand(-1, -1, *masks.shape[-2:]))
    losses = []
    for attention in recorder.cross().values():
        shrink = round((masks.shape[-1] * masks.shape[-2] / attention.shape[1]) ** 0.5)
        if shrink > 2:
            continue
        target = functional.avg_pool2d(wanted, shrink).flatten(2)
        share = attention.mT.clamp(1e-4, 1 - 1e-4)
        errors = functional.binary_cross_entropy(share, target, reduction="none").mean(-1)
        losses.append((errors * named).sum() / named.sum().clamp(min=1))
    return torch.stack(losses).mean()
