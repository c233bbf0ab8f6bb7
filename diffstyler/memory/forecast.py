"""A model by its configuration, and a size of pictures -> operations and memory of fit and predict, nothing loaded.

The UNet and the autoencoder run on tensors without data; every tensor that would be alive is counted.
"""

# diffusers annotates few of its attributes
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar
from unittest import mock

import torch
from peft import LoraConfig
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.backbones import Backbone
from diffstyler.backbones.latent_diffusion import LatentDiffusion
from diffstyler.backbones.quantization import quantizable
from diffstyler.errors import DiffstylerError

Size = Callable[[int, int], tuple[int, int]]
#: decoding a tile of 512 x 512 pixels in fp32
TILE_BYTES = 2.5 * 2**30
#: what allocators and kernels take besides the tensors
MARGIN = 1.2
#: of libraries' workspaces, whatever the size: what an H200 held for SD 1.5, 2.1 and XL is met within 13 % so
WORKSPACE = 0.5 * 2**30
#: of a LoRA's parameters while it is fitted: weights, gradient, and AdamW's two moments, in 4 bytes each
STATES = 4 * 4
#: bits of a quantized weight, its scales included
QUANTIZED_BITS = {"nf4": 4.5, "int8": 8.1}


@dataclass(frozen=True)
class Growth:
    """Bytes for so many rows: ``fixed + each * rows``."""

    fixed: float
    each: float

    def at(self, rows: int) -> float:
        return self.fixed + self.each * rows


@dataclass(frozen=True)
class FitForecast:
    """What fitting costs at one size; bytes are peaks of what is alive besides the weights.

    Attributes:
        network_bytes: of the weights.
        row_flops: of one row's forward.
        training: of a forward and backward with a LoRA for every row.
        checkpointed: the same with gradient checkpointing.
        lora_parameters: of one LoRA.
        latents: the shape of one picture's (C, h, w).
    """

    network_bytes: float
    row_flops: float
    training: Growth
    checkpointed: Growth
    lora_parameters: int
    latents: tuple[int, ...]

    def bytes(self, slots: int, batch_size: int, *, checkpointing: bool) -> float:
        """At the peak of a step of ``slots`` LoRAs; the encoders are off the device by then."""
        rows = self.checkpointed if checkpointing else self.training
        alive = self.network_bytes + rows.at(slots * batch_size) + slots * STATES * self.lora_parameters
        return WORKSPACE + MARGIN * alive

    def flops(self, steps: int, batch_size: int) -> float:
        """Of one LoRA: a training step costs 2.13 forwards, the base being frozen."""
        return 2.13 * self.row_flops * steps * batch_size


@dataclass(frozen=True)
class PredictForecast:
    """What stylizing costs at one size; bytes are peaks of what is alive besides the weights.

    Attributes:
        network_bytes, vae_bytes, text_bytes: of the weights.
        row_flops: of one row's forward.
        forward: of a forward of the UNet.
        decode_bytes: of decoding one picture.
        lora_parameters: of one LoRA.
        latents: the shape of one picture's (C, h, w).
    """

    network_bytes: float
    vae_bytes: float
    text_bytes: float
    row_flops: float
    forward: Growth
    decode_bytes: float
    lora_parameters: int
    latents: tuple[int, ...]

    def bytes(self, rows: int, styles: int, *, offload: bool = False, tiling: bool = False) -> float:
        """At the peak of a picture with so many rows in a UNet call, or of its decoding."""
        idle = 0.0 if offload else self.vae_bytes + self.text_bytes
        decoding = self.vae_bytes + (min(self.decode_bytes, TILE_BYTES) if tiling else self.decode_bytes)
        resident = self.network_bytes + styles * 4 * self.lora_parameters
        return WORKSPACE + MARGIN * (resident + max(idle + self.forward.at(rows), idle * (not offload) + decoding))


def forecast_fit(backbone: Backbone, size: Size, dtype: torch.dtype, lora: LoraConfig) -> FitForecast:
    """What fitting LoRAs on ``backbone``, not loaded, costs for crops of one size.

    Args:
        backbone: its configurations are read, its weights are not.
        size: the model's resolution and the multiple that sides must be of -> (height, width), all in pixels.
        dtype: of the weights and of what training computes in.
        lora: of every LoRA.

    Raises:
        ValueError: there are no configurations to build it from, or the LoRA's targets match nothing.
    """
    with _outlined(backbone, size, dtype) as (outline, latents):
        training, checkpointed = (
            _growth(lambda rows, on=on: _training_bytes(outline, rows, latents, lora, dtype, checkpointing=on))
            for on in (False, True)
        )
        return FitForecast(
            _network_bytes(outline, dtype),
            _row_flops(outline, latents),
            training,
            checkpointed,
            _lora_parameters(outline, lora),
            latents,
        )


