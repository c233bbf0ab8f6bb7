"""`diffstyler test`: figures of every picture of a folder, as JSON Lines, as a table, and in the contact sheet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write
from diffstyler.metrics.base import FIGURES_NAME, Metric, NotComputedError, Sample, SetMetric
from diffstyler.metrics.content import CFSD, LPIPS, SSIM, DINOSimilarity, EdgeAgreement
from diffstyler.metrics.networks import Networks
from diffstyler.metrics.region import OutsideDifference, SeamEnergy
from diffstyler.metrics.samples import find_results, read_samples
from diffstyler.metrics.style import (
    ArtFID,
    CLIPSimilarity,
    GramDistance,
    MagentaStyle,
    PaletteDistance,
    PatchDistance,
)

log = logging.getLogger(__name__)

TABLE_NAME = "figures.md"


@dataclass(frozen=True)
class Battery:
    """The metrics of a run; ``missing``: by the names of the figures, why the others are not computed."""

    metrics: Sequence[Metric]
    set_metrics: Sequence[SetMetric]
    missing: Mapping[str, str]

    @classmethod
    def of(cls, networks: Networks) -> Battery:
        """All that these networks allow."""
        metrics: list[Metric] = [SSIM(), EdgeAgreement(), PatchDistance(), PaletteDistance()]
        metrics += [OutsideDifference(), SeamEnergy()]
        set_metrics: list[SetMetric] = []
        missing: dict[str, str] = {}
        asked: list[tuple[type[Metric] | type[SetMetric], Callable[[], Metric | SetMetric]]] = [
            (LPIPS, lambda: LPIPS(networks.alexnet)),
            (CFSD, lambda: CFSD(networks.vgg)),
            (DINOSimilarity, lambda: DINOSimilarity(networks.dino)),
            (GramDistance, lambda: GramDistance(networks.vgg)),
            (CLIPSimilarity, lambda: CLIPSimilarity(networks.clip)),
            (MagentaStyle, MagentaStyle),
            (ArtFID, lambda: ArtFID(networks.inception)),
        ]
        for kind, make in asked:
            try:
                made = make()
            except NotComputedError as error:
                missing |= dict.fromkeys(kind.figures, str(error))
                continue
            if isinstance(made, Metric):
                metrics.append(made)
            else:
                set_metrics.append(made)
        if "lpips" in missing and "artfid" not in missing:
            missing["artfid"] = missing["lpips"]
        return cls(metrics, set_metrics, missing)

    @property
    def more_is_better(self) -> dict[str, bool]:
        """Of every figure that is computed."""
        named = {k: v for metric in (*self.metrics, *self.set_metrics) for k, v in metric.figures.items()}
        return {name: more for name, more in named.items() if name not in self.missing}

    def __call__(self, samples: Iterable[Sample]) -> Figures:
        """Measure all; each picture is read once and let go."""
        rows, keys = {}, {}
        for sample in samples:
            keys[sample.id] = sample.key
            rows[sample.id] = {k: v for metric in self.metrics for k, v in metric(sample).items()}
            for whole in self.set_metrics:
                whole.add(sample, rows[sample.id])
        together = {k: v for whole in self.set_metrics for k, v in whole.compute().items()}
        modes = {name: whole.mode for whole in self.set_metrics for name in whole.figures}
        return Figures(rows, together, self.more_is_better, self.missing, modes, keys)


@dataclass(frozen=True)
class Figures:
    """What was measured: ``rows`` by picture, ``together`` of all pictures; ``keys`` tell what made each picture."""

    rows: Mapping[str, Mapping[str, float]]
    together: Mapping[str, float]
    more_is_better: Mapping[str, bool]
    missing: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows.values() if name in row]

    def json_lines(self) -> str:
        """A line for each picture, then one of all."""
        lines: list[dict[str, object]] = [
            {"id": id, "key": self.keys.get(id, ""), **row} for id, row in self.rows.items()
        ]
        means = {name: float(np.mean(own)) for name in self.more_is_better if (own := self.values(name))}
        lines.append({"pictures": len(self.rows), **means, **self.together, "not_computed": dict(self.missing)})
        return "".join(json.dumps(line) + "\n" for line in lines)

    def table(self) -> str:
        """Markdown: mean and 95 % bootstrap interval of every figure, the number of pictures, and what is missing."""
        lines = ["| figure | better | mean | 95 % interval | pictures |", "|---|---|---|---|---|"]
        for name, more in self.more_is_better.items():
            better, values = "more" if more else "less", self.values(name)
            if name in self.together:
                mode = f" ({self.modes[name]})" if self.modes.get(name) else ""
                lines.append(f"| {name} | {better} | {self.together[name]:.4g}{mode} | – | {len(self.rows)} |")
            elif values:
                low, high = bootstrap(values)
                lines.append(f"| {name} | {better} | {np.mean(values):.4g} | {low:.4g} … {high:.4g} | {len(values)} |")
            else:
                lines.append(f"| {name} | {better} | – | – | 0 |")
        lines += [f"| {name} | | not computed: {reason} | | |" for name, reason in self.missing.items()]
        return "\n".join(lines) + "\n"


def measure(
    output_dir: Path = Path("stylized"),
    manifest: Path | None = None,
    *,
    networks: Networks | None = None,
    resolution: int = 256,
) -> Figures:
    """Measure the pictures of a folder, and write figures.jsonl and figures.md into it.

    Args:
        output_dir: where diffstyler predict has written.
        manifest: measure its pictures, all of which must be there; None = all that lie in the folder.
        networks: where weights for further figures are.
        resolution: the short side that pictures are compared at.

    Raises:
        DiffstylerError: there is nothing to measure, or a picture of the manifest cannot be measured.
    """
    if resolution < 64:
        raise DiffstylerError(f"resolution: expected at least 64 pixels, got {resolution}")
    sidecars = find_results(output_dir, manifest)
    with torch.no_grad():
        figures = Battery.of(networks or Networks())(read_samples(sidecars, resolution))
    if not figures.rows:
        raise DiffstylerError(f"{output_dir}: none of {len(sidecars)} pictures could be measured; the log tells why")
    if manifest is not None and len(figures.rows) < len(sidecars):
        left_out = [path.stem for path in sidecars if path.stem not in figures.rows]
        raise DiffstylerError(
            f"{output_dir}: {len(left_out)} of {len(sidecars)} pictures of {manifest} could not be measured "
            f"({', '.join(left_out[:3])}{', …' if len(left_out) > 3 else ''}); the log tells why. Leave the manifest "
            "out to measure the others"
        )
    atomic_write(output_dir / FIGURES_NAME, figures.json_lines().encode())
    atomic_write(output_dir / TABLE_NAME, figures.table().encode())
    return figures


def bootstrap(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the mean over pictures drawn with replacement (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = rng.choice(np.asarray(values), (draws, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
