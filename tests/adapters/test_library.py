"""The library: found by what determines a LoRA, there only when complete."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffstyler.adapters import WEIGHTS_NAME, LoRAIdentity, LoRALibrary, read_record
from diffstyler.errors import DiffstylerError

IDENTITY = LoRAIdentity("style", "starry night", "ab12", "cd34", {"rank": 4, "lr": 2e-4, "prompt": "painting of stars"})


def write(folder: Path) -> None:
    save_file({"weights": torch.zeros(1)}, folder / WEIGHTS_NAME)


@pytest.fixture
def library(tmp_path: Path) -> LoRALibrary:
    return LoRALibrary(tmp_path / "loras")


def test_published_is_found(library):
    assert library.get(IDENTITY) is None
    assert library.entries() == []
    entry = library.publish(IDENTITY, write)
    assert entry.folder == library.lora_dir / IDENTITY.folder_name
    assert (entry.folder / WEIGHTS_NAME).is_file()
    assert entry.prompt == "painting of stars"
    assert library.get(IDENTITY) == entry == read_record(entry.folder)
    assert library.get(replace(IDENTITY, name="renamed")) == entry
    assert library.get(replace(IDENTITY, model="other")) is None


def test_entries_come_by_folder_name(library):
    others = [replace(IDENTITY, name=name, picture=name) for name in ("wave", "cezanne", "scream")]
    for identity in others:
        library.publish(identity, write)
    assert [entry.identity.name for entry in library.entries()] == ["cezanne", "scream", "wave"]


def test_a_failed_write_leaves_no_lora(library):
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        library.publish(IDENTITY, fail)
    assert library.get(IDENTITY) is None
    assert library.entries() == []
    assert not (library.lora_dir / IDENTITY.folder_name).exists()
    assert library.publish(IDENTITY, write) == library.get(IDENTITY)


def test_publishing_ends_the_unfinished_state(library):
    state = library.state_file(IDENTITY)
    state.parent.mkdir(parents=True)
    state.write_text("state")
    left_by_a_killed_process = state.with_name(f".{state.name}.0123abcd.tmp")
    left_by_a_killed_process.write_text("half a state")
    anothers = state.with_name(".ffff.pt.0123abcd.tmp")
    anothers.write_text("half a state")
    assert library.entries() == []
    library.publish(IDENTITY, write)
    assert list(state.parent.iterdir()) == [anothers]


@pytest.mark.parametrize(
    "change",
    [
        {"role": "content"},
        {"picture": "ff"},
        {"model": "ff"},
        {"settings": {**IDENTITY.settings, "rank": 8}},
        {"settings": {**IDENTITY.settings, "prompt": ""}},
        {"settings": {**IDENTITY.settings, "flip": True}},
    ],
    ids=str,
)
def test_the_key_holds_everything(change):
    assert replace(IDENTITY, **change).key != IDENTITY.key


def test_the_key_holds_neither_name_nor_order():
    assert replace(IDENTITY, name="renamed").key == IDENTITY.key
    assert replace(IDENTITY, settings=dict(reversed(IDENTITY.settings.items()))).key == IDENTITY.key


def test_folder_names_are_safe():
    name = replace(IDENTITY, name="../a b/ü" + "x" * 99).folder_name
    assert name == f"_a_b_{'x' * 43}-{IDENTITY.key[:12]}"


def test_a_renamed_lora_is_found_as_before_and_a_deleted_one_is_not(library):
    entry = library.publish(IDENTITY, write, ["began again"], 7)
    renamed = library.rename(entry, " dark night ")
    assert renamed == read_record(renamed.folder) == library.get(IDENTITY)
    assert (renamed.identity.name, renamed.history, renamed.steps_taken) == ("dark night", ("began again",), 7)
    assert [one.folder.name for one in library.entries()] == [replace(IDENTITY, name="dark night").folder_name]
    for act in (lambda: library.rename(entry, "x"), lambda: library.delete(entry)):
        with pytest.raises(DiffstylerError, match=r"no such LoRA in .*loras; was it renamed or deleted"):
            act()
    with pytest.raises(DiffstylerError, match="expected a name"):
        library.rename(renamed, " ")
    library.delete(renamed)
    assert library.entries() == []
    assert library.get(IDENTITY) is None
    assert [*library.lora_dir.glob("*")] == [library.lora_dir / ".unfinished"]
    assert library.publish(IDENTITY, write) == library.get(IDENTITY)


def test_nothing_beside_the_library_is_renamed_or_deleted(library, tmp_path):
    other = LoRALibrary(tmp_path / "others").publish(IDENTITY, write)
    for act in (lambda: library.rename(other, "x"), lambda: library.delete(other)):
        with pytest.raises(DiffstylerError, match="no such LoRA"):
            act()
    assert other.folder.is_dir()
