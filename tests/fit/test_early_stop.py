"""A LoRA stops when its held-out loss, smoothed, falls no more."""

import pytest

from diffstyler.fit.early_stop import EarlyStop


def stops_at(losses: list[float], **settings) -> int | None:
    stop = EarlyStop(**{"smoothing": 0.0, "improvement": 0.0, "patience": 2, **settings})
    return next((i for i in range(len(losses) + 1) if stop.stops(losses[:i])), None)


def test_it_goes_on_while_the_loss_falls():
    assert stops_at([5, 4, 3, 2, 1]) is None
    assert stops_at([]) is None


def test_it_stops_after_so_many_looks_without_a_new_lowest():
    assert stops_at([5, 4, 4, 4, 1]) == 4
    assert stops_at([5, 4, 4, 3, 3, 3]) == 6
    assert stops_at([5, 4, 4, 4], patience=3) is None


def test_a_small_fall_does_not_count():
    falling = [1.0, 0.99, 0.98, 0.97]
    assert stops_at(falling) is None
    assert stops_at(falling, improvement=0.1) == 3


def test_one_low_value_among_noise_is_smoothed_away():
    losses = [4, 3, 2.9, 0.5, 2.8, 2.7]
    assert stops_at(losses) == 6
    assert stops_at(losses, smoothing=0.9) is None


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"rows": 0}, {"patience": 0}, {"smoothing": 1.0}, {"improvement": -0.1}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=rf"early_stop\.{next(iter(wrong))}"):
        EarlyStop(**wrong)
