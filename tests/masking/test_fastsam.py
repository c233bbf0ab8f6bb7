"""FastSAM's candidates: which of them a prompt means, and how little ultralytics may do to the process."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from diffstyler.backbones.source import EMBEDDED
from diffstyler.masking import NothingFoundError, fastsam
from diffstyler.masking.fastsam import FastSAMMasker, fetch_weights

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="needs the extra fastsam, which `make test` installs"
)

HEIGHT, WIDTH = 30, 40
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def area(x0: int, y0: int, x1: int, y1: int) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


PERSON, HAT, SHIRT = area(2, 2, 14, 28), area(4, 2, 12, 8), area(3, 9, 13, 20)
DOG, ROOM = area(20, 15, 36, 28), area(0, 0, 40, 30)
CANDIDATES = torch.stack([ROOM, PERSON, HAT, SHIRT, DOG])


class Known(FastSAMMasker):
    """With candidates that the test knows."""

    candidates = CANDIDATES
    runs = 0

    def _segment(self, picture: Image.Image) -> torch.Tensor:
        self.runs += 1
        return self.candidates


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A random network of FastSAM's shape, in ultralytics' own file."""
    with fastsam._as_it_was():
        fastsam._import_quietly()
        from ultralytics.nn.tasks import SegmentationModel

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = SegmentationModel("yolov8n-seg.yaml", nc=1, verbose=False)
    path = tmp_path_factory.mktemp("fastsam") / "FastSAM-n.pt"
    torch.save({"model": model, "train_args": {"task": "segment"}}, path)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A tiny random CLIP with its processor."""
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), **size, **ends, "pad_token_id": tokenizer.pad_token_id},
        vision_config={"image_size": 32, "patch_size": 8, **size},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLIPModel(config)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def known(weights) -> Known:
    return Known(weights)


# ---- which candidates a prompt means


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([(8, 25)], [], PERSON),  # the room holds it too, and is larger
        ([(8, 4)], [], HAT),
        ([(8, 4), (8, 15)], [], PERSON),  # one thing that holds all points, before two that hold one each
        ([(8, 4), (30, 20)], [], ROOM),
        ([(8, 4), (30, 20)], [(1, 1)], HAT | DOG),  # not the room: nothing holds both any more
        ([(8, 15)], [(8, 4)], SHIRT),
        ([(0.4, 29.9)], [], ROOM),
        ([(40, 30)], [], ROOM),  # the picture's far corner
    ],
)
def test_points(known, positive, negative, expected):
    assert torch.equal(known.find_points(PICTURE, positive, negative), expected.float())


def test_points_that_nothing_holds(known):
    with pytest.raises(NothingFoundError, match="no candidate without a negative point at 8,25, 5 in all"):
        known.find_points(PICTURE, [(8, 4), (8, 25)], [(3, 27)])
    known.candidates = CANDIDATES[1:]
    with pytest.raises(NothingFoundError, match="no candidate at 39,1, 4 in all"):
        known.find_points(Image.new("RGB", PICTURE.size), [(39, 1)], [])


@pytest.mark.parametrize(
    ("box", "expected"),
    [((2, 2, 14, 28), PERSON), ((19, 14, 38, 30), DOG), ((4, 2, 12, 9), HAT), ((0, 0, 40, 30), ROOM)],
)
def test_box(known, box, expected):
    assert torch.equal(known.find_box(PICTURE, box), expected.float())


def test_a_box_that_nothing_fits(known):
    # the dog, 16 x 13, holds the box, 8 x 13: IoU exactly 0.5; one column less is too little
    assert torch.equal(known.find_box(PICTURE, (20, 15, 28, 28)), DOG.float())
    with pytest.raises(NothingFoundError, match=r"the best IoU is 0\.44, the least 0\.5"):
        known.find_box(PICTURE, (20, 15, 27, 28))


def test_a_box_is_compared_with_the_candidates_own_box(known):
    ring = DOG & ~area(22, 17, 34, 26)  # little of the box is inside the ring itself
    known.candidates = torch.stack([ring, area(20, 15, 36, 24)])
    assert torch.equal(known.find_box(PICTURE, (20, 15, 36, 28)), ring.float())


def test_masks_have_the_size_of_the_picture(known):
    large = PICTURE.resize((4 * WIDTH, 4 * HEIGHT))
    expected = DOG.repeat_interleave(4, 0).repeat_interleave(4, 1).float()
    by_box, by_point = known.find_box(large, (80, 60, 144, 112)), known.find_points(large, [(143, 111)], [(2, 2)])
    assert by_box.shape == (4 * HEIGHT, 4 * WIDTH)
    assert set(by_box.unique().tolist()) == {0, 1}
    assert (by_box != expected).sum() <= 4 * 4  # bilinear: rounded at the four corners
    assert torch.equal(by_point, by_box)


def test_a_picture_is_cut_once_and_the_last_few_are_kept(known):
    others = [Image.new("RGB", PICTURE.size, color) for color in ("red", "green", "blue")]
    for picture in (PICTURE, PICTURE.copy(), *others[:2], PICTURE):
        known.find_points(picture, [(8, 4)], [])
    assert known.runs == 3
    known.find_points(others[2], [(8, 4)], [])
    assert len(known._masks) == fastsam.PICTURES_KEPT
    known.find_points(PICTURE, [(8, 4)], [])
    assert known.runs == 5


@pytest.mark.parametrize("ask", ["find_text", "find_points", "find_box"])
def test_no_candidates_at_all(weights, clip, ask):
    masker = Known(weights, str(clip), confidence=0.7)
    masker.candidates = CANDIDATES[:0]
    prompt = {"find_text": ("dog",), "find_points": ([(1, 1)], []), "find_box": ((1, 1, 9, 9),)}[ask]
    with pytest.raises(NothingFoundError, match=r"found nothing in the picture at masker\.confidence 0\.7"):
        getattr(masker, ask)(PICTURE, *prompt)


# ---- words


def reference_logits(clip: Path, phrase: str) -> torch.Tensor:
    """(candidates, texts) by CLIP's own forward, on crops made pixel by pixel."""
    crops = []
    for mask in CANDIDATES:
        ys, xs = np.nonzero(mask.numpy())
        side = max(np.ptp(ys), np.ptp(xs)) + 1
        margin = max(1, round(0.1 * side))
        crop = np.full((side + 2 * margin,) * 2 + (3,), (122, 116, 104), np.uint8)
        top, left = ((len(crop) - np.ptp(values) - 1) // 2 for values in (ys, xs))
        crop[ys - ys.min() + top, xs - xs.min() + left] = np.asarray(PICTURE)[ys, xs]
        crops.append(Image.fromarray(crop))
    texts = [f"a photo of {words}" for words in (phrase, "background", "something else")]
    inputs = CLIPProcessor.from_pretrained(clip)(text=texts, images=crops, padding=True, return_tensors="pt")
    with torch.no_grad():
        return CLIPModel.from_pretrained(clip)(**inputs).logits_per_image


def test_words_are_matched_by_clip(weights, clip):
    expected = reference_logits(clip, "a dog")
    logits = Known(weights, str(clip))._logits(PICTURE, "a dog")
    assert logits.shape == (5, 3)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert expected[:, 0].diff().abs().min() > 0.01  # the candidates differ


def test_words_find_the_best_candidate_and_its_equals(weights, clip, monkeypatch):
    masker = Known(weights, str(clip), threshold=0.0)
    masker.candidates = CANDIDATES[1:]  # without the room, which holds all the others
    shares = reference_logits(clip, "a dog")[1:, 0].softmax(0)
    found, sizes = [], []
    for tie in (0.999, 0.5, 0.0):
        monkeypatch.setattr(fastsam, "TIE", tie)
        chosen = shares >= tie * shares.max()
        sizes.append(int(chosen.sum()))
        found.append(masker.find_text(PICTURE, "a dog"))
        assert torch.equal(found[-1], CANDIDATES[1:][chosen].any(0).float())
    assert (sizes[0], sizes[2]) == (1, 4)
    assert not torch.equal(found[0], found[2])


def test_words_skip_candidates_that_show_something_else(weights, clip):
    """The best by its logit alone may be one that "background" wins."""
    scores = reference_logits(clip, "a dog").softmax(1)[:, 0]
    second = scores.sort(descending=True).values[:2].mean().item()
    found = Known(weights, str(clip), threshold=second).find_text(PICTURE, "a dog")
    assert torch.equal(found, CANDIDATES[scores.argmax()].float())


def test_nothing_matches(weights, clip):
    best = reference_logits(clip, "a dog").softmax(1)[:, 0].max().item()
    assert Known(weights, str(clip), threshold=best - 1e-3).find_text(PICTURE, "a dog").any()
    threshold = round(best + 1e-3, 6)
    with pytest.raises(
        NothingFoundError, match=f"matches 'a dog': the best of 5 candidates scores {best:.3f}, .* is {threshold}"
    ):
        Known(weights, str(clip), threshold=threshold).find_text(PICTURE, "a dog")


def test_crops_are_embedded_once_for_all_phrases(weights, clip, monkeypatch):
    masker = Known(weights, str(clip), threshold=0.0)
    first = masker.find_text(PICTURE, "a dog")
    monkeypatch.setattr(masker, "_embed", None)
    assert torch.equal(masker.find_text(PICTURE, "a dog"), first)
    assert not torch.equal(masker._logits(PICTURE, "a cat"), masker._logits(PICTURE, "a dog"))


def test_words_need_clip(known, weights, tmp_path):
    with pytest.raises(ValueError, match=r"mask 'dog': FastSAMMasker needs masker\.clip for words"):
        known.find_text(PICTURE, "dog")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"masker\.clip: expected a CLIP model with its processor, but reading '.*empty'"
    ):
        Known(weights, str(tmp_path / "empty")).find_text(PICTURE, "dog")


