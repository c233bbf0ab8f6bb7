"""The rows of a run in; the LoRAs of those that can be made, and what is wrong with the others, out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffstyler.adapters import LoRA, LoRALibrary
from diffstyler.backbones import NETWORK, Backbone
from diffstyler.errors import DiffstylerError, RowsError, told_lines
from diffstyler.images import check_aspect, load_image, picture_sha256
from diffstyler.masking import mask_problems
from diffstyler.predict.adapter_cache import match_lora
from diffstyler.predict.adapter_resolver import ContentLoRA, ResolvedAdapters, resolve_adapters
from diffstyler.types import OnError, RowProblem, Triple

#: pictures that are looked at side by side
READERS = 4


class MissingLoRAError(RowsError):
    """Pictures without a LoRA; the text lists them all and the command that makes them."""


@dataclass(frozen=True)
class CheckedRows:
    """The LoRAs of a run, and by id why a picture of it cannot be made."""

    adapters: ResolvedAdapters
    rejected: Mapping[str, str]


def check_rows(
    triples: Sequence[Triple],
    library: LoRALibrary,
    backbone: Backbone,
    *,
    content_lora: ContentLoRA,
    allow_partial: bool,
    needs_style: bool,
    lora: str | None = None,
    fit_options: Sequence[str],
    on_error: OnError,
    wrong: Sequence[RowProblem] = (),
) -> CheckedRows:
    """Look at every content, style, mask prompt and LoRA once; arguments as of :func:`resolve_adapters`.

    Args:
        wrong: what is known to be wrong with other rows, to be told with the rest.
        on_error: "stop" = any problem is an error, "skip" = rows with one are rejected, while there are others.

    Raises:
        MissingLoRAError: LoRAs are missing, and nothing else is wrong.
        RowsError: with all problems.
    """
    pictures = _Pictures({triple.content for triple in triples})
    adapters = resolve_adapters(
        triples,
        library,
        model=backbone.fingerprint(),
        content_lora=content_lora,
        allow_partial=allow_partial,
        needs_style=needs_style,
        lora=lora,
        fit_options=fit_options,
        sha256_of=pictures.sha256,
    )
    foreign = foreign_loras(adapters.outlines, backbone, allow_partial=allow_partial)
    problems = [*adapters.problems, *mask_problems(triples)]
    unusable = pictures.faults()
    if unusable or foreign:  # else a million rows need no second look
        for triple in triples:
            if fault := unusable.get(triple.content):
                problems.append(RowProblem(triple.id, triple.origin, "content", fault))
            for region in triple.regions:
                if region.look in adapters.styles and (fault := foreign.get(adapters.style(region).path)):
                    problems.append(RowProblem(triple.id, region.origin or triple.origin, "style", fault))
    if problems:
        wrong_ids = {problem.id for problem in problems}
        order = {triple.id: number for number, triple in enumerate(triples) if triple.id in wrong_ids}
        problems.sort(key=lambda problem: order[problem.id])
    rejected = {problem.id: problem for problem in reversed([*problems, *adapters.lacking])}
    if (rejected or wrong) and (on_error == "stop" or len(rejected) == len(triples)):
        told = told_lines([*wrong, *problems])
        raise (RowsError if told else MissingLoRAError)("\n".join(filter(None, [told, adapters.how])))
    usable = {path: outline for path, outline in adapters.outlines.items() if path not in foreign}
    return CheckedRows(replace(adapters, outlines=usable), {id: str(problem) for id, problem in rejected.items()})


def foreign_loras(outlines: Mapping[Path, LoRA], backbone: Backbone, *, allow_partial: bool) -> dict[Path, str]:
    """Those that the model cannot take, and why; none are known of a model that tells its layers only when loaded."""
    try:
        with torch.device("meta"):
            has_text = any(outline.parts.keys() != {NETWORK} for outline in outlines.values())
            known = backbone if backbone.is_loaded else backbone.outline(torch.float32, text_encoders=has_text)
    except DiffstylerError:
        return {}
    models = {NETWORK: known.network, **(known.text_encoders if has_text else {})}
    faults = {}
    for path, outline in outlines.items():
        try:
            match_lora(outline, models, allow_partial=allow_partial)
        except DiffstylerError as error:
            faults[path] = str(error)
    return faults


class _Pictures:
    """Picture files, each opened once: ``picture_sha256`` of its pixels, or what is wrong with it.

    Args:
        contents: are opened at once; besides, their aspect must be one that models can draw.
    """

    def __init__(self, contents: Iterable[Path]) -> None:
        paths = sorted(contents)
        with ThreadPoolExecutor(READERS) as pool:
            self._known = dict(zip(paths, pool.map(self._look, paths), strict=True))
        self._contents = frozenset(paths)

    def sha256(self, path: Path) -> str:
        """Raises: DiffstylerError: it cannot be read."""
        sha256, _, error = self._known.get(path) or self._known.setdefault(path, self._look(path))
        if error is not None:
            raise error
        return sha256

    def faults(self) -> dict[Path, str]:
        """What is wrong with those contents that cannot be used."""
        return {content: fault for content in self._contents if (fault := self._fault(content))}

    def _fault(self, content: Path) -> str:
        _, size, error = self._known[content]
        try:
            if error is not None:
                raise error
            check_aspect(size)
        except DiffstylerError as problem:
            told = str(problem)
            return told if told.startswith(str(content)) else f"{content}: {told}"
        return ""

    @staticmethod
    def _look(path: Path) -> tuple[str, tuple[int, int], DiffstylerError | None]:
        try:
            image = load_image(path)
        except DiffstylerError as error:
            return "", (1, 1), error
        return picture_sha256(image), image.size, None
