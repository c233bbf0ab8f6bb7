"""What libraries say, and write, of their own accord: how it is kept away from the user and from other folders."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

#: on choices that are ours, as patterns for :func:`warnings.filterwarnings`

LIBRARY_CHATTER = (
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*module\(s\) in eval mode at the start of training",  # the base model is frozen
    r".*does not have many workers",  # rows are paths and words
    r".*You have overridden `transfer_batch_to_device`",
    r".*`LightningModule.configure_optimizers` returned",
    # Lightning's CLI calls them
    r"\s*(``(ArgumentParser.add_instantiator|instantiate_classes)``|skip_none parameter) was deprecated",
    r"\s*By default only one JsonargparseDeprecationWarning",
)

#: loggers, and the level from which on they are heard: diffusers' optional backends announce at import what they cannot
#: do here; `attention` probes for itself
LOGGERS = {
    **dict.fromkeys(("xformers", "bitsandbytes", "diffusers", "torchao"), logging.ERROR),
    **dict.fromkeys(("httpx", "matplotlib", "PIL", "fsspec", "lightning.pytorch", "lightning.fabric"), logging.WARNING),
}
_SETTINGS = "diffstyler-ultralytics-"


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries remark on choices that are ours; afterwards they say again what they would."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    with warnings.catch_warnings():
        for message in LIBRARY_CHATTER:
            warnings.filterwarnings("ignore", message)
        try:
            _set_levels(LOGGERS)
            yield
        finally:
            _set_levels(levels)


def _set_levels(levels: Mapping[str, int]) -> None:
    for name, level in levels.items():
        logger = logging.getLogger(name)
        if logger.level != level:  # each setting looks through all loggers of the process
            logger.setLevel(level)


def redirect_ultralytics() -> None:
    """Whoever imports ultralytics after this gets a settings folder that goes with the process, and no network."""
    if _SETTINGS not in os.environ.get("YOLO_CONFIG_DIR", ""):  # else the process that started this one cleans up
        folder = Path(tempfile.gettempdir()) / f"{_SETTINGS}{secrets.token_hex(8)}"
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["YOLO_CONFIG_DIR"] = str(folder)
    os.environ.update(YOLO_AUTOINSTALL="false", YOLO_OFFLINE="true", YOLO_VERBOSE="false", ULTRALYTICS_SAFE_LOAD="1")