# ---- the network itself


def test_candidates_of_a_real_network(weights):
    masker = FastSAMMasker(weights, confidence=1e-4, image_size=64)
    masks = masker._candidates(PICTURE)
    assert masks.dtype == torch.bool
    assert masks.shape[1:] == (HEIGHT, WIDTH)
    assert masks.flatten(1).any(1).all()
    y, x = masks[0].nonzero()[0].tolist()
    found = masker.find_points(PICTURE, [(x, y)], [])
    holding = masks[masks[:, y, x]]
    assert torch.equal(found, holding[holding.sum((1, 2)).argmin()].float())


def test_settings_of_the_network_act(weights):
    def count(**settings) -> int:
        return len(FastSAMMasker(weights, image_size=64, **settings)._segment(PICTURE))

    base = count(confidence=1e-4)
    assert 0 < count(confidence=1e-4, iou=0.6) < base
    assert count(confidence=0.9) == 0
    wide = Image.new("RGB", (200, 100), "red")
    assert FastSAMMasker(weights, confidence=1e-4, image_size=96)._segment(wide).shape[1:] == (48, 96)
    assert FastSAMMasker(weights, confidence=1e-4, image_size=224)._segment(wide).shape[1:] == (100, 200)


def test_the_network_sees_red_as_red(weights):
    masker, seen = FastSAMMasker(weights, image_size=64), []
    masker._model.model.model[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    assert len(masker._segment(Image.new("RGB", (64, 64), (255, 0, 51)))) == 0
    torch.testing.assert_close(seen[-1].mean((0, 2, 3)), torch.tensor([1.0, 0.0, 0.2]))


def test_it_runs_on_the_backbones_device_unless_told_otherwise(weights, tiny):
    masker = FastSAMMasker(weights)
    masker.setup(tiny.to("meta"))
    assert masker._device.type == "meta"
    assert FastSAMMasker(weights)._device.type == "cpu"
    told = FastSAMMasker(weights, device="cpu")
    told.setup(tiny.to("meta"))
    assert told._device.type == "cpu"


# ---- what goes wrong


def test_missing_weights_are_an_error_before_anything_else(tmp_path):
    with pytest.raises(
        ValueError, match=r"found no file .*FastSAM-s\.pt; nothing is downloaded by itself: .*FastSAM-x"
    ):
        FastSAMMasker(tmp_path / "FastSAM-s.pt")


def test_missing_ultralytics_is_an_error_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ValueError, match=r'pip install "diffstyler\[fastsam\]"'):
        FastSAMMasker(tmp_path / "FastSAM-s.pt")


