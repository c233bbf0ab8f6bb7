"""LoRA adapters: many on one frozen model, files in and out, and a library of fitted ones."""

from diffstyler.adapters.files import (
    WEIGHTS_NAME,
    LoRA,
    LoRAFileError,
    lora_scale,
    read_lora,
    save_kohya,
    save_lora,
)
from diffstyler.adapters.inspection import inspect_lora
from diffstyler.adapters.library import FittedLoRA, LoRAIdentity, LoRALibrary, read_record
from diffstyler.adapters.pack import LoRAPack, Rows, pack_for

__all__ = [
    "WEIGHTS_NAME",
    "FittedLoRA",
    "LoRA",
    "LoRAFileError",
    "LoRAIdentity",
    "LoRALibrary",
    "LoRAPack",
    "Rows",
    "inspect_lora",
    "lora_scale",
    "pack_for",
    "read_lora",
    "read_record",
    "save_kohya",
    "save_lora",
]
