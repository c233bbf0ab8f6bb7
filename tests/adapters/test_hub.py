"""LoRAs of the hub: fetched by id and revision, pushed after a question; against an endpoint on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml
from low_rank import random_modules
from peft import LoraConfig
from PIL import Image

from diffstyler.adapters import LoRAIdentity, read_lora, save_lora
from diffstyler.adapters.hub import is_hub_id, push_lora
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.fit.jobs import FitJob, FitPicture, FitSettings
from diffstyler.fit.lora_card import write_lora_card
from diffstyler.manifests.pictures import read_manifest

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@dataclass
class Hub:
    """Repositories by name and revision, and what was pushed."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pushed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    made: list[dict] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def answer(self, body: object, code: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if path[:2] == ["api", "models"]:
                repo, revision = "/".join(path[2:4]), path[5] if len(path) > 5 else "main"
                name = next((name for name, commit in COMMITS.items() if revision in (name, commit)), "")
                files = state.files.get(f"{repo}@{name}")
                if files is None:
                    return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
                siblings = [{"rfilename": file, "size": len(data)} for file, data in files.items()]
                if path[4:5] == ["tree"]:
                    tree = [{"type": "file", "path": f, "size": len(d), "oid": "c" * 40} for f, d in files.items()]
                    return self.answer(tree)
                return self.answer({"id": repo, "sha": COMMITS[name], "siblings": siblings})
            repo, commit, file = "/".join(path[:2]), path[3], "/".join(path[4:])
            name = next(name for name, own in COMMITS.items() if own == commit)
            data = state.files[f"{repo}@{name}"][file]
            self.answer(data, ETag=f'"{commit[:8]}-{file}"', X_Repo_Commit=commit)

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            path = self.path.partition("?")[0].strip("/").split("/")
            if path[-1] == "create":
                state.made.append(json.loads(body))
                return self.answer({"url": f"{url}/me/gold", "name": "me/gold", "id": "me/gold"})
            if path[-2:-1] == ["preupload"]:
                files = json.loads(body)["files"]
                return self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            if path[-1] == "validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            lines = [json.loads(line) for line in body.splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            state.pushed["/".join(path[2:4])] = {v["path"]: base64.b64decode(v["content"]) for v in values}
            self.answer({"commitUrl": f"{url}/me/gold/commit/1", "commitOid": "1" * 40, "success": True})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def lora(tmp_path, tiny) -> Path:
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_k"])
    save_lora(tmp_path / "gold", {"unet": random_modules(tiny.unet, config, seed=1, size=0.1)}, {"unet": config})
    (tmp_path / "gold/README.md").write_text("---\ntags: [lora]\n---\n# gold\n")
    (tmp_path / "gold/.hidden").write_text("not to be pushed")
    return tmp_path / "gold"


def served(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_lora_is_inspected_by_its_hub_id_and_revision(hub, lora, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.files["me/gold@v1"] = served(lora)
    hub.files["me/other@main"] = {"odd name.safetensors": (lora / "pytorch_lora_weights.safetensors").read_bytes()}
    for name in ("me/gold@v1", "me/other"):
        assert main(["inspect", name]) == 0
        assert json.loads(capsys.readouterr().out)["ranks"] == [2]
    hub.files["me/two@main"] = {"a.safetensors": b"", "b.safetensors": b""}
    for name, told in {"me/gold": "did the hub give it", "me/two": "expected one LoRA"}.items():
        assert main(["inspect", name]) == 1
        assert told in capsys.readouterr().err
    assert main(["inspect", "me/gold.safetensors"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_manifest_names_loras_by_hub_id(hub, lora, studio):
    hub.files["me/gold@v1"] = served(lora)
    (studio / "rows.csv").write_text("content,style\nphoto.png,me/gold@v1\nphoto.png,gold.png\n")
    rows = read_manifest(studio / "rows.csv")
    found = read_lora(rows[0].regions[0].style).parts["unet"]
    assert all(torch.equal(module.down, found[name].down) for name, module in read_lora(lora).parts["unet"].items())
    assert rows[1].regions[0].style == studio / "gold.png"
    (studio / "rows.csv").write_text("content,style\nphoto.png,me/nothing\nphoto.png,loras/nothing\n")
    with pytest.raises(DiffstylerError) as told:
        read_manifest(studio / "rows.csv")
    assert "'me/nothing' is neither a file or folder here nor did the hub give it" in str(told.value)
    assert "no such file: 'loras/nothing'" in str(told.value)


@pytest.mark.parametrize("answer", ["n", "", None])
def test_without_a_yes_nothing_is_pushed(answer, hub, lora, monkeypatch, capsys):
    def asked(question: str) -> str:
        assert "me/gold, where everybody can see them" in question
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(SystemExit) as stopped:
        main(["push", str(lora), "me/gold"])
    assert stopped.value.code == 1
    assert (hub.pushed, hub.made) == ({}, [])
    assert "nothing was pushed" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["yes", "--yes"])
def test_a_lora_is_pushed_as_it_is(way, hub, lora, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda question: way)
    flags = ["--private", "--yes"] if way == "--yes" else []
    assert main(["push", str(lora), "me/gold", *flags]) == 0
    assert capsys.readouterr().out.strip().endswith("/me/gold")
    assert hub.pushed["me/gold"] == {name: data for name, data in served(lora).items() if name != ".hidden"}
    is_private = [made.get("private") is True or made.get("visibility") == "private" for made in hub.made]
    assert is_private == [bool(flags)]


def test_what_cannot_be_pushed_is_told(lora, tmp_path):
    for folder, repo, told in (
        (lora, "gold", "expected owner/name"),
        (lora, "me/gold@v1", "expected owner/name"),
        (lora / "pytorch_lora_weights.safetensors", "me/gold", "expected the folder"),
        (tmp_path, "me/gold", "expected a LoRA folder"),
    ):
        with pytest.raises(DiffstylerError, match=told):
            push_lora(folder, repo)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("me/gold", True),
        ("me/gold@v1.0", True),
        ("gold", False),
        ("../gold", False),
        ("a/b/c", False),
        ("a/b.png", False),
    ],
)
def test_what_can_be_a_hub_id(name, expected):
    assert is_hub_id(name) is expected


@pytest.mark.parametrize(
    ("model", "base"), [("stable-diffusion-v1-5/stable-diffusion-v1-5", True), ("embedded", False)]
)
def test_the_card_has_what_the_hub_indexes(model, base, tmp_path, pictures):
    settings = FitSettings(prompt='painting of "<sss>": a cat', steps=2)
    job = FitJob(FitPicture((pictures[0],), "0", "red"), settings, LoRAIdentity("style", "red", "0", "m", {}))
    write_lora_card(tmp_path, job, [1.0, 0.5], Image.new("RGB", (8, 8)), {}, base_model=model)
    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told.get("base_model") == (model if base else None)
    assert told["instance_prompt"] == settings.prompt
    assert told["widget"] == [{"text": settings.prompt, "output": {"url": "preview.png"}}]
    assert "lora" in told["tags"]
    assert text.lstrip().startswith("# red")
