"""LoRA adapters: many on one frozen model, files in and out, and a library of fitted ones."""

from diffstyler.adapters.files import WEIGHTS_NAME, LoRAFileError, lora_files, lora_scale, read_lora, save_lora
from diffstyler.adapters.hub import lora_at
from diffstyler.adapters.inspection import inspect_lora
from diffstyler.adapters.kohya import FAMILIES, export_lora, kohya_family, save_kohya
from diffstyler.adapters.library import FittedLoRA, LoRAIdentity, LoRALibrary, read_record
from diffstyler.adapters.lora import LoRA, LowRank, largest_rank
from diffstyler.adapters.pack import LoRAPack, Rows, by_part, match_modules, pack_of_parts
