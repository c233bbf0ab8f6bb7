"""What lies in the output folder is looked at, not believed: pictures, sidecars, lists of failures, leftovers."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diffstyler.files import atomic_write
from diffstyler.images import load_image
from diffstyler.predict.contact_sheet import write_sheet
from diffstyler.predict.writer import StylizationWriter
from diffstyler.types import Failed, Stylized

KEY = "ab" * 32


def written(folder: Path, id: str = "a", key: str = KEY, seed: int = 0) -> StylizationWriter:
    """A picture and its sidecar."""
    pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    writer = StylizationWriter(folder)
    writer.write(Stylized(id, pixels, {"id": id, "key": key, "result": f"{id}.png", "seconds": 1.0}))
    return writer


def test_a_picture_is_done_by_its_key(tmp_path):
    writer = written(tmp_path)
    assert writer.is_done("a", KEY)
    assert not writer.is_done("a", "another")
    assert not writer.is_done("b", KEY)


def test_what_was_made_with_other_settings_is_kept(tmp_path):
    def write(key: str, seed: int) -> None:
        pixels, mask = torch.full((3, 16, 16), seed / 4), torch.full((16, 16), seed / 4)
        told = {"id": "a", "key": key, "result": "a.png", "regions": [{"mask_file": "masks/a-1.png"}]}
        StylizationWriter(tmp_path).write(Stylized("a", pixels, told, {"masks/a-1.png": mask}))

    def color(path: str) -> int:
        return load_image(tmp_path / path).getpixel((0, 0))[0]

    other = "cd" * 32
    for key, seed in ((KEY, 1), (KEY, 1), (other, 2)):
        write(key, seed)
    assert {path.name for path in tmp_path.glob("*")} == {
        "a.png",
        "a.json",
        "a@abababab.png",
        "a@abababab.json",
        "masks",
    }
    assert color("a.png") > color("a@abababab.png") > 0
    assert color("masks/a-1.png") > color("masks/a@abababab-1.png") > 0
    sidecars = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "a@abababab")]
    assert [told["id"] for told in sidecars] == ["a", "a@abababab"]
    assert [told["regions"][0]["mask_file"] for told in sidecars] == ["masks/a-1.png", "masks/a@abababab-1.png"]
    assert StylizationWriter(tmp_path).is_done("a", other)
    assert all(name in write_sheet(tmp_path).read_text() for name in ("a@abababab.png", "a.png"))


@pytest.mark.parametrize(
    "change", [{"key": "../../x"}, {"key": 7}, {"regions": [{"mask_file": "../out"}, 3]}, {"regions": 1}]
)
def test_a_sidecar_of_others_moves_nothing_that_is_not_its_own(tmp_path, change):
    folder = tmp_path / "made"
    (tmp_path / "out").write_text("of others")
    written(folder)
    told = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps({**told, **change}))
    written(folder, key="cd" * 32, seed=1)
    assert StylizationWriter(folder).is_done("a", "cd" * 32)
    assert (tmp_path / "out").read_text() == "of others"
    assert {path.name for path in tmp_path.iterdir()} == {"made", "out"}


DAMAGES = ("cut", "empty", "gone", "another picture", "garbage", "folder", "one byte more")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_not_done(tmp_path, damage):
    writer, path = written(tmp_path), tmp_path / "a.png"
    content = path.read_bytes()
    if damage == "another picture":
        Image.new("RGB", (16, 16)).save(path)
    elif damage in {"gone", "folder"}:
        path.unlink()
    else:
        changed = {"cut": content[:-20], "empty": b"", "garbage": b"x" * 99, "one byte more": content + b"x"}
        path.write_bytes(changed[damage])
    if damage == "folder":
        path.mkdir()
    assert not writer.is_done("a", KEY)


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.1, 0.0])
def test_a_picture_of_before_hashes_is_done_if_it_is_whole(tmp_path, kept):
    writer, path, sidecar = written(tmp_path), tmp_path / "a.png", tmp_path / "a.json"
    told = json.loads(sidecar.read_text())
    del told["result_sha256"]
    sidecar.write_text(json.dumps(told))
    content = path.read_bytes()
    path.write_bytes(content[: round(kept * len(content))])
    assert writer.is_done("a", KEY) == (kept == 1)


def test_killed_between_picture_and_sidecar_it_is_done_for_nobody(tmp_path, monkeypatch):
    writer = written(tmp_path)

    def killed(path: Path, data: bytes) -> None:
        if path.name == "a.json":
            raise KeyboardInterrupt
        atomic_write(path, data)

    monkeypatch.setattr("diffstyler.predict.writer.atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, key="other settings", seed=1)
    assert not writer.is_done("a", KEY)
    assert not writer.is_done("a", "other settings")
    monkeypatch.undo()
    assert written(tmp_path).is_done("a", KEY)


STRANGE_JSON = {
    "empty": b"",
    "half": b'{"id": "a',
    "a list": b"[1, 2]",
    "null": b"null",
    "a number": b"3",
    "text": b'"a"',
    "not UTF-8": '{"id": "ü"}'.encode("latin-1"),
    "zeros": bytes(99),
    "deep": b"[" * 100_000,
    "another tool's": b'{"version": "5.0.1", "shapes": [], "imagePath": "a.png"}',
    "a long number": b'{"id": "a", "seed": ' + b"9" * 5000 + b"}",
    **{
        f"{name} = {value!r}": json.dumps({"id": "a", name: value}).encode()
        for name, value in [
            ("id", 3), ("id", None), ("id", "a\0b"), ("content", 3), ("content", []), ("content", {"path": 3}),
            ("content", {"path": "a\0b"}), ("content", {"sha256": []}), ("regions", 3), ("regions", {}),
            ("regions", "ab"), ("regions", [3]), ("regions", [{"style": 3}]), ("regions", [{"mask_file": 3}]),
            ("regions", [{"lora": {"path": []}}]), ("regions", [{"mask": {}}]), ("regions", [{"prompt": 1}]),
            ("settings", []), ("settings", "x"), ("seed", "many"), ("seed", []), ("seconds", "long"),
            ("seconds", [1]), ("seconds", -1), ("seconds", float("nan")), ("seconds", float("inf")),
            ("versions", 3), ("versions", {"torch": []}),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE_JSON)
def test_strange_json_is_no_sidecar_and_keeps_no_sheet_back(tmp_path, caplog, kind):
    writer = written(tmp_path)
    written(tmp_path, "good")
    (tmp_path / "a.json").write_bytes(STRANGE_JSON[kind])
    assert not writer.is_done("a", KEY)
    with caplog.at_level(logging.WARNING):
        page = write_sheet(tmp_path).read_text()
    assert (
        f"{tmp_path / 'a.json'}: expected the JSON sidecar of a picture; left out of the contact sheet" in caplog.text
    )
    assert page.count("<article ") == 1


ODD_BUT_SHOWN = [
    {"regions": [{"strength": 10**400}, {"strength": float("nan")}, {"strength": True}]},
    {"settings": {"deep": [[[{}]]], "\ud800": "\udfff"}},
    {"result": "../../elsewhere.png"},
    {"content": None, "seed": None, "seconds": None},
    {"content": {"path": "/dev/null"}},
    {"content": {"path": "x" * 5000}},
    {"more": {"of": "everything"}},
]


@pytest.mark.parametrize("fields", ODD_BUT_SHOWN, ids=lambda fields: str(fields)[:40])
def test_odd_values_are_shown_or_left_out(tmp_path, fields):
    written(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"id": "a", **fields}))
    page = write_sheet(tmp_path).read_text()
    assert page.count("<article ") == 1
    assert "elsewhere.png" not in page


# ---- failures and leftovers


def reported(folder: Path, ids: str, failed: str) -> list[str]:
    """A run over rows with these ids, some of which failed -> those in the list after it."""
    StylizationWriter(folder)._report([Failed(id, "m.csv row 2", "why") for id in failed], set(ids))
    path = folder / "failures.jsonl"
    return [json.loads(line).get("id") for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_run_over_other_rows_keeps_the_list(tmp_path):
    assert reported(tmp_path, "abc", "ab") == ["a", "b"]
    assert reported(tmp_path, "xyz", "") == ["a", "b"]
    assert reported(tmp_path, "xyz", "y") == ["a", "b", "y"]
    assert reported(tmp_path, "abc", "b") == ["y", "b"]
    assert reported(tmp_path, "bxyz", "") == []
    assert [path.name for path in tmp_path.iterdir()] == []


def test_damaged_lists_are_read_as_far_as_they_go(tmp_path, caplog):
    lines = [b'{"id": "a"}', *(text for text in STRANGE_JSON.values() if text.strip()), b'{"id": "z', b"\xff"]
    (tmp_path / "failures.jsonl").write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert "a" in reported(tmp_path, "xyz", "x")
    assert "is damaged: expected a JSON object; left out" in caplog.text


def test_what_killed_runs_left_is_swept_when_the_next_begins(tmp_path):
    written(tmp_path)
    left = []
    for folder in (tmp_path, tmp_path / "masks", tmp_path / "thumbnails"):
        folder.mkdir(exist_ok=True)
        left.append(folder / ".a.png.01234567.tmp")
        left[-1].write_text("half")
    others = [tmp_path / ".mine.tmp.txt", tmp_path / "a.tmp", tmp_path / ".profile"]
    for path in others:
        path.write_text("not ours")
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1, is_global_zero=True)
    StylizationWriter(tmp_path).setup(trainer, None, "predict")
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in others)
    assert load_image(tmp_path / "a.png").size == (16, 16)
