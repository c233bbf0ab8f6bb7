"""Settings that cannot be meant end before anything runs, and run nothing themselves."""

import json
import math

import pytest

from diffstyler.cli.lightning_cli import FIT
from diffstyler.errors import DiffstylerError
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.predict.stylizer import Stylizer

WRONG = [
    *((LoRAFinetuner, "gradient_clip", value) for value in (0, -1, math.nan, math.inf)),
    *((Stylizer, "guidance_scale", value) for value in (-1, math.nan, math.inf)),
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
