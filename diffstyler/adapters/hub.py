"""LoRAs on the Hugging Face Hub: ``owner/name`` or ``owner/name@revision`` in, a folder or file here out; and back."""

from __future__ import annotations

import re
from pathlib import Path

from diffstyler.adapters.files import PEFT_NAME, WEIGHTS_NAME, lora_files
from diffstyler.errors import DiffstylerError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
#: what of a repository is fetched
FETCHED = ("*.safetensors", "adapter_config.json", "*/adapter_config.json", "diffstyler.json", "thumbnail.png")


def is_hub_id(name: str) -> bool:
    """Whether it can be one; a file's name, with its suffix, is none."""
    ends = (".safetensors", ".png", ".jpg", ".jpeg", ".webp", ".csv", ".bin", ".pt", ".ckpt")
    return bool(_ID.fullmatch(name)) and not name.lower().endswith(ends)


def lora_at(name: str) -> Path:
    """The folder or file of a LoRA by its path here, or else fetched by its hub id; the hub's cache keeps it.

    Raises:
        DiffstylerError: it is neither, or the hub does not give it.
    """
    return Path(name) if Path(name).exists() or not is_hub_id(name) else fetch_lora(name)


def fetch_lora(name: str) -> Path:
    """What the hub has under ``owner/name``, or ``owner/name@revision`` (a branch, tag or commit).

    Raises:
        DiffstylerError: the hub does not give it, or there is not one LoRA in it.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FETCHED)))
    except (OSError, ValueError) as error:
        raise DiffstylerError(
            f"'{name}' is neither a file or folder here nor did the hub give it ({_first_line(error)}); expected "
            "owner/name or owner/name@revision"
        ) from error
    if any((folder / there).is_file() for there in (WEIGHTS_NAME, PEFT_NAME, f"unet/{PEFT_NAME}")):
        return folder
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DiffstylerError(f"hub '{name}': expected one LoRA, a .safetensors file, got {names}")
    return files[0]


def files_to_push(lora: Path) -> list[Path]:
    """What of a LoRA's folder goes to the hub.

    Raises:
        DiffstylerError: it is no LoRA's folder.
    """
    if not lora.is_dir():
        raise DiffstylerError(f"{lora}: expected the folder of a LoRA, with its README.md")
    lora_files(lora)
    return sorted(file for file in lora.iterdir() if file.is_file() and not file.name.startswith("."))


def push_lora(lora: Path, repo: str, *, private: bool = False) -> str:
    """Upload a LoRA's folder as one commit, in a repository that is made if it is not there -> its address.

    Raises:
        DiffstylerError: the hub refuses.
    """
    from huggingface_hub import HfApi

    if "@" in repo or not is_hub_id(repo):
        raise DiffstylerError(f"expected owner/name, got '{repo}'")
    names, api = [file.name for file in files_to_push(lora)], HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=lora, allow_patterns=names, commit_message=f"diffstyler: {lora.name}"
        )
    except (OSError, ValueError) as error:
        raise DiffstylerError(f"the hub did not take {repo} ({_first_line(error)}); `hf auth login` first?") from error
    return f"{api.endpoint}/{repo}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
