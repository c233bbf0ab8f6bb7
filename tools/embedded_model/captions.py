"""Captions of rendered scenes and the small CLIP tokenizer that is built for them."""

import json
from collections.abc import Sequence

import numpy as np
from painting import PROMPTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from world import WORDS

MAX_TOKENS = 32
MORE_WORDS = (
    "a painting in the style of mosaic impasto drawing picture landscape with and by on under red green blue yellow "
    "white black mountains hills trees houses flowers boats people dog bird horse grass face sea lake river road"
)


def write_caption(rng: np.random.Generator, style: str, words: Sequence[str]) -> str:
    """`a photo of sunset, sky, hill`: at times reordered or with words left out, to teach each word alone."""
    chosen = [word for word in words if word == "sky" or rng.random() > 0.12] or list(words[:1])
    if rng.random() < 0.5:
        chosen = [str(word) for word in rng.permutation(chosen)]
    if rng.random() < 0.1:
        chosen = chosen[: int(rng.integers(1, 4))]
    return f"{PROMPTS[style]} {', '.join(chosen[:12])}"


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's form, in which every word of the world is one token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    byte_pairs.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rows = [f"{prompt} {', '.join(WORDS)}" for prompt in PROMPTS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    byte_pairs.train_from_iterator([row for row in rows for _ in range(40)] + [MORE_WORDS] * 20, trainer)
    merges = [tuple(merge) for merge in json.loads(byte_pairs.to_str())["model"]["merges"]]
    letters = sorted(alphabet)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    unique = dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"])
    vocabulary = {token: i for i, token in enumerate(unique)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)  # type: ignore[arg-type]
