"""Files that are written: whole or not at all, for those whom the umask lets in, and in the folder that was named."""

import os
from pathlib import Path

import pytest
import torch
from runs import finetune, row, stylize

from diffstyler.adapters import LoRA, LowRank, read_lora, save_kohya
from diffstyler.diffusion.initial import FromContent
from diffstyler.predict.contact_sheet import write_sheet
from diffstyler.predict.writer import StylizationWriter
from diffstyler.types import Stylized

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def export(path: Path, value: float) -> None:
    low_rank = LowRank(torch.full((2, 768), value), torch.ones(320, 2), 1.0)
    save_kohya(path, LoRA({"unet": {MODULE: low_rank}}, path), family="sd1", title="gold")


def test_an_export_that_is_killed_leaves_the_file_of_before(tmp_path, monkeypatch):
    path, kept, opened = tmp_path / "gold.safetensors", tmp_path / "kept", []
    export(path, 1.0)
    kept.hardlink_to(path)
    before = path.read_bytes()
    real, fsync = Path.open, os.fsync

    def seen(self: Path, mode: str = "r", **more) -> object:
        opened.append((self.suffix, mode))
        return real(self, mode, **more)

    def kill(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", seen)
    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        export(path, 2.0)
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "fsync", fsync)
    export(path, 2.0)
    assert kept.read_bytes() == before
    assert read_lora(path).parts["unet"][MODULE].down.max() == 2
    assert {suffix for suffix, mode in opened if "r" not in mode} == {".tmp"}


def test_files_have_the_mode_that_the_umask_gives(studio, tiny_dir):
    before = os.umask(0o002)
    try:
        finetune(tiny_dir, studio / "new" / "loras", [studio / "gold.png"], steps=1)
        export(studio / "new" / "kohya" / "gold.safetensors", 1.0)
        stylize(studio, tiny_dir, row(studio), out="new/out", cache_dir=studio / "new" / "cache", initial=FromContent())
    finally:
        os.umask(before)
    made = list((studio / "new").rglob("*"))
    assert {path.suffix for path in made} >= {".safetensors", ".json", ".png", ".html"}
    wrong = {str(path): oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o666 != 0o664}
    assert not wrong


def test_links_in_the_output_folder_are_replaced_and_not_written_through(tmp_path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    (elsewhere / "folder").mkdir(parents=True)
    out.mkdir()
    for name in ("a.png", "a.json", "index.html"):
        (elsewhere / name).write_text("mine")
        (out / name).symlink_to(elsewhere / name)
    for name in ("masks", "thumbnails"):
        (out / name).symlink_to(elsewhere / "folder")
    told = {"id": "a", "key": "ab" * 32, "result": "a.png", "content": {}, "regions": []}
    StylizationWriter(out).write(Stylized("a", torch.zeros(3, 16, 16), told, {"masks/a-1.png": torch.ones(16, 16)}))
    write_sheet(out)
    assert {file.read_text() for file in elsewhere.glob("*.*")} == {"mine"}
    assert not list((elsewhere / "folder").iterdir())
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert (out / "masks" / "a-1.png").is_file()
