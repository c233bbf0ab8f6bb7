"""The bar of a predict: every step of every picture, and nothing left over at the end."""

from itertools import pairwise

import pytest
from runs import row, stylize

from diffstyler.backbones import StableDiffusion
from diffstyler.diffusion.initial import FromContent, FromContentAdaIN
from diffstyler.predict.progress import PredictProgress, steps_after
from diffstyler.predict.stylizer import Stylizer


@pytest.fixture
def told(monkeypatch) -> list[tuple[int, int]]:
    """What every run reports."""
    reports: list[tuple[int, int]] = []
    made = PredictProgress.__init__

    def reporting(self) -> None:
        made(self)
        self.report = lambda done, total: reports.append((done, total))

    monkeypatch.setattr(PredictProgress, "__init__", reporting)
    return reports


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_step_is_counted_and_the_end_is_the_end(batch_size, told, studio, tiny_dir):
    rows = [row(studio), row(studio, style="tomato"), row(studio, "tall")]
    total = 3 * 3 + 2 * 3 + 2 * 3  # pictures, contents and styles, 3 steps each
    stylize(studio, tiny_dir, *rows, batch_size=batch_size, content_lora="off")
    assert {all_steps for _, all_steps in told} == {total}
    done = [steps for steps, _ in told]
    assert done == sorted(done)
    assert done[-1] == total
    assert max(after - before for before, after in pairwise([0, *done])) <= 3  # a step of at most three pictures
    told.clear()
    stylize(studio, tiny_dir, *rows, batch_size=batch_size, content_lora="off")
    assert told[-1] == (total, total)
    assert len(told) == -(-3 // batch_size)  # what is there already counts at once


def test_styles_count_where_the_start_needs_them(studio, tiny_dir):
    rows = [[row(studio), row(studio, style="tomato")]]
    counted = {}
    for initial in (FromContent(), FromContentAdaIN()):
        model = StableDiffusion(str(tiny_dir))
        stylizer = Stylizer(model, num_inference_steps=5, inversion_steps=999, initial=initial)
        (counted[type(initial).__name__],) = steps_after(stylizer, rows)
    assert counted == {"FromContent": 10 + 999, "FromContentAdaIN": 20 + 999}
