"""Fitting: exact whatever the neighbors, bitwise the same after an interruption, careful with what is not finite."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lightning
import pytest
import torch
from PIL import Image
from runs import KillAt, KilledError, finetune, matrices
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR

from diffstyler.adapters import FittedLoRA, LoRAIdentity, LoRALibrary, read_record
from diffstyler.backbones import StableDiffusion
from diffstyler.errors import DiffstylerError
from diffstyler.fit.crops import Crops, take_crops
from diffstyler.fit.data import FitData
from diffstyler.fit.early_stop import EarlyStop
from diffstyler.fit.finetuner import FitError, LoRAFinetuner
from diffstyler.fit.jobs import FitPicture, FitSettings, fit_job
from diffstyler.fit.losses import CleanLoss, DiffusionLoss, MinSNRLoss, Noised
from diffstyler.workers import Workers


def distance(a: dict, b: dict) -> float:
    """‖a − b‖ / ‖b‖ over all weights."""
    flat = [torch.cat([state[key].flatten() for key in sorted(b)]).double() for state in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_order_neighbors_and_slots_do_not_matter(tiny_dir, pictures, tmp_path, whole):
    """Three LoRAs of unequal lengths in two slots, so that they meet in other ways."""
    settings = {"pack_size": 2, "deterministic": True}
    for index, order in enumerate([pictures[::-1], [*pictures[1:], pictures[0]]]):
        other = finetune(tiny_dir, tmp_path / str(index), order, **settings)
        assert all(same(whole[name], other[name]) for name in whole)


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
    kept = matrices(tmp_path / "broken" / folders[0])
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
    exactly = {"precision": "64-true"}  # AdamW's first steps have the gradient's sign, which rounding may turn
    packed = finetune(tiny_dir, tmp_path / "packed", [], jobs=tmp_path / "jobs.csv", pack_size=3, **exactly)
    ranks = {name: len(next(iter(state.values()))) for name, state in packed.items()}
    assert ranks == {"red": 2, "green": 4, "blue": 7}
    own = {"prompt": "a red square", "seed": 5, "steps": 2, "rank": 2, "alpha": 6, "gradient_clip": 0.5}
    adamw = {"optimizer": lambda params: torch.optim.AdamW(params, lr=2e-3)}
    alone = {
        **finetune(tiny_dir, tmp_path / "red", pictures[:1], **own, **adamw, **exactly),
        **finetune(tiny_dir, tmp_path / "green", pictures[1:2], steps=4, **exactly),
        **finetune(tiny_dir, tmp_path / "blue", pictures[2:], rank=7, **exactly),
    }
    for name in packed:
        assert distance(packed[name], alone[name]) < 1e-6
    keys = [{e.identity.key for f in fs for e in LoRALibrary(tmp_path / f).entries()} for fs in (["packed"], alone)]
    assert keys[0] == keys[1]  # however it is asked for, it is the same LoRA


@pytest.fixture(scope="module")
def plain(tiny_dirs, pictures, tmp_path_factory):
    """A library with the LoRA of the first picture by the default settings."""
    folder = tmp_path_factory.mktemp("plain") / "loras"
    finetune(tiny_dirs["epsilon"], folder, pictures[:1])
    return folder


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
        {"early_stop": EarlyStop(every=1, patience=1, improvement=0.9)},
        {"together": "monet", "pictures": (0, 1)},
        {"seed": 1},
        {"steps": 4},
        {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1)},
        {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_setting_has_an_effect(tiny_dir, pictures, tmp_path, plain, change):
    shutil.copytree(plain, tmp_path / "loras")
    used = [pictures[index] for index in change.get("pictures", (0,))]
    change = {name: value for name, value in change.items() if name != "pictures"}
    (changed,) = finetune(tiny_dir, tmp_path / "loras", used, **change).values()
    assert not same(matrices(next(plain.glob("red-*"))), changed)
    assert len([f for f in (tmp_path / "loras").iterdir() if not f.name.startswith(".")]) == 2


def test_loras_of_several_sizes_share_a_run(tiny_dir, pictures, tmp_path):
    """Two slots, five LoRAs of two sizes: those of one size meet, and none depends on whom it meets."""
    rows = [(0, 64), (1, 32), (2, 64), (0, 32), (2, 32)]
    lines = [f"{pictures[index]},{size},{size},{name}" for name, (index, size) in enumerate(rows)]
    files = []
    for name, chosen in {"all": lines, "turned": lines[::-1]}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["picture,resolution,crop_size,seed", *chosen]))
        finetune(tiny_dir, tmp_path / name, [], jobs=tmp_path / f"{name}.csv", pack_size=2, deterministic=True, steps=2)
        files.append({p.parent.name: p.read_bytes() for p in (tmp_path / name).glob("[!.]*/*.safetensors")})
    assert len(files[0]) == 5
    assert files[0] == files[1]
    crops = [entry.identity.settings["crops"] for entry in LoRALibrary(tmp_path / "all").entries()]
    assert sorted(crop["crop_size"] for crop in crops) == [32, 32, 32, 64, 64]


def test_a_lora_stops_early_and_its_neighbor_goes_on(tiny_dir, pictures, tmp_path, whole):
    stop = EarlyStop(every=1, patience=1, improvement=0.9)  # nothing falls so far: the second look is the last
    looking = {"pack_size": 2, "deterministic": True, "early_stop": stop}
    stopped = finetune(tiny_dir, tmp_path / "stopped", pictures, **looking)
    plain = finetune(tiny_dir, tmp_path / "plain", pictures, steps=2, pack_size=2, deterministic=True)
    assert all(same(stopped[name], plain[name]) for name in plain)
    entries = LoRALibrary(tmp_path / "stopped").entries()
    assert [entry.steps_taken for entry in entries] == [2, 2, 2]
    assert entries[0].identity.settings["steps"] == 3
    assert entries[0].identity.settings["early_stop"]["patience"] == 1
    assert {entry.steps_taken for entry in LoRALibrary(tmp_path / "plain").entries()} == {2}
    patient = {**looking, "early_stop": EarlyStop(every=1, patience=9)}
    through = finetune(tiny_dir, tmp_path / "through", pictures, **patient)
    assert all(same(through[name], whole[name]) for name in whole)  # looking changes nothing


def test_one_lora_learns_several_pictures_in_any_order(tiny_dir, pictures, tmp_path):
    settings = {"together": "monet", "deterministic": True}
    one = finetune(tiny_dir, tmp_path / "one", pictures, **settings)
    other = finetune(tiny_dir, tmp_path / "other", [*pictures[::-1], pictures[0]], **settings)
    fewer = finetune(tiny_dir, tmp_path / "fewer", pictures[:2], **settings)
    assert list(one) == ["monet"]
    assert same(one["monet"], other["monet"])
    assert not same(one["monet"], fewer["monet"])
    (a,), (b,), (c,) = (LoRALibrary(tmp_path / name).entries() for name in ("one", "other", "fewer"))
    assert a.identity == b.identity
    assert a.identity.picture != c.identity.picture
    assert a.identity.settings["pictures"] == 3


@pytest.mark.parametrize("wrong", [{"jobs": Path("jobs.csv")}, {"together": ""}])
def test_together_is_one_lora_with_a_name(pictures, wrong):
    with pytest.raises(ValueError, match=r"data\.together"):
        FitData(pictures=pictures, **{"together": "monet", **wrong})


def test_previews_do_not_depend_on_neighbors(tiny_dir, pictures, tmp_path):
    files = []
    for name, order in {"all": pictures, "turned": pictures[::-1]}.items():
        finetune(tiny_dir, tmp_path / name, order, steps=1, pack_size=2, deterministic=True, preview_steps=2)
        files.append({path.parent.name: path.read_bytes() for path in (tmp_path / name).glob("*/preview.png")})
    assert len(set(files[0].values())) == 3
    assert files[0] == files[1]


def test_equal_crops_are_encoded_once(tiny_dir, tmp_path, monkeypatch):
    encoded, real = [], StableDiffusion.encode_image
    monkeypatch.setattr(StableDiffusion, "encode_image", lambda self, pixels: encoded.append(1) or real(self, pixels))
    Image.radial_gradient("L").crop((0, 0, 64, 64)).convert("RGB").save(tmp_path / "square.png")
    finetune(tiny_dir, tmp_path / "loras", [tmp_path / "square.png"], steps=1)
    assert len(encoded) == 2  # the picture and its mirror image, for three crops


def test_a_pack_fills_the_free_memory(tiny_dir, pictures, tmp_path, monkeypatch):
    from diffstyler.fit import sizing
    from diffstyler.memory import measure

    widths, costs, slots = [], [], sizing.slot_memory

    def remember(*args) -> int:
        costs.append(slots(*args))
        return costs[-1]

    class Width(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            widths.append(pl_module.bench.pack.slots)

    monkeypatch.setattr(sizing, "slot_memory", remember)
    settings = {"pack_size": "auto", "steps": 1, "callbacks": [Width()]}
    finetune(tiny_dir, tmp_path / "one", pictures[:1], **settings)
    monkeypatch.setattr(sizing, "free_memory", lambda device, processes: int(2.5 * costs[0]))
    three = finetune(tiny_dir, tmp_path / "two", pictures, **settings)
    assert widths == [1, 2]
    assert len(three) == 3
    assert costs[0] == costs[1] > 2**20
    assert measure.WIDTHS[0] == 1


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
        finetune(tiny_dir, tmp_path / "loras", pictures[:1], steps=-1, flags={"max_epochs": 1})


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
    from diffstyler.predict.adapter_resolver import resolve_adapters
    from diffstyler.types import StyleRegion, Triple

    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"picture": str(pictures[0]), "mask": "box: 0,0,24,64"}))
    finetune(tiny_dir, tmp_path / "loras", [], jobs=jobs)
    (fitted,) = LoRALibrary(tmp_path / "loras").entries()
    assert fitted.identity.settings["mask"] == "box: 0,0,24,64"
    library, model = LoRALibrary(tmp_path / "loras"), StableDiffusion(str(tiny_dir)).fingerprint()

    def triple(**more) -> Triple:
        return Triple("a", pictures[1], (StyleRegion(pictures[0], **more),))

    assert not resolve_adapters([triple(style_mask="box: 0,0,24,64")], library, model=model).lacking
    assert "1 style pictures have no LoRA" in resolve_adapters([triple()], library, model=model).how


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("limit_train_batches", 2),
        ("limit_train_batches", 0.5),
        ("overfit_batches", 1),
        ("fast_dev_run", True),
        ("accumulate_grad_batches", 2),
        ("gradient_clip_val", 1.0),
        ("gradient_clip_algorithm", "value"),
        ("limit_train_batches", 1),  # one of them, where 1.0 is all
        ("max_epochs", 3),
        ("min_steps", 5),
    ],
)
def test_a_flag_that_a_fit_cannot_honor_is_an_error(tiny_dir, pictures, tmp_path, flag, value):
    with pytest.raises(DiffstylerError, match=rf"trainer\.{flag}: "):
        finetune(tiny_dir, tmp_path, pictures[:1], flags={flag: value})
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_a_run_out_of_time_says_so_and_goes_on(tiny_dir, pictures, tmp_path):
    settings = {"steps": 6, "deterministic": True, "checkpoint_every": 100}
    whole = finetune(tiny_dir, tmp_path / "whole", pictures[:2], **settings)
    with pytest.raises(FitError, match=r"2 LoRAs to do; what was under way is kept"):
        finetune(tiny_dir, tmp_path / "cut", pictures[:2], flags={"max_time": timedelta(microseconds=1)}, **settings)
    assert len(list((tmp_path / "cut" / ".unfinished").glob("*.pt"))) == 1
    again = finetune(tiny_dir, tmp_path / "cut", pictures[:2], **settings)
    assert all(same(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "other",
    [
        {"optimizer": lambda params: torch.optim.AdamW(params, lr=1e-3, betas=(0.5, 0.6))},
        {"optimizer": lambda params: torch.optim.RMSprop(params, lr=1e-3)},
        {"lr_scheduler": lambda optimizer: MultiStepLR(optimizer, [1, 2])},
        {"lr_scheduler": lambda optimizer: OneCycleLR(optimizer, 1e-2, total_steps=9)},
    ],
    ids=["betas", "class", "milestones", "max_lr"],
)
def test_settings_that_are_no_scalars_make_another_lora(tiny_dir, pictures, tmp_path, other):
    (first,) = finetune(tiny_dir, tmp_path, pictures[:1]).values()
    (second,) = finetune(tiny_dir, tmp_path, pictures[:1], **other).values()
    assert not same(first, second)
    assert len(LoRALibrary(tmp_path).entries()) == 2


def test_a_lora_of_the_former_identity_is_told_and_not_used(tiny_dir, pictures, tmp_path, caplog):
    milestones = {"lr_scheduler": lambda optimizer: MultiStepLR(optimizer, [1, 2])}
    finetune(tiny_dir, tmp_path, pictures[:1], **milestones)
    (entry,) = LoRALibrary(tmp_path).entries()
    record = json.loads((entry.folder / "diffstyler.json").read_text())
    del record["settings"]["lr_scheduler"]["milestones"]
    (entry.folder / "diffstyler.json").write_text(json.dumps(record))
    old = read_record(entry.folder).identity
    entry.folder.rename(tmp_path / old.folder_name)
    with caplog.at_level("WARNING", "diffstyler"):
        finetune(tiny_dir, tmp_path, pictures[:1], **milestones)
    assert "did not tell all settings of the optimizer; it is fitted again" in caplog.text
    assert len(LoRALibrary(tmp_path).entries()) == 2


def test_loras_of_plain_settings_keep_their_identity():
    """As recorded before optimizer settings were told in full: LoRAs made then are found."""
    job = fit_job(FitPicture((Path("a.png"),), "0" * 64, "a"), FitSettings(prompt="a", steps=3), "1" * 64, {})
    assert job.former is None
    assert job.identity.settings["optimizer"].keys() == {
        *("class", "lr", "eps", "weight_decay", "amsgrad", "maximize", "capturable", "differentiable"),
        "decoupled_weight_decay",
    }
    assert job.identity.settings["lr_scheduler"] == {
        "class": "ConstantLR", "factor": 1.0, "total_iters": 5, "last_epoch": 0,
    }  # fmt: skip
    assert job.identity.settings["crops"] == {"resolution": None, "crop_size": None, "count": 1, "flip": True}


def of_adamw(**settings) -> Callable:
    return lambda params: torch.optim.AdamW([{"params": list(params), **settings}])


def of_bitsandbytes(**settings) -> Callable:
    return lambda params: pytest.importorskip("bitsandbytes").optim.AdamW(params, **settings)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of_adamw(), of_adamw(betas=(0.5, 0.9))),
        (of_adamw(weight_decay=0.1), of_adamw(weight_decay=0.2)),
        (of_adamw(lr=torch.tensor(1e-3)), of_adamw(lr=torch.tensor(2e-3))),
        (of_bitsandbytes(), of_bitsandbytes(optim_bits=8)),
        (of_bitsandbytes(), of_bitsandbytes(is_paged=True)),
    ],
    ids=["betas of the group", "scalar of the group", "tensors", "kept in args", "kept beside"],
)
def test_settings_count_wherever_an_optimizer_keeps_them(one, other):
    first, second, again = (FitSettings(optimizer=make).record()["optimizer"] for make in (one, other, one))
    assert first != second
    assert first == again
    json.dumps(first)


def test_a_setting_that_cannot_be_told_is_an_error(tiny_dir, pictures, tmp_path):
    for other in (
        {"lr_scheduler": lambda optimizer: LambdaLR(optimizer, lambda step: 1.0)},
        {"loss": Opaque(torch.zeros(3))},
    ):
        with pytest.raises(DiffstylerError, match="cannot be recorded"):
            finetune(tiny_dir, tmp_path, pictures[:1], **other)


class Opaque(DiffusionLoss):
    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        return noised.mean(output)


def test_loras_written_beside_the_next_steps_are_the_same(tiny_dir, pictures, tmp_path, monkeypatch, whole):
    """As on CUDA, where pictures are read side by side too; one that cannot be written ends the run, and its neighbor
    is there."""
    monkeypatch.setattr("diffstyler.fit.bench.Workers", lambda apart, threads=4: Workers(apart=True, threads=threads))
    beside = finetune(tiny_dir, tmp_path / "beside", pictures, pack_size=2, deterministic=True)
    assert all(same(whole[name], beside[name]) for name in whole)
    publish = LoRALibrary.publish

    def full_disk(library: LoRALibrary, identity: LoRAIdentity, *more) -> FittedLoRA:
        if identity.name == pictures[0].stem:
            raise OSError(28, "No space left on device")
        return publish(library, identity, *more)

    monkeypatch.setattr(LoRALibrary, "publish", full_disk)
    with pytest.raises(OSError, match="No space left"):
        finetune(tiny_dir, tmp_path / "full", pictures[:2])
    assert pictures[0].stem not in {entry.identity.name for entry in LoRALibrary(tmp_path / "full").entries()}
    monkeypatch.setattr(LoRALibrary, "publish", publish)
    assert len(finetune(tiny_dir, tmp_path / "full", pictures[:2])) == 2


@pytest.mark.parametrize("apart", [False, True])
def test_a_picture_that_cannot_be_read_any_more_fails_alone(tiny_dir, pictures, tmp_path, monkeypatch, whole, apart):
    monkeypatch.setattr("diffstyler.fit.bench.Workers", lambda threads=4, **_: Workers(apart=apart, threads=threads))

    def gone(paths, *more, **settings):
        if paths[0] == pictures[1]:
            raise FileNotFoundError(2, "No such file", str(paths[0]))
        return take_crops(paths, *more, **settings)

    monkeypatch.setattr("diffstyler.fit.bench.take_crops", gone)
    with pytest.raises(FitError, match=r"1 LoRAs could not be fitted:\n.*green\.png: .*No such file"):
        finetune(tiny_dir, tmp_path, pictures, pack_size=2, deterministic=True)
    fitted = {e.identity.name: matrices(e.folder) for e in LoRALibrary(tmp_path).entries()}
    assert fitted.keys() == {"red", "blue"}
    assert all(same(whole[name], own) for name, own in fitted.items())


def test_an_error_leaves_the_model_as_it_was(tiny, pictures, tmp_path):
    class FailAt(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                raise KeyError("now")

    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    module = LoRAFinetuner(tiny, lora_dir=tmp_path, rank=4)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[FailAt()],
    )  # fmt: skip
    with pytest.raises(KeyError):
        trainer.fit(module, datamodule=FitData(pictures=pictures[:1], crops=Crops(64, 64)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.network.modules())
    assert module.bench is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
