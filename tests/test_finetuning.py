"""Fitting: exact whatever the neighbors, bitwise the same after an interruption, careful with what is not finite."""

import json
from pathlib import Path

import lightning
import pytest
import torch
from PIL import Image

from diffstyler.adapters import LoRALibrary, read_lora
from diffstyler.backbones import StableDiffusion
from diffstyler.crops import Crops
from diffstyler.data import FitData
from diffstyler.finetuning import FitError, LoRAFinetuner
from diffstyler.losses import CleanLoss, MinSNRLoss


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name in ("red", "green", "blue"):
        small = torch.randint(256, (8, 9, 3), generator=generator, dtype=torch.uint8)
        path = tmp_path_factory.getbasetemp() / f"{name}.png"
        Image.fromarray(small.numpy()).resize((72, 64), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths


def finetune(
    tiny_dir,
    lora_dir,
    pictures,
    *,
    jobs=None,
    steps=3,
    pack_size=1,
    precision="32-true",
    callbacks=(),
    seed=0,
    prompt="painting of <sss>",
    deterministic=False,
    **settings,
):
    settings = {"rank": 4, "preview_steps": 0, "batch_size": 2, **settings}
    settings.setdefault("optimizer", lambda params: torch.optim.AdamW(params, lr=1e-3))
    module = LoRAFinetuner(StableDiffusion(str(tiny_dir)), lora_dir=lora_dir, **settings)
    data = FitData(
        jobs=jobs,
        pictures=pictures,
        pack_size=pack_size,
        crops=Crops(resolution=64, crop_size=64, count=3),
        seed=seed,
        prompt=prompt,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        precision=precision,
        deterministic=deterministic,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
    )
    try:
        trainer.fit(module, datamodule=data)
    finally:
        torch.use_deterministic_algorithms(False)
    return {entry.identity.name: read_lora(entry.folder).state for entry in module.finished}


def distance(a: dict, b: dict) -> float:
    """‖a − b‖ / ‖b‖ over all weights."""
    flat = [torch.cat([state[key].flatten() for key in sorted(b)]).double() for state in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_order_neighbors_and_slots_do_not_matter(tiny_dir, pictures, tmp_path):
    """Three LoRAs of unequal lengths in two slots, so that they meet in other ways."""
    settings = {"pack_size": 2, "deterministic": True}
    fitted = [
        finetune(tiny_dir, tmp_path / str(index), order, **settings)
        for index, order in enumerate([pictures, pictures[::-1], [*pictures[1:], pictures[0]]])
    ]
    for other in fitted[1:]:
        assert all(same(fitted[0][name], other[name]) for name in fitted[0])


class KillAt(lightning.Callback):
    """Stops the program after a step, as a lost machine would: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.step:
            pl_module.slots = [None] * len(pl_module.slots)
            raise KilledError


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tiny_dirs, pictures, tmp_path_factory):
    """Three LoRAs fitted without interruption."""
    return finetune(tiny_dirs["epsilon"], tmp_path_factory.mktemp("whole"), pictures, pack_size=2, deterministic=True)


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_resume_is_bitwise(tiny_dir, pictures, tmp_path, step, whole):
    settings = {"pack_size": 2, "checkpoint_every": 2, "deterministic": True}
    with pytest.raises(KilledError):
        finetune(tiny_dir, tmp_path / "cut", pictures, callbacks=[KillAt(step)], **settings)
    resumed = finetune(tiny_dir, tmp_path / "cut", pictures, **settings)
    assert whole.keys() == resumed.keys()
    assert all(same(whole[name], resumed[name]) for name in whole)


def test_an_interrupted_run_saves_what_is_under_way(tiny_dir, pictures, tmp_path, whole):
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                raise KilledError

    settings = {"pack_size": 2, "deterministic": True}
    with pytest.raises(KilledError):
        finetune(tiny_dir, tmp_path / "cut", pictures, callbacks=[Interrupt()], **settings)
    states = list((tmp_path / "cut" / ".unfinished").glob("*.pt"))
    assert [torch.load(state)["step"] for state in states] == [2, 2]
    resumed = finetune(tiny_dir, tmp_path / "cut", pictures, **settings)
    assert all(same(whole[name], resumed[name]) for name in whole)


def test_a_broken_lora_is_named_and_its_neighbors_are_not_touched(tiny_dir, pictures, tmp_path):
    class Broken(MinSNRLoss):
        def __call__(self, output, noised):
            losses = super().__call__(output, noised)
            return torch.cat([losses[:2], losses[2:] * float("nan")])

    settings = {"pack_size": 2, "deterministic": True}
    healthy = finetune(tiny_dir, tmp_path / "healthy", pictures[1:], loss=MinSNRLoss(), **settings)
    with pytest.raises(FitError, match=r"blue\.png: the loss is nan at step 0, also at 0\.3 of its learning rate"):
        finetune(tiny_dir, tmp_path / "broken", pictures[1:], loss=Broken(), **settings)
    (failure,) = map(json.loads, (tmp_path / "broken" / "failures.jsonl").read_text().splitlines())
    assert Path(failure["picture"]).name == "blue.png"
    folders = [folder.name for folder in (tmp_path / "broken").glob("[!.]*/")]
    assert [name.split("-")[0] for name in folders] == ["green"]
    kept = read_lora(tmp_path / "broken" / folders[0]).state
    assert same(kept, healthy["green"])


def test_a_broken_lora_starts_again_at_a_lower_learning_rate(tiny_dir, pictures, tmp_path):
    class BrokenOnce(MinSNRLoss):
        calls = 0

        def __call__(self, output, noised):
            losses = super().__call__(output, noised)
            self.calls += 1
            return torch.cat([losses[:2], losses[2:] * float("nan")]) if self.calls == 2 else losses

    settings = {"pack_size": 2, "deterministic": True}
    healthy = finetune(tiny_dir, tmp_path / "healthy", pictures[1:], loss=MinSNRLoss(), **settings)
    slower = finetune(
        tiny_dir,
        tmp_path / "slower",
        pictures[2:],
        loss=MinSNRLoss(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=3e-4),
    )
    retried = finetune(tiny_dir, tmp_path / "retried", pictures[1:], loss=BrokenOnce(), **settings)
    assert same(retried["green"], healthy["green"])
    assert distance(retried["blue"], slower["blue"]) < 1e-4
    assert distance(healthy["blue"], slower["blue"]) > 1e-3
    histories = {entry.identity.name: entry.history for entry in LoRALibrary(tmp_path / "retried").entries()}
    expected = "the loss is nan at step 1; started again at 0.3 of its learning rate"
    assert histories == {"green": (), "blue": (expected,)}
    assert not (tmp_path / "retried" / "failures.jsonl").exists()


def test_each_row_of_a_fit_manifest_has_its_own_settings(tiny_dir, pictures, tmp_path):
    (tmp_path / "jobs.csv").write_text(
        "picture,prompt,seed,steps,learning_rate,rank,alpha,gradient_clip\n"
        f"{pictures[0]},a red square,5,2,0.002,2,6,0.5\n"
        f"{pictures[1]},,,4,,,,\n"
        f"{pictures[2]},,,,,7,,\n"
    )
    exact = {"precision": "64-true"}
    packed = finetune(tiny_dir, tmp_path / "packed", [], jobs=tmp_path / "jobs.csv", pack_size=3, **exact)
    ranks = {name: len(next(iter(state.values()))) for name, state in packed.items()}
    assert ranks == {"red": 2, "green": 4, "blue": 7}
    own = {"prompt": "a red square", "seed": 5, "steps": 2, "rank": 2, "alpha": 6, "gradient_clip": 0.5}
    adamw = {"optimizer": lambda params: torch.optim.AdamW(params, lr=2e-3)}
    alone = {
        **finetune(tiny_dir, tmp_path / "red", pictures[:1], **own, **adamw, **exact),
        **finetune(tiny_dir, tmp_path / "green", pictures[1:2], steps=4, **exact),
        **finetune(tiny_dir, tmp_path / "blue", pictures[2:], rank=7, **exact),
    }
    for name in packed:  # the files hold 32 bits
        assert distance(packed[name], alone[name]) < 1e-7
    keys = [{e.identity.key for f in fs for e in LoRALibrary(tmp_path / f).entries()} for fs in (["packed"], alone)]
    assert keys[0] == keys[1]  # however it is asked for, it is the same LoRA


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 2},
        {"alpha": 8},
        {"target_modules": ["to_v"]},
        {"loss": CleanLoss()},
        {"loss": MinSNRLoss()},
        {"batch_size": 1},
        {"gradient_clip": 1e-3},
        {"seed": 1},
        {"steps": 4},
        {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1)},
        {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_setting_has_an_effect(tiny_dir, pictures, tmp_path, change):
    plain = finetune(tiny_dir, tmp_path / "loras", pictures[:1])["red"]
    changed = finetune(tiny_dir, tmp_path / "loras", pictures[:1], **change)["red"]
    assert not same(plain, changed)
    assert len([f for f in (tmp_path / "loras").iterdir() if not f.name.startswith(".")]) == 2


def test_gradient_checkpointing_gives_the_same_lora(tiny_dir, pictures, tmp_path):
    plain = finetune(tiny_dir, tmp_path / "plain", pictures[:1])["red"]
    saved = finetune(tiny_dir, tmp_path / "saved", pictures[:1], gradient_checkpointing=True)["red"]
    assert distance(plain, saved) < 1e-5


def test_bitsandbytes_optimizer(tiny_dir, pictures, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    fitted = finetune(
        tiny_dir, tmp_path / "loras", pictures[:1], optimizer=lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-3)
    )
    plain = finetune(tiny_dir, tmp_path / "plain", pictures[:1])
    assert 0 < distance(fitted["red"], plain["red"]) < 0.2


def test_steps_must_be_given(tiny_dir, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        finetune(tiny_dir, tmp_path / "loras", pictures[:1], steps=-1)


def test_a_mask_changes_what_is_learned_and_not_the_neighbor(tiny_dir, tmp_path, pictures):
    rows = [{"picture": str(path)} for path in pictures[:2]]
    fitted = {}
    for name, mask in {"whole": "everything", "part": "box: 0,0,24,64"}.items():
        jobs = tmp_path / f"{name}.jsonl"
        jobs.write_text("\n".join(map(json.dumps, [rows[0] | {"mask": mask}, rows[1]])))
        fitted[name] = finetune(tiny_dir, tmp_path / name, [], jobs=jobs, pack_size=2, deterministic=True)
    assert not same(fitted["whole"]["red"], fitted["part"]["red"])
    assert same(fitted["whole"]["green"], fitted["part"]["green"])


def test_the_mask_is_part_of_what_a_lora_is(tiny_dir, tmp_path, pictures):
    from diffstyler.lookup import AdapterShelf, MissingLoRAError
    from diffstyler.types import StyleRegion, Triple

    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"picture": str(pictures[0]), "mask": "box: 0,0,24,64"}))
    finetune(tiny_dir, tmp_path / "loras", [], jobs=jobs)
    (fitted,) = LoRALibrary(tmp_path / "loras").entries()
    assert fitted.identity.settings["mask"] == "box: 0,0,24,64"
    shelf = AdapterShelf(LoRALibrary(tmp_path / "loras"), StableDiffusion(str(tiny_dir)))

    def triple(**more) -> Triple:
        return Triple("a", pictures[1], (StyleRegion(pictures[0], **more),))

    shelf.find([triple(style_mask="box: 0,0,24,64")], "off", None)
    with pytest.raises(MissingLoRAError, match="1 style pictures have no LoRA"):
        shelf.find([triple()], "off", None)