@pytest.mark.parametrize(
    "setting",
    [{"threshold": 1.5}, {"confidence": -1.0}, {"iou": 2.0}, {"image_size": 100}, {"image_size": 0}, {"clip": 3}],
    ids=str,
)
def test_settings_out_of_range(weights, setting):
    with pytest.raises(
        ValueError, match=f"masker.{next(iter(setting))}: expected .*, got {next(iter(setting.values()))}"
    ):
        FastSAMMasker(weights, **setting)


@pytest.mark.parametrize("name", ["Fast'SAM.pt", "FastSAM.bin"])
def test_names_that_ultralytics_would_not_read(weights, tmp_path, name):
    (tmp_path / name).write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match=r"expected a \.pt file in a path without apostrophes"):
        FastSAMMasker(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut"], ids=str)
def test_broken_weights(tmp_path, content):
    (tmp_path / "FastSAM-s.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"masker\.weights: expected FastSAM's weights in .*, but reading it failed"):
        FastSAMMasker(tmp_path / "FastSAM-s.pt").find_box(PICTURE, (0, 0, 9, 9))


def test_another_kind_of_network(weights, tmp_path):
    with fastsam._as_it_was():
        from ultralytics.nn.tasks import DetectionModel

        model = DetectionModel("yolov8n.yaml", nc=1, verbose=False)
    torch.save({"model": model, "train_args": {}}, tmp_path / "yolov8n.pt")
    with pytest.raises(ValueError, match=r"expected a SegmentationModel in .*yolov8n\.pt, got a DetectionModel"):
        FastSAMMasker(tmp_path / "yolov8n.pt").find_box(PICTURE, (0, 0, 9, 9))


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("imported_by_another", [False, True])
def test_code_in_a_pickle_is_refused(weights, tmp_path, monkeypatch, imported_by_another):
    marker, path = tmp_path / "executed", tmp_path / "FastSAM-s.pt"
    torch.save({"model": Evil(marker), "train_args": {}}, path)
    if imported_by_another:  # who imports ultralytics without our settings has a loader that runs pickles
        monkeypatch.setattr("ultralytics.nn.tasks.SAFE_LOAD", False)
    with pytest.raises(ValueError, match=r"reading it failed .*outside the supported Ultralytics checkpoint format"):
        FastSAMMasker(path).find_box(PICTURE, (0, 0, 9, 9))
    assert not marker.exists()
    with pytest.raises(AttributeError):  # None is no network; but it has been executed
        torch.load(path, weights_only=False)["model"].float()
    assert marker.exists()


# ---- provenance


def test_settings_say_all_that_determines_a_mask(weights, clip):
    settings = FastSAMMasker(weights, str(clip), threshold=0.25).settings
    assert (
        json.loads(json.dumps(settings))
        == settings
        == {
            "class": "FastSAMMasker",
            "clip": str(clip),
            "clip_sha256": hashlib.sha256((clip / "model.safetensors").read_bytes()).hexdigest(),
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "threshold": 0.25,
            "confidence": 0.4,
            "iou": 0.9,
            "image_size": 1024,
        }
    )
    by_id = FastSAMMasker(weights, "openai/clip-vit-base-patch32").settings
    assert (by_id["clip"], by_id["clip_sha256"]) == ("openai/clip-vit-base-patch32", None)


# ---- fetching


def test_fetch_checks_the_bytes(tmp_path, monkeypatch):
    release, folder = tmp_path / "release", tmp_path / "new" / "weights"
    release.mkdir()
    (release / "FastSAM-s.pt").write_bytes(b"weights")
    monkeypatch.setattr(fastsam, "RELEASE", release.as_uri())
    with pytest.raises(ValueError, match=r"expected SHA-256 c9f78716\w+ of file:.*, got 9a129038\w+; nothing was"):
        fetch_weights("FastSAM-s.pt", folder)
    assert not folder.exists()
    monkeypatch.setitem(fastsam.WEIGHTS, "FastSAM-s.pt", hashlib.sha256(b"weights").hexdigest())
    assert fetch_weights("FastSAM-s.pt", folder).read_bytes() == b"weights"
    assert [path.name for path in folder.iterdir()] == ["FastSAM-s.pt"]
    (release / "FastSAM-s.pt").unlink()
    assert fetch_weights("FastSAM-s.pt", folder) == folder / "FastSAM-s.pt"  # there already
    (folder / "FastSAM-s.pt").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"of .*weights.FastSAM-s\.pt, got"):
        fetch_weights("FastSAM-s.pt", folder)


def test_fetch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fastsam, "RELEASE", (tmp_path / "nowhere").as_uri())
    with pytest.raises(ValueError, match=r"could not fetch file:.*; fetch it elsewhere and copy it to .*FastSAM-x\.pt"):
        fetch_weights("FastSAM-x.pt", tmp_path)
    with pytest.raises(ValueError, match=r"expected FastSAM-s\.pt or FastSAM-x\.pt, got 'sam'"):
        fetch_weights("sam", tmp_path)


