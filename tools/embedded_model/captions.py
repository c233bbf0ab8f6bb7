"""Captions of rendered scenes and the small CLIP tokenizer that is built for them."""

import json
from collections.abc import Sequence

import numpy as np
from painting import PROMPTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from world import WORDS

MAX_TOKENS = 32
MOST_WORDS = 12  # of a scene in one caption, so that it fits
MORE_WORDS = (
    "a painting in the style of mosaic impasto drawing picture landscape with and by on under red green blue yellow "
    "white black mountains hills trees houses flowers boats people grass sea lake river road an at from over near "
    "beside behind front two three many some his her man woman child boy girl men women portrait animal animals eyes "
    "eye nose mouth ear ears head hand hands body arm leg skin fur wing tail coat dress jacket shoes glasses beard "
    "gray brown pink purple golden dark bright light shadow old young big small large little beautiful wooden stone "
    "city town village church tower bridge castle palace roof door wall street square market garden park forest wood "
    "woods leaf leaves bush path river lake shore coast harbor port wave waves sand snow ice rain fog storm sunrise "
    "morning evening spring summer autumn winter fruit food cake tea coffee glass wine water milk vegetable tomato "
    "cheese meat knife fork spoon bed desk door kitchen bedroom house home lamp clock mirror carpet basket box paper "
    "bicycle motorcycle truck tram wagon wheel plane balloon rocket astronaut helmet suit flag sign letter toy doll "
    "lion tiger elephant bear wolf fox rabbit mouse duck chicken swan owl butterfly bee goat pig donkey giraffe zebra "
    "photograph photo image art artwork sketch print canvas color colors colorful vintage modern abstract detailed "
    "close up view scene interior still life standing sitting walking running playing looking holding wearing smiling "
    "style texture oil brush strokes ink van gogh monet picasso starry night sunflowers cubism expressionism ukiyo "
    "japanese chinese comic cartoon anime pixel fresco tapestry ceramic marble bronze gold silver copper neon crayon"
)


def write_caption(rng: np.random.Generator, style: str, words: Sequence[str]) -> str:
    """`a photo of sunset, sky, hill`: at times reordered or with words left out, to teach each word alone."""
    chosen = [word for word in words if word == "sky" or rng.random() > 0.12] or list(words[:1])
    if rng.random() < 0.5:
        chosen = [str(word) for word in rng.permutation(chosen)]
    if rng.random() < 0.1:
        chosen = chosen[: int(rng.integers(1, 4))]
    kept = sorted(rng.permutation(len(chosen))[:MOST_WORDS])
    return f"{PROMPTS[style]} {', '.join(chosen[i] for i in kept)}"


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's form, in which every word of the world is one token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    byte_pairs.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rows = [f"{prompt} {', '.join(WORDS)}" for prompt in PROMPTS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
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
