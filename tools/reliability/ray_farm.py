"""A fit of 12 LoRAs and 200 pictures on a Ray cluster whose nodes and driver are killed, against one plain process.

    PYTHONPATH=tests python tools/reliability/ray_farm.py [--rows 200] [--loras 12] [--quiet --pairs 3]

Three nodes on this machine, one worker each, a tiny random model: while it fits, and again while it makes pictures, a
node is killed, another one is added, the driver is killed and the command started again. In the end every LoRA and
every picture must be what one process makes, to the last bit, and none may have been made twice. Told besides: what a
farm of one worker takes over a plain run, without the start of either.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch
from crashes import files
from PIL import Image
from ray.cluster_utils import Cluster
from tiny_models import tiny_pipeline

MEMORY = 100 << 20
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
OUTPUT = {"fit": "--lora_dir", "predict": "--output_dir"}
DONE = {"fit": "*/diffstyler.json", "predict": "*.json"}


def make_inputs(folder: Path, rows: int, loras: int) -> None:
    """A model, style pictures, contents, and a manifest of rows."""
    tiny_pipeline("sd1").save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(0)
    contents = -(-rows // loras)
    for name in [*(f"content{number}" for number in range(contents)), *(f"style{number}" for number in range(loras))]:
        small = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(small.numpy()).resize((72, 64)).save(folder / f"{name}.png")
    lines = [f"content{i}.png,style{j}.png" for i in range(contents) for j in range(loras)]
    (folder / "rows.csv").write_text("content,style\n" + "\n".join(lines[:rows]) + "\n")


def command(kind: str, inputs: Path, steps: int) -> list[str]:
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(inputs / "model")]
    here = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.deterministic", "true"]
    words = [kind, *model, *here, "--data.manifest", str(inputs / "rows.csv")]
    if kind == "predict":
        more = ["--model.num_inference_steps", "3", "--model.rows_per_call", "6"]
        return [*words, *more, "--lora_dir", str(inputs / "loras")]
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--model.rank", "2"]
    many = ["--data.pack_size", "2", "--trainer.max_steps", str(steps), "--model.checkpoint_every", "10"]
    return [*words, *size, *many]


def start(words: list[str], output: Path, *more: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "diffstyler", *words, OUTPUT[words[0]], str(output), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate()
    assert process.returncode == 0, error[-3000:]


def times(kind: str, folder: Path) -> dict[str, int]:
    """When each LoRA or picture was done."""
    paths = [path for path in folder.glob(DONE[kind]) if path.name != "farm.json"]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def wait_for(kind: str, folder: Path, count: int, process: subprocess.Popen) -> None:
    while len(times(kind, folder)) < count:
        assert process.poll() is None, f"{kind} ended before it could be disturbed"
        time.sleep(0.05)


def three_nodes(attempts: int = 5) -> Cluster:
    """Each with room for one worker. Ray gives a node half a minute to start: on a busy machine it is asked again."""
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY, include_dashboard=False, _system_config=QUICK)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        return cluster
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
    return three_nodes(attempts - 1)


def on(cluster: Cluster) -> list[str]:
    return ["--farm", "ray", "--farm.address", str(cluster.address)]


def disturbed(words: list[str], output: Path, cluster: Cluster, total: int, say: Callable[[str], None]) -> None:
    """Kill a node, add one, kill the driver, start again."""
    kind, farm = words[0], on(cluster)
    driver = start(words, output, *farm)
    wait_for(kind, output, total // 6, driver)
    victim = next(iter(cluster.worker_nodes))
    cluster.remove_node(victim, allow_graceful=False)
    say(f"{kind}: a node is killed after {len(times(kind, output))} of {total}")
    wait_for(kind, output, total // 3, driver)
    cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    say(f"{kind}: a node is added after {len(times(kind, output))}")
    wait_for(kind, output, total // 2, driver)
    driver.kill()
    driver.communicate()
    time.sleep(3)  # its workers end with it
    before = times(kind, output)
    say(f"{kind}: the driver is killed after {len(before)}, and started again")
    finish(start(words, output, *farm))
    after = times(kind, output)
    assert len(after) == total, f"{total - len(after)} are lost"
    assert before.items() <= after.items(), "something was made twice"


def pace(kind: str, folder: Path) -> float:
    """Seconds for each, from the first that is done to the last."""
    moments = sorted(times(kind, folder).values())
    return (moments[-1] - moments[0]) / 1e9 / (len(moments) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--loras", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100, help="of each LoRA")
    parser.add_argument("--pairs", type=int, default=1, help="of a farm of one worker and a plain process")
    parser.add_argument("--quiet", action="store_true", help="kill nothing: only these pairs")
    chosen = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, chosen.rows, chosen.loras)
        totals = {"fit": chosen.loras, "predict": chosen.rows}
        plain = {"fit": folder / "loras", "predict": folder / "plain"}
        commands = {kind: command(kind, folder, chosen.steps) for kind in totals}
        cluster = three_nodes()
        say("three nodes are there")
        try:
            for kind, words in commands.items():
                finish(start(words, plain[kind]))
                say(f"{kind}: one plain process, {pace(kind, plain[kind]):.3f} s each")
            for kind, words in ({} if chosen.quiet else commands).items():
                output = folder / f"farm-{kind}"
                disturbed(words, output, cluster, totals[kind], say)
                expected = files(kind, plain[kind])
                assert len(expected) >= totals[kind]
                assert files(kind, output) == expected, "files differ"
                say(f"{kind}: all {totals[kind]} are there, none was made twice, {len(expected)} files are equal")
            for pair in range(chosen.pairs):
                alone, again = folder / f"alone{pair}", folder / f"again{pair}"
                finish(start(commands["predict"], alone, *on(cluster), "--farm.workers", "1"))
                finish(start(commands["predict"], again))
                one, plain_one = pace("predict", alone), pace("predict", again)
                say(f"predict: one worker {one:.4f} s, a plain process {plain_one:.4f} s: {one / plain_one - 1:+.1%}")
        finally:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main()
