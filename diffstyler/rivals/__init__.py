"""Other methods of style transfer, each from its paper, on the same model, pictures and LoRAs."""

from diffstyler.rivals.base import Rival, Studio, Task
from diffstyler.rivals.blora import BLoRA
from diffstyler.rivals.magenta import Magenta
from diffstyler.rivals.plug_and_play import PlugAndPlay
from diffstyler.rivals.sdedit import SDEdit
from diffstyler.rivals.style_id import StyleID