# ---- the process around it

WATCHED = """
import json, os, socket, sys
from pathlib import Path

calls, written = [], []
def watch(event, args):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess", "os.system")):
        calls.append([event, str(args[:2])])
    if event == "open" and isinstance(args[0], str) and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        written.append(args[0])
sys.addaudithook(watch)

import cv2, diffstyler.masking.fastsam
from jsonargparse import ArgumentParser
parser = ArgumentParser()
parser.add_argument("--masker", type=diffstyler.masking.Masker)
parser.parse_args(["--masker", "FastSAMMasker", "--masker.weights", sys.argv[1], "--masker.iou", "0.5"])
assert "ultralytics" not in sys.modules
import numpy as np, torch, torch._tensor_str, warnings, PIL.Image
from diffstyler.masking.fastsam import FastSAMMasker
weights = Path(sys.argv[1])
calls.clear(), written.clear()

def state():
    return {
        "environment": dict(os.environ), "save": id(torch.save), "open": id(PIL.Image.open),
        "printing": repr(torch._tensor_str.PRINT_OPTS), "numpy": repr(np.get_printoptions()),
        "filters": repr(warnings.filters), "threads": [torch.get_num_threads(), cv2.getNumThreads()],
        "trusted": len(torch.serialization.get_safe_globals()), "grad": torch.is_grad_enabled(),
        "random": [torch.get_rng_state().sum().item(), int(np.random.get_state()[1].sum())],
        "folder": sorted(os.listdir()), "path": sys.path,
    }
before = state()
count = len(FastSAMMasker(weights, confidence=1e-4, image_size=64)._candidates(PIL.Image.new("RGB", (64, 64), "red")))
after = state()
from ultralytics.utils import AUTOINSTALL, ONLINE, SAFE_LOAD, SETTINGS, TESTS_RUNNING, USER_CONFIG_DIR, events
print(json.dumps({
    "before": before, "after": after, "count": count, "calls": calls, "written": written,
    "flags": [AUTOINSTALL, ONLINE, SAFE_LOAD, SETTINGS["sync"], events.events.enabled, TESTS_RUNNING],
    "config": str(USER_CONFIG_DIR),
}))
"""


