"""What a fit tells while it goes on: loggers, the bar, and pictures on the way."""

import sys
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from runs import KillAt, KilledError, finetune
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import StepLR

from diffstyler.backbones import StableDiffusion
from diffstyler.cli.lightning_cli import FIT
from diffstyler.errors import DiffstylerError
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.fit.progress import FitProgress

LOGGED = {"flags": None, "steps": 4, "preview_steps": 2, "preview_every": 2}


def halving(optimizer: torch.optim.Optimizer) -> StepLR:
    return StepLR(optimizer, step_size=1, gamma=0.5)


class Recorded(WandbLogger):
    """Weights & Biases without its package: what it would send."""

    def __init__(self) -> None:
        self._logger_name, self.sent, self.settings = None, [], {}
        self._prefix, self._offline, self._wandb_init = "", True, {}

    @property
    def experiment(self) -> SimpleNamespace:
        config = SimpleNamespace(update=lambda settings, **_: self.settings.update(settings))
        return SimpleNamespace(log=self.sent.append, config=config)

    name = version = save_dir = property(lambda self: "none")

    def finalize(self, status: str) -> None: ...


def test_tensorboard_gets_losses_learning_rates_settings_and_pictures_on_the_way(tiny_dir, pictures, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="log", version="")
    finetune(
        tiny_dir, tmp_path / "loras", pictures[:1], lr_scheduler=halving, **{**LOGGED, "flags": {"logger": logger}}
    )
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/red")] == [1, 2, 3, 4]
    rates = [event.value for event in events.Scalars("learning_rate/red")]
    assert rates == pytest.approx([5e-4, 2.5e-4, 1.25e-4, 6.25e-5])
    assert [event.step for event in events.Images("preview/red")] == [2, 4]
    settings = (tmp_path / "log/hparams.yaml").read_text()
    assert "rank: 4" in settings
    assert "gamma: 0.5" in settings


def test_weights_and_biases_gets_the_same(tiny_dir, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=lambda picture, **_: picture))
    logger = Recorded()
    finetune(tiny_dir, tmp_path, pictures[:1], **{**LOGGED, "flags": {"logger": [logger, CSVLogger(tmp_path / "csv")]}})
    assert logger.settings["rank"] == 4
    losses = [sent["trainer/global_step"] for sent in logger.sent if "loss/red" in sent]
    drawn = {sent["trainer/global_step"]: sent["preview/red"] for sent in logger.sent if "preview/red" in sent}
    assert losses == [1, 2, 3, 4]
    assert drawn.keys() == {2, 4}
    assert all(isinstance(picture, Image.Image) for (picture,) in drawn.values())
    assert list((tmp_path / "csv").rglob("metrics.csv"))


def test_weights_and_biases_is_chosen_by_its_class(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    flags = ["--trainer.accelerator", "cpu", "--data.manifest", "m.csv", "--trainer.logger", "WandbLogger"]
    logger = FIT.cli([*flags, "--trainer.logger.offline", "true"]).trainer.logger
    assert isinstance(logger, WandbLogger)


def test_the_strip_beside_the_lora_holds_each_picture_once_whatever_stopped_the_fit(tiny_dir, pictures, tmp_path):
    settings = {"steps": 5, "preview_steps": 2, "checkpoint_every": 2, "deterministic": True, "pack_size": 2}
    plain = finetune(tiny_dir, tmp_path / "plain", pictures[:1], **settings)
    drawn = finetune(tiny_dir, tmp_path / "drawn", pictures[:1], preview_every=2, **settings)
    with pytest.raises(KilledError):
        finetune(tiny_dir, tmp_path / "cut", pictures[:1], preview_every=2, callbacks=[KillAt(3)], **settings)
    finetune(tiny_dir, tmp_path / "cut", pictures[:1], preview_every=2, **settings)
    assert all(torch.equal(plain["red"][name], drawn["red"][name]) for name in plain["red"])
    whole, resumed = (next((tmp_path / name).glob("red-*")) for name in ("drawn", "cut"))
    strip = Image.open(whole / "previews.png")
    assert strip.size == (2 * strip.height, strip.height)
    assert (whole / "previews.png").read_bytes() == (resumed / "previews.png").read_bytes()
    halves = [strip.crop((x, 0, x + strip.height, strip.height)).tobytes() for x in (0, strip.height)]
    assert halves[0] != halves[1]
    assert "after 2, 4 steps" in (whole / "README.md").read_text()
    assert not list((tmp_path / "plain").glob("*/previews.png"))


def test_pictures_on_the_way_that_cannot_be_drawn_are_refused(tiny_dir):
    for settings, told in (
        ({"preview_every": 0}, "at least 1"),
        ({"preview_every": 5, "preview_steps": 0}, "draws no"),
    ):
        with pytest.raises(DiffstylerError, match=f"model.preview_every: .*{told}"):
            LoRAFinetuner(StableDiffusion(str(tiny_dir)), **settings)


class ReadBar(lightning.Callback):
    """What the bar says of the loss after each step."""

    def __init__(self) -> None:
        self.told = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        progress = next(c for c in trainer.callbacks if isinstance(c, FitProgress))
        progress.show(pl_module)
        self.told.append(progress.progress.tasks[0].fields["loss"])


def test_the_bar_ends_with_the_last_loss_and_never_with_nan(tiny_dir, pictures, tmp_path):
    read = ReadBar()
    finetune(tiny_dir, tmp_path, pictures[:2], pack_size=1, steps=2, callbacks=[read])
    assert len(read.told) == 4
    assert all(told.startswith("loss 0.") or told.startswith("loss 1.") for told in read.told)
