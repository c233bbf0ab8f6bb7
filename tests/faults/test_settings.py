"""Settings that cannot be meant end before anything runs, and run nothing themselves."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse._common import parsing_settings

from diffstyler.cli.lightning_cli import FIT
from diffstyler.errors import DiffstylerError
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.fit.jobs import FitPicture, FitSettings, fit_job
from diffstyler.predict.stylizer import Stylizer

ABOVE_0_IN_FIT = ("gradient_clip", "max_memory", "rank", "alpha", "batch_size", "checkpoint_every", "preview_every")
FROM_0_IN_PREDICT = ("guidance_scale", "cache_size", "inversion_refinements", "feather")
WRONG = [
    *((LoRAFinetuner, name, value) for name in ABOVE_0_IN_FIT for value in (0, -1, math.nan, math.inf)),
    *((LoRAFinetuner, "preview_steps", value) for value in (-1, math.nan, math.inf)),
    *((Stylizer, name, value) for name in ("resolution", "max_memory") for value in (0, -1, math.nan, math.inf)),
    *((Stylizer, name, value) for name in FROM_0_IN_PREDICT for value in (-1, math.nan, math.inf)),
    *((Stylizer, "num_inference_steps", value) for value in (0, -1, 1000, 10**6)),
    *((Stylizer, "inversion_steps", value) for value in (0, -1, 1000)),
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_numbers_out_of_bounds_are_named(kind, name, value):
    with pytest.raises(DiffstylerError, match=rf"^model\.{name}: expected .*, got {value}$"):
        kind(**{name: value})


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler"])
@pytest.mark.parametrize("arguments", ["init_args", "dict_kwargs"])
@pytest.mark.parametrize("function", ["os.system", "subprocess.getoutput", "webbrowser.open", "shutil.rmtree"])
def test_a_config_calls_no_function(tmp_path, capsys, name, arguments, function):
    witness = tmp_path / "witness"
    (tmp_path / "mine").mkdir()
    words = {"subprocess.getoutput": "cmd", "webbrowser.open": "url", "shutil.rmtree": "path"}
    text = str(tmp_path / "mine") if function == "shutil.rmtree" else f"touch {witness}"
    asked = json.dumps({"class_path": function, arguments: {words.get(function, "command"): text}})
    with pytest.raises(SystemExit) as stopped:
        FIT.cli([f"--model.{name}", asked, "--trainer.accelerator", "cpu", "--trainer.logger", "false"])
    assert stopped.value.code == 2
    assert not witness.exists()
    assert (tmp_path / "mine").is_dir()
    assert function in capsys.readouterr().err


SGD, SCHEDULES = torch.optim.SGD, torch.optim.lr_scheduler
UNUSABLE = {
    "weight_decay null": ("optimizer", lambda params: torch.optim.AdamW(params, weight_decay=None)),  # type: ignore[arg-type]
    "betas of one": ("optimizer", lambda params: torch.optim.AdamW(params, betas=(0.9,))),  # type: ignore[arg-type]
    "momentum -1": ("optimizer", lambda params: SGD(params, momentum=-1)),
    "lr as text": ("optimizer", lambda params: SGD(params, lr="fast")),  # type: ignore[arg-type]
    "no such argument": ("optimizer", lambda params: SGD(params, speed=1)),  # type: ignore[call-arg]
    "step_size missing": ("lr_scheduler", lambda optimizer: SCHEDULES.StepLR(optimizer)),  # type: ignore[call-arg]
    "step_size null": ("lr_scheduler", lambda optimizer: SCHEDULES.StepLR(optimizer, None)),  # type: ignore[arg-type]
    "step_size 0": ("lr_scheduler", lambda optimizer: SCHEDULES.StepLR(optimizer, 0)),
    "T_max null": ("lr_scheduler", lambda optimizer: SCHEDULES.CosineAnnealingLR(optimizer, None)),  # type: ignore[arg-type]
    "wants the loss": ("lr_scheduler", lambda optimizer: SCHEDULES.ReduceLROnPlateau(optimizer)),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_optimizer_or_schedule_that_cannot_work_is_named_before_anything_is_fitted(kind):
    name, factory = UNUSABLE[kind]
    run = FitSettings(steps=3, **{name: factory})
    with pytest.raises(DiffstylerError, match=rf"^model\.{name}: expected .*Error: .*; mend its init_args$"):
        fit_job(FitPicture((Path("a.png"),), "0" * 64, "a"), run, "1" * 64, {})


# ---- classes that settings name


@pytest.fixture
def module_of_others(tmp_path, monkeypatch):
    """An installed module that does something as it is imported."""
    (tmp_path / "of_others.py").write_text(
        "from pathlib import Path\nfrom torch.optim import SGD\n"
        "Path(__file__).with_name('witness').touch()\nclass Mine(SGD): ...\ndef make(params): return Mine(params)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("of_others", None)


RUN = ("--data.pictures", "[a.png]", "--trainer.accelerator", "cpu", "--trainer.logger", "false")


@pytest.mark.parametrize("how", ["flag", "path", "config", "function", "consent in the config"])
def test_what_is_not_of_known_packages_is_not_imported_unasked(module_of_others, capsys, how):
    (module_of_others / "a.png").touch()
    config = module_of_others / "my.yaml"
    named = {"class_path": "of_others.make" if how == "function" else "of_others.Mine"}
    trusting = {"trust_config": True} if how == "consent in the config" else {}
    config.write_text(json.dumps({"model": {"optimizer": named}, **trusting}))
    words = {"flag": ["--model.optimizer", json.dumps(named)], "path": ["--model.optimizer", "of_others.Mine"]}
    with pytest.raises(SystemExit) as stopped:
        FIT.cli([*words.get(how, ["--config", str(config)]), *RUN])
    assert stopped.value.code == 2
    assert "--trust_config" in capsys.readouterr().err
    assert not (module_of_others / "witness").exists()


def test_consent_cannot_come_from_a_config(module_of_others, capsys):
    config = module_of_others / "my.yaml"
    config.write_text(json.dumps({"trust_config": True}))
    with pytest.raises(SystemExit):
        FIT.cli(["--config", str(config), *RUN])
    assert "a config cannot ask to be trusted" in capsys.readouterr().err


def test_what_is_trusted_is_imported(module_of_others, monkeypatch):
    # what an earlier command of this process has denied would stay denied
    monkeypatch.setitem(parsing_settings, "import_path_verdicts", {})
    cli = FIT.cli(["--trust_config", "--model.optimizer", "of_others.Mine", "--model.optimizer.lr", "0.5", *RUN])
    (made,) = {type(cli.model.run.optimizer([torch.nn.Parameter(torch.zeros(1))])).__name__}
    assert made == "Mine"
    assert (module_of_others / "witness").exists()


@pytest.mark.parametrize("name", ["torch.optim.AdamW", "torch.optim.lr_scheduler.StepLR"])
def test_optimizers_and_schedules_are_of_their_kind(name, capsys):
    wrong = "model.lr_scheduler" if name.endswith("AdamW") else "model.optimizer"
    with pytest.raises(SystemExit) as stopped:
        FIT.cli([f"--{wrong}", name, *RUN])
    assert stopped.value.code == 2
    assert "to be a subclass of" in capsys.readouterr().err
