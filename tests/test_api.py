"""fit and stylize in a notebook."""

import pytest
from runs import pixels

import diffstyler
from diffstyler.backbones import StableDiffusion
from diffstyler.predict.stylizer import Stylizer
from diffstyler.predict.writer import PredictError


@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.parametrize("to_files", [True, False])
def test_stylize_returns_the_picture_with_files_and_without(studio, tiny_dir, to_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stylizer() -> Stylizer:
        output_dir = studio / "out" if to_files else None
        return Stylizer(
            StableDiffusion(str(tiny_dir)), lora_dir=studio / "loras", output_dir=output_dir, num_inference_steps=1
        )

    made = [diffstyler.stylize(studio / "photo.png", studio / "gold.png", stylizer()) for _ in range(2)]
    assert made[0].size == (72, 64)
    assert pixels(made[0]) == pixels(made[1])
    assert (studio / "out").exists() is to_files
    (studio / "broken.png").write_bytes(b"nothing")
    with pytest.raises(PredictError, match=r"broken\.png: .*expected a picture"):
        diffstyler.stylize(studio / "broken.png", studio / "gold.png", stylizer())
    assert not list(tmp_path.glob("stylized"))