def forecast_predict(backbone: Backbone, size: Size, dtype: torch.dtype, lora: LoraConfig) -> PredictForecast:
    """What stylizing with ``backbone``, not loaded, costs for pictures of one size; arguments as of a fit."""
    with _outlined(backbone, size, dtype) as (outline, latents):
        network, vae = (sum(p.numel() for p in part.parameters()) for part in (outline.network, outline.vae))
        text = max(outline.source.parameter_count() - network - vae, 0)
        return PredictForecast(
            _network_bytes(outline, dtype),
            vae * outline.vae.dtype.itemsize,
            text * dtype.itemsize,
            _row_flops(outline, latents),
            _growth(lambda rows: _forward_bytes(outline, rows, latents)),
            _decode_bytes(outline, latents),
            _lora_parameters(outline, lora),
            latents,
        )


@contextmanager
def _outlined(backbone: Backbone, size: Size, dtype: torch.dtype) -> Iterator[tuple[LatentDiffusion, tuple[int, ...]]]:
    """Another of its kind on tensors without data, and the shape of one picture's latents."""
    if not isinstance(backbone, LatentDiffusion):
        raise DiffstylerError(f"no forecast for a {type(backbone).__name__}; leave max_memory out")
    with torch.device("meta"):
        outline = backbone.outline(dtype)
        sides = size(outline.resolution, outline.size_multiple)
        yield outline, (outline.latent_channels, *(side // outline.size_multiple for side in sides))


def _network_bytes(backbone: LatentDiffusion, dtype: torch.dtype) -> float:
    total = sum(p.numel() for p in backbone.network.parameters())
    if backbone.quantization is None:
        return total * dtype.itemsize
    fewer = sum(layer.weight.numel() for layer in quantizable(backbone.network).values())
    return (total - fewer) * dtype.itemsize + fewer * QUANTIZED_BITS[backbone.quantization] / 8


def _lora_parameters(backbone: LatentDiffusion, lora: LoraConfig) -> int:
    pack = LoRAPack(backbone.network, lora, 1)
    pack.detach()
    return pack.flat.shape[1]


def _row_flops(backbone: LatentDiffusion, latents: tuple[int, ...]) -> float:
    with torch.no_grad(), Shapes(), FlopCounterMode(display=False) as counter:
        _predict(backbone, 1, latents)
    return counter.get_total_flops()


def share_of_matrix_rate(device: torch.device, rows: int) -> float:
    """Of a plain matrix product's rate, what a UNet reaches in calls of so many rows.

    On CUDA drawn through what an H200 measured with SD 1.5 (docs/performance.md): 0.09 for one row, 0.12 for two, 0.27
    for sixteen, 0.30 for twenty-four. Small calls are bound by launches and memory. On a CPU 0.16 … 0.25 were measured.
    """
    return 0.3 * rows / (rows + 2.3) if device.type == "cuda" else 0.2


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """What a plain matrix product reaches here, in operations a second; the best of several tries."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    timer = Timer("torch.mm(a, b)", globals={"torch": torch, "a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * n**3 / min(timer.timeit(4).mean for _ in range(10))


def network_rate(
    backbone: Backbone, forecast: FitForecast | PredictForecast, dtype: torch.dtype, rows: int, seconds: float = 2.0
) -> float:
    """What the network reaches on this CPU, in operations a second: its forwards are timed, without its weights.

    Args:
        backbone: its configurations are read.
        forecast: of it.
        dtype: of the weights.
        rows: of each forward.
        seconds: for how long; at least one forward after the first.
    """
    assert isinstance(backbone, LatentDiffusion), "there is a forecast of it"
    with torch.device("meta"):
        outline = backbone.outline(dtype)
    network = outline.network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.fill_(1e-3)
    times: list[float] = []
    with torch.no_grad():
        while len(times) < 2 or sum(times) < seconds:
            started = time.perf_counter()
            _predict(outline, rows, forecast.latents)
            times.append(time.perf_counter() - started)
    return rows * forecast.row_flops / median(times[1:])


class Shapes(TorchDispatchMode):
    """Each operation on tensors without data is worked out once for its shapes: PyTorch does that in Python, in a
    fraction of a millisecond, and a UNet has a few of them a thousand times."""

    #: (operation, what it was given) -> of each of its outputs: size, stride, dtype; kept from one forecast to the next
    known: ClassVar[dict[tuple, tuple]] = {}
    MOST = 20_000

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        key = _shapes_of(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        if (made := self.known.get(key)) is None:
            output = func(*args, **kwargs)
            if (made := _fresh(output, (args, kwargs))) is not None:
                if len(self.known) >= self.MOST:
                    self.known.clear()
                self.known[key] = made
            return output
        outputs = tuple(
            None if one is None else torch.empty_strided(one[0], one[1], dtype=one[2], device="meta") for one in made
        )
        return outputs[0] if len(outputs) == 1 else outputs


def _shapes_of(func: Any, args: tuple, kwargs: dict) -> tuple | None:
    """What decides the shapes of an operation's outputs; None where it makes no new ones, or takes some with data."""
    if not isinstance(func, torch._ops.OpOverload) or func._schema.is_mutable or func.is_view:
        return None
    tensors = 0
    key: list = [func]
    for value in (*args, *(part for item in kwargs.items() for part in item)):
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, torch.Tensor):
                if type(one) not in (torch.Tensor, torch.nn.Parameter) or not one.is_meta:
                    return None
                tensors += 1
                key += (one.shape, one.stride(), one.dtype)
            else:
                key += (type(one), one)
        key.append("end")
    return tuple(key) if tensors else None


def _fresh(output: Any, given: Any) -> tuple | None:
    """Size, stride and dtype of each output that there is; None where one is no whole tensor of its own."""
    outputs = output if isinstance(output, (list, tuple)) else (output,)
    tensors = _tensors(output)
    if not tensors or not all(one is None or (isinstance(one, torch.Tensor) and one.is_meta) for one in outputs):
        return None
    before = {one.untyped_storage()._cdata for one in _tensors(given)}
    storages = [one.untyped_storage() for one in tensors]
    if len({storage._cdata for storage in storages} - before) != len(tensors):
        return None
    again = [torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device="meta") for one in tensors]
    if [one.untyped_storage().nbytes() for one in again] != [storage.nbytes() for storage in storages]:
        return None
    return tuple(None if one is None else (one.size(), one.stride(), one.dtype) for one in outputs)


