"""What SLURM's signals do: a fit keeps what is under way and is queued again, a predict only stops."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from diffstyler.cli.main import main
from diffstyler.fit.bench import FitBench
from diffstyler.predict.stylizer import Stylizer

SLURM = Path(__file__).parents[2] / "configs" / "slurm"
FILES = sorted(SLURM.glob("*.sbatch"))


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """SLURM's commands and ours, which note how they are called; ``srun`` runs the words, ours waits for a signal."""
    folder = tmp_path / "bin"
    folder.mkdir()
    wait = 'trap \'echo "$0 stopped" >> "$NOTES"; exit 143\' TERM; echo "$0 $*" >> "$NOTES"; '
    wait += "while :; do sleep 0.02; done"
    scripts = {
        "srun": 'exec "$@"',
        "scontrol": 'echo "scontrol $*" >> "$NOTES"; if [ "$1" = show ]; then echo node7; fi',
        "diffstyler": wait,
        "torchrun": wait,
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    notes = tmp_path / "notes"
    notes.touch()
    told = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[7-8]"}
    told |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "NOTES": str(notes)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return notes


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("script", FILES, ids=lambda file: file.stem)
def test_a_batch_file_lets_its_work_end_and_queues_fits_alone(script, signum, commands, monkeypatch):
    array = "array" in script.name
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    words = ["rows-%d.csv"] if script.name.startswith("predict") else []
    process = subprocess.Popen(["bash", str(script), *words, "--one", "a b"])
    while "--one a b" not in commands.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    code = process.wait(timeout=30)
    notes = commands.read_text()
    assert "stopped" in notes  # it was told, and waited for
    queued = "scontrol requeue 40_3" if array else "scontrol requeue 42"
    fits = script.name.startswith("fit")
    assert (queued in notes) is (fits and signum == signal.SIGUSR1)
    assert code == (0 if fits and signum == signal.SIGUSR1 else 143)
    if words:
        assert "--farm folder --farm.name 3 --data.manifest rows-3.csv" in notes
    if "torchrun" in script.name:
        assert "--nnodes 2 --nproc-per-node 8" in notes
        assert "--rdzv-endpoint node7:29500" in notes


def test_batch_files_are_clean():
    if (shellcheck := shutil.which("shellcheck")) is None:
        pytest.skip("shellcheck is not installed")
    told = subprocess.run([shellcheck, *FILES], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
    assert len(FILES) == 3


@pytest.fixture
def under_slurm(commands, monkeypatch) -> Path:
    """This process is one that ``srun`` has started."""
    own = {"NTASKS": "1", "JOB_NAME": "farm", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in own.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return commands


def sending(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, at: int) -> None:
    """At its call number ``at`` a method sends this process SIGUSR1."""
    real, calls = getattr(owner, name), []

    def method(self: object, *words: object) -> object:
        calls.append(name)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, *words)

    monkeypatch.setattr(owner, name, method)


@pytest.fixture
def words(studio, tiny_dir) -> list[str]:
    (studio / "rows.csv").write_text("content,style\nphoto.png,gold.png\nphoto.png,tomato.png\ntall.png,gold.png\n")
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    here = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.manifest", str(studio / "rows.csv")]
    return [*model, *here]


def test_a_fit_keeps_its_state_and_is_queued_again(words, studio, under_slurm, monkeypatch):
    seen = []
    real = FitBench.save
    monkeypatch.setattr(FitBench, "save", lambda self: seen.append([slot.step for slot in self.busy]) or real(self))
    sending(monkeypatch, FitBench, "update", 3)
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--model.rank", "2"]
    more = ["--trainer.max_steps", "4", "--lora_dir", str(studio / "new"), "--trainer.default_root_dir", str(studio)]
    assert main(["fit", *words, *size, *more]) == 0  # nobody took the node
    assert seen[0] == [2, 2]
    assert "scontrol requeue 42" in under_slurm.read_text()
    assert list(studio.glob("hpc_ckpt_*.ckpt"))


def test_a_predict_only_stops(words, studio, under_slurm, monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    sending(monkeypatch, Stylizer, "_stylize", 2)
    run = ["predict", *words, "--model.num_inference_steps", "2", "--output_dir", str(studio / "out")]
    run += ["--lora_dir", str(studio / "loras")]
    assert main(run) == 128 + signal.SIGTERM
    assert "requeue" not in under_slurm.read_text()
    assert len(list((studio / "out").glob("*.json"))) == 1
    assert signal.getsignal(signal.SIGUSR1) == before
