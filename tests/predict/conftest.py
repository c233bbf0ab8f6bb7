"""What several tests of pictures compare theirs with."""

from collections.abc import Callable

import pytest
from runs import pixels, stylize

from diffstyler.types import Triple


@pytest.fixture(scope="module")
def unchanged() -> dict[str, bytes]:
    """What ``plain`` has made, by row and settings."""
    return {}


@pytest.fixture
def plain(studio, tiny_dir, unchanged) -> Callable[..., bytes]:
    """A row and settings -> its picture, made once in a module; rows of one id are the same there."""

    def make(own: Triple, **settings) -> bytes:
        if (key := f"{own.id} {settings!r}") not in unchanged:
            unchanged[key] = pixels(stylize(studio, tiny_dir, own, out="plain", **settings)[0])
        return unchanged[key]

    return make