@pytest.fixture(scope="module")
def process(weights, tmp_path_factory) -> dict:
    """What a process with no pytest in it saw, wrote and asked for while a picture was cut."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("working")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "ULTRALYTICS", "PYTEST", "OMP_NUM"))
    }
    environment |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "TMPDIR": str(home)}
    command = [sys.executable, "-c", WATCHED, str(weights)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "folder": str(folder),
        "home": str(home),
        "left": left,
        "err": done.stderr,
    }


def test_the_process_is_as_it_was(process):
    assert process["count"] > 0
    for name, value in process["before"].items():
        assert process["after"][name] == value, name
    assert process["after"]["folder"] == []


def test_nothing_is_asked_installed_or_reported(process):
    autoinstall, online, safe, sync, telemetry, tests_running = process["flags"]
    assert not tests_running  # else ultralytics reports nothing anyway
    assert (autoinstall, online, safe, sync, telemetry) == (False, False, True, False, False)
    assert [call for call in process["calls"] if call[0].startswith("socket")] == []
    assert not any("pip" in call[1] for call in process["calls"])


def test_nothing_is_written_but_temporary_files(process):
    assert Path(process["config"]).parent.parent == Path(process["home"])
    assert all(path.startswith((process["config"], "/dev/")) for path in process["written"]), process["written"]
    assert process["left"] == []


def test_a_command_line_that_imports_ultralytics_writes_nothing_at_home(tmp_path):
    """A class path is imported while it is read, long before any masker is made."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "ULTRALYTICS"))}
    environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "TMPDIR": str(tmp_path)}
    environment |= {"MPLCONFIGDIR": str(tmp_path.parent / "matplotlib")}
    command = [sys.executable, "-m", "diffstyler", "masks", "--masker", "ultralytics.FastSAM"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "ultralytics.FastSAM" in done.stderr
    assert list(tmp_path.iterdir()) == []
