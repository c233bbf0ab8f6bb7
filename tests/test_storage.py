"""URLs in place of paths: what is read comes from there, what is written goes there, and paths are left alone."""

import csv
import io
import json
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from diffstyler import storage
from diffstyler.adapters import LoRAIdentity, LoRALibrary
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write
from diffstyler.manifests.pictures import read_manifest


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The files of a store in memory, by name."""
    monkeypatch.setenv(storage.MOUNTS, str(tmp_path / "mounts"))
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(storage, "_fetched", set())
    return fsspec.filesystem("memory")


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """An S3 server on this machine alone, with one bucket."""
    server = pytest.importorskip("moto.server", reason="moto, a server of S3, is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv(storage.MOUNTS, str(tmp_path / "mounts"))
    monkeypatch.setattr(storage, "_fetched", set())
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*running.get_host_and_port()))
    fs = fsspec.filesystem("s3")
    fs.mkdir("bucket")
    yield fs
    running.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_url_has_a_place_and_a_place_its_url(bucket):
    place = storage.local("memory://bucket/a/b.png")
    assert place == storage.local(Path("memory://bucket/a/b.png"))
    assert storage.told(place) == "memory://bucket/a/b.png"
    for path in ("a/b.png", "/a/b.png", "C:/a.png", "a:b/c"):
        assert storage.local(path) == Path(path)
        assert storage.told(Path(path)) == path
    with pytest.raises(storage.StorageError, match="nowhere://x: expected a path, or a URL that fsspec can open"):
        storage.local("nowhere://x")


@pytest.mark.parametrize("tail", ["../../../../b.png", "a/../b.png", "a/.."])
def test_a_url_that_leads_out_of_its_place_is_refused(bucket, tail):
    outside = Path(storage.mounts()).parent
    with pytest.raises(storage.StorageError, match=r"without '\.\.'"):
        storage.local(f"memory://bucket/{tail}")
    joined = storage.local("memory://bucket/m.csv").parent / tail  # as a row of a manifest names it
    for use in (storage.fetch, storage.is_folder, storage.put, storage.is_there):
        with pytest.raises(storage.StorageError, match=r"without '\.\.'"):
            use(joined)
    assert [file for file in outside.rglob("*") if file.is_file()] == []


def test_paths_are_never_looked_up(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "url_to_fs", None)
    atomic_write(tmp_path / "a", b"1")
    assert storage.fetch(tmp_path / "a").read_bytes() == b"1"
    storage.remove(tmp_path / "a")
    assert not storage.is_there(tmp_path / "a")


def test_what_is_written_is_there_and_what_changes_there_is_read(bucket):
    place = storage.local("memory://bucket/a")
    place.parent.mkdir(parents=True)
    atomic_write(place, b"mine")
    assert bucket.cat("/bucket/a") == b"mine"
    bucket.pipe("/bucket/a", b"another's")
    assert storage.fetch(place, changes=True).read_bytes() == b"another's"
    storage.remove(place)
    assert not bucket.exists("/bucket/a")
    bucket.pipe("/bucket/a", b"again")
    assert storage.fetch(place, changes=True).read_bytes() == b"again"
    bucket.rm("/bucket/a")
    assert not storage.fetch(place, changes=True).exists()


def test_a_store_that_fails_is_told_and_leaves_the_old_file(bucket, monkeypatch):
    place = storage.local("memory://bucket/a")
    place.parent.mkdir(parents=True)
    atomic_write(place, b"old")

    def full(*_: object, **__: object) -> None:
        raise PermissionError("quota")

    monkeypatch.setattr(MemoryFileSystem, "put_file", full)
    with pytest.raises(storage.StorageError, match=r"memory://bucket/a: expected storage .* quota"):
        atomic_write(place, b"new")
    assert bucket.cat("/bucket/a") == b"old"


def test_rows_may_name_urls_and_their_paths_start_at_their_manifest(bucket, studio):
    for name in ("photo", "gold"):
        bucket.put_file(str(studio / f"{name}.png"), f"/bucket/pictures/{name}.png")
    rows = "content,style\npictures/photo.png,memory://bucket/pictures/gold.png\npictures/none.png,pictures/gold.png\n"
    bucket.pipe("/bucket/rows.csv", rows.encode())
    wrong = []
    (triple,) = read_manifest(storage.local("memory://bucket/rows.csv"), wrong)
    named = (triple.content, triple.regions[0].style)
    assert [storage.told(path) for path in named] == [f"memory://bucket/pictures/{n}.png" for n in ("photo", "gold")]
    assert "looked for memory://bucket/pictures/none.png" in str(wrong[0])


def test_a_lora_in_a_store_is_not_renamed_or_deleted_on_this_disk_alone(bucket):
    library = LoRALibrary(storage.local("memory://bucket/loras"))
    identity = LoRAIdentity("style", "gold", "a" * 64, "model", {})
    entry = library.publish(identity, lambda folder: (folder / "weights").write_bytes(b"w") and None)
    there = bucket.find("/bucket")
    for act in (lambda: library.rename(entry, "x"), lambda: library.delete(entry)):
        with pytest.raises(DiffstylerError, match="memory://bucket/loras: expected a library on a disk"):
            act()
    assert bucket.find("/bucket") == there != []
    assert entry.folder.is_dir()


def everything_at(root: str, folder: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fit, then predict, then both again on another machine, with every path below ``root``."""
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    here = [*model, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    rows = ["--data.manifest", f"{root}/rows.csv", "--lora_dir", f"{root}/loras"]
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--model.rank", "2"]
    fit = ["fit", *here, *rows, *size, "--trainer.max_steps", "2", "--model.checkpoint_every", "1"]
    steps = ["--model.num_inference_steps", "2", "--model.cache_dir", f"{root}/cache"]
    predict = ["predict", *here, *rows, *steps, "--output_dir", f"{root}/out"]
    assert main(fit) == main(predict) == 0
    fs = fsspec.url_to_fs(root)[0]
    made = {name: fs.ukey(name) for name in fs.find(root) if name.endswith((".png", ".safetensors"))}
    monkeypatch.setenv(storage.MOUNTS, str(folder / "another machine's"))
    monkeypatch.setattr(storage, "_fetched", set())
    assert main(fit) == main(predict) == 0
    assert made == {name: fs.ukey(name) for name in made}  # nothing was made twice


def check_everything(fs: fsspec.AbstractFileSystem, root: str) -> None:
    names = {name.split("bucket/", 1)[1] for name in fs.find(root)}
    beside = {name.rsplit("/", 1)[-1] for name in names if name.startswith("loras/")}
    assert beside >= {"pytorch_lora_weights.safetensors", "diffstyler.json"}
    assert {"out/photo-gold.png", "out/photo-gold.json", "out/index.html"} <= names
    assert any(name.startswith("cache/") for name in names)
    assert not [name for name in names if ".tmp" in name or ".pt" in name or "probe" in name]
    told = json.loads(fs.cat(f"{root}/out/photo-gold.json"))
    assert told["content"]["path"].endswith("bucket/photo.png")
    assert "://" in told["regions"][0]["lora"]["path"]


def upload(fs: fsspec.AbstractFileSystem, root: str, studio: Path) -> None:
    for name in ("photo", "gold"):
        fs.put_file(str(studio / f"{name}.png"), f"{root}/{name}.png")
    text = io.StringIO()
    csv.writer(text).writerows([("content", "style"), ("photo.png", "gold.png")])
    fs.pipe_file(f"{root}/rows.csv", text.getvalue().encode())


def test_a_whole_run_on_s3(s3, studio, tiny_dir, monkeypatch):
    upload(s3, "bucket", studio)
    everything_at("s3://bucket", studio, tiny_dir, monkeypatch)
    s3.invalidate_cache()
    check_everything(s3, "bucket")
    assert len(LoRALibrary(storage.local("s3://bucket/loras")).entries()) == 1
