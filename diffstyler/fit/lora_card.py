"""What lies beside a LoRA for people to read: thumbnail, loss curve, preview, README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import torch
import yaml
from PIL import Image

from diffstyler.adapters import WEIGHTS_NAME
from diffstyler.adapters.hub import is_hub_id
from diffstyler.fit.jobs import FitJob
from diffstyler.images import load_image

STRIP_HEIGHT = 192  # pixels


def write_lora_card(
    folder: Path,
    job: FitJob,
    losses: Sequence[float],
    preview: Image.Image | None,
    previews: Mapping[int, torch.Tensor],
    *,
    base_model: str = "",
) -> None:
    """Write ``thumbnail.png``, ``loss.png``, ``preview.png``, ``previews.png`` and ``README.md`` into a LoRA's folder.

    Args:
        folder: of the LoRA.
        job: what it is of.
        losses: of its steps.
        preview: what it draws, or None.
        previews: what it drew on the way, by step, (H, W, 3) uint8.
        base_model: the name of the model; told to the hub where it is a hub id.
    """
    thumbnail = load_image(job.picture.paths[0])
    thumbnail.thumbnail((256, 256))
    thumbnail.save(folder / "thumbnail.png")
    if preview is not None:
        preview.save(folder / "preview.png")
    if previews:
        _strip(previews).save(folder / "previews.png")
    _plot_losses(losses, folder / "loss.png")
    template = jinja2.Environment(keep_trailing_newline=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        front=_front_matter(job, preview is not None, base_model),
        name=job.identity.name,
        role=job.settings.role,
        preview=preview is not None,
        drawn=sorted(previews),
        prompt=job.settings.prompt,
        weights=WEIGHTS_NAME,
        tail=losses[-max(1, len(losses) // 5) :],
        settings=json.dumps(job.identity.settings, indent=2, sort_keys=True),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _front_matter(job: FitJob, has_preview: bool, base_model: str) -> str:
    """What the Hugging Face Hub indexes, as YAML."""
    prompt = job.settings.prompt
    front: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "tags": ["diffstyler", "diffusers", "lora", "style-transfer"],
        "instance_prompt": prompt,
    }
    if is_hub_id(base_model) and not Path(base_model).exists():
        front["base_model"] = base_model
    if has_preview:
        front["widget"] = [{"text": prompt, "output": {"url": "preview.png"}}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _strip(previews: Mapping[int, torch.Tensor]) -> Image.Image:
    """Side by side, in order of their steps."""
    pictures = [Image.fromarray(previews[step].numpy()) for step in sorted(previews)]
    pictures = [one.resize((STRIP_HEIGHT * one.width // one.height, STRIP_HEIGHT)) for one in pictures]
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), STRIP_HEIGHT))
    at = 0
    for picture in pictures:
        strip.paste(picture, (at, 0))
        at += picture.width
    return strip


_TEMPLATE = Path(__file__).with_name("lora_card.md.j2")


def _plot_losses(losses: Sequence[float], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.12, 0.16, 0.86, 0.8))  # a computed layout takes as long as all the rest
    axes.plot(losses, color="#9bb", linewidth=0.8, label="loss")
    window = max(1, len(losses) // 10)
    means = [sum(losses[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(losses))]
    axes.plot(means, color="#135", label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=100)
