"""Objects are told by what they were made of, or refused."""

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from diffstyler.diffusion.fusion import FuseNoise
from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.provenance import InexpressibleError, describe


@dataclass(frozen=True)
class Inner:
    values: tuple[float, ...] = (0.5, 0.6)


class Outer:
    def __init__(self, inner: Inner, path: Path, names: set[str]) -> None:
        self.inner, self.path, self.names = inner, path, names
        self.cache = torch.zeros(3)


def test_objects_are_told_by_what_they_were_made_of():
    assert describe(Outer(Inner(), Path("a/b"), {"z", "y"})) == {
        "class": "Outer",
        "inner": {"class": "Inner", "values": [0.5, 0.6]},
        "path": "a/b",
        "names": ["y", "z"],
    }


def test_strategies_are_told_as_before_they_were_dataclasses():
    """Pictures made before are found by these."""
    assert describe(FuseNoise(CrossLoRAInjection(adaptive=True, source_under_style=True), hard_masks=True)) == {
        "class": "FuseNoise",
        "outside": {
            "class": "CrossLoRAInjection",
            "features": 1.0,
            "attention": 1.0,
            "adaptive": True,
            "source_under_style": True,
            "plain_self_attention_at_sites": False,
        },
        "hard_masks": True,
    }


class Forgetful:
    def __init__(self, value: int) -> None:
        self.twice = 2 * value


@pytest.mark.parametrize(
    "thing",
    [torch.zeros(2), lambda x: x, functools.partial(int, 3), print, int, object(), torch.nn.Linear(2, 2), Forgetful(3)],
    ids=["tensor", "lambda", "partial", "builtin", "class", "object", "module", "forgetful"],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"deep": [x]}], ids=["plain", "inside"])
def test_what_plain_values_cannot_tell_is_refused(thing, wrap):
    with pytest.raises(InexpressibleError, match="cannot be recorded"):
        describe(wrap(thing))
