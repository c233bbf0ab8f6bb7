"""What the studio asks of whoever knows the command line: models by the same settings as the commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.predict.stylizer import Stylizer

#: settings of predict or fit by their names on the command line, such as ``model.num_inference_steps``
Settings = Mapping[str, object]


class Engine(ABC):
    """Makes what fits and stylizes; the frozen model is loaded once.

    ``lora_dir``: the library. ``precision``, ``accelerator``: Lightning's.
    """

    lora_dir: Path
    precision: str = "32-true"
    accelerator: str = "auto"

    @abstractmethod
    def stylizer(self, preset: str, settings: Settings, output_dir: Path) -> Stylizer:
        """By a preset, ``configs/<preset>.yaml``, and what differs from it.

        Raises:
            DiffstylerError: a setting is wrong.
        """

    @abstractmethod
    def finetuner(self, settings: Settings) -> tuple[LoRAFinetuner, FitData]:
        """By fit's preset and what differs from it; the pictures of the data are replaced.

        Raises:
            DiffstylerError: a setting is wrong.
        """

    @abstractmethod
    def command(self, preset: str, settings: Settings, manifest: str) -> str:
        """The command line that makes a manifest's pictures as :meth:`stylizer` does."""