def _tensors(given: Any) -> list[torch.Tensor]:
    """Those in it, however deep."""
    if isinstance(given, torch.Tensor):
        return [given]
    if isinstance(given, dict):
        given = given.values()
    elif not isinstance(given, (list, tuple)):
        return []
    found: list[torch.Tensor] = []
    for one in given:
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple, dict)):
            found += _tensors(one)
    return found


class AliveBytes(Shapes):
    """Counts the bytes of all tensors made inside that are alive: now, and at the peak. Views of what was there before,
    such as a weight turned, take nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.setdefault(tensor.untyped_storage(), 0)
        output = super().__torch_dispatch__(func, types, args, kwargs)
        if func.is_view:
            return output
        for tensor in _tensors(output):
            if (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, size)
        return output

    def _freed(self, size: int) -> None:
        self.now -= size


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps: queries, keys, values and output, and no attention matrix."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _counting() -> Iterator[AliveBytes]:
    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return _FusedAttention.apply(query, key, value)

    with mock.patch.object(functional, "scaled_dot_product_attention", attention), AliveBytes() as alive:
        yield alive


def _growth(count: Callable[[int], int]) -> Growth:
    one, three = count(1), count(3)
    return Growth(max(one - (three - one) / 2, 0.0), (three - one) / 2)


def _predict(backbone: LatentDiffusion, rows: int, latents: tuple[int, ...]) -> torch.Tensor:
    timesteps = torch.ones(rows, dtype=torch.long)
    return backbone.predict(torch.zeros(rows, *latents), timesteps, backbone.blank_prompt(rows))


def _forward_bytes(backbone: LatentDiffusion, rows: int, latents: tuple[int, ...]) -> int:
    with torch.no_grad(), _counting() as alive:
        _predict(backbone, rows, latents)
    return alive.peak


def _training_bytes(
    backbone: LatentDiffusion,
    rows: int,
    latents: tuple[int, ...],
    lora: LoraConfig,
    dtype: torch.dtype,
    *,
    checkpointing: bool,
) -> int:
    pack = LoRAPack(backbone.network, lora, rows, dtype=dtype)
    pack.train()
    if checkpointing:
        backbone.recompute_activations()
        backbone.network.train()
    with _counting() as alive, pack.rows(Rows(None)):
        _predict(backbone, rows, latents).float().sum().backward()
    pack.detach()
    backbone.recompute_activations(False)
    backbone.network.eval()
    return alive.peak


def _decode_bytes(backbone: LatentDiffusion, latents: tuple[int, ...]) -> int:
    channels = backbone.vae.config["latent_channels"]
    with torch.no_grad(), _counting() as alive:
        backbone.vae.decode(torch.zeros(1, channels, *latents[1:], dtype=backbone.vae.dtype))
    return alive.peak
