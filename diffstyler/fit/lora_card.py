"""What lies beside a LoRA for people to read: thumbnail, loss curve, preview, README."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from diffstyler.adapters import WEIGHTS_NAME, LoRAIdentity
from diffstyler.images import load_image

README = """\
# {name}

A {role} LoRA for diffusers / peft, fitted by diffstyler to `{name}`.

![picture](thumbnail.png) ![what it draws](preview.png)

Prompt: `{prompt}`

```python
pipeline.load_lora_weights("path/to/this/folder", weight_name="{weights}")
```

Final loss (mean of the last {tail} steps): {loss:.4f}

![loss](loss.png)

```json
{settings}
```
"""


def write_lora_report(
    folder: Path, identity: LoRAIdentity, picture: Path, losses: list[float], preview: Image.Image | None
) -> None:
    """Write ``thumbnail.png``, ``loss.png``, ``preview.png`` and ``README.md`` into a LoRA's folder."""
    thumbnail = load_image(picture)
    thumbnail.thumbnail((256, 256))
    thumbnail.save(folder / "thumbnail.png")
    if preview is not None:
        preview.save(folder / "preview.png")
    _plot_losses(losses, folder / "loss.png")
    tail = losses[-max(1, len(losses) // 5) :]
    text = README.format(
        name=identity.name,
        role=identity.role,
        prompt=identity.settings["prompt"],
        weights=WEIGHTS_NAME,
        tail=len(tail),
        loss=sum(tail) / len(tail),
        settings=json.dumps(identity.settings, indent=2, sort_keys=True),
    )
    if preview is None:
        text = text.replace(" ![what it draws](preview.png)", "")
    (folder / "README.md").write_text(text, encoding="utf-8")


def _plot_losses(losses: list[float], path: Path) -> None:
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
