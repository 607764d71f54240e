"""Grad-CAM of a network and of compressed ones, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rankfold._documents import Limits
from rankfold.reporting import words
from rankfold.reporting.document import Document
from rankfold.reporting.markup import Markup, el
from rankfold.reporting.sections import Content, Section, content


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapLevel:
    """The maps of one compressed network.

    Parameters
    ----------
    name : str
        Such as its budget.
    params : int
        Its parameters.
    similarity : tuple of float
        Cosine similarity of its map and the original's, by image.
    predicted : tuple of int
        Its prediction, by image.
    overlays : tuple of str
        The images under its maps: PNG files in base64.
    """

    name: str
    params: int
    similarity: tuple[float, ...]
    predicted: tuple[int, ...]
    overlays: tuple[str, ...]

    @property
    def mean(self) -> float:
        """The mean similarity."""
        return sum(self.similarity) / len(self.similarity)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeatMaps(Document):
    """Grad-CAM of a network and of compressed ones on the same images; `rankfold.gradcam` returns it.

    Parameters
    ----------
    layer : str
        The module whose feature map is weighted.
    params : int
        Parameters of the original.
    predicted : tuple of int
        The original's prediction, by image: the class that all maps explain.
    images, overlays : tuple of str
        The images, alone and under the original's maps: PNG files in base64.
    levels : tuple of HeatMapLevel
        The compressed networks.
    unrelated : float or None
        Mean similarity of the original's maps of two different images; None for a single image.
    model_name : str
        The model's name; may be empty.
    created : str
        Date and time (UTC, ISO 8601).
    """

    KIND: ClassVar[str] = "gradcam"
    LIMITS: ClassVar[Limits] = Limits(size=64 * 2**20)

    layer: str
    params: int
    predicted: tuple[int, ...]
    images: tuple[str, ...]
    overlays: tuple[str, ...]
    levels: tuple[HeatMapLevel, ...] = field(default=())
    unrelated: float | None = None
    model_name: str = ""
    created: str = ""

    def __repr__(self) -> str:
        levels = ", ".join(f"{level.name}: {level.mean:.3f}" for level in self.levels)
        return f"<HeatMaps: {len(self.images)} images, similarity {levels}>"


@content.register
def _(maps: HeatMaps, *, brief: bool) -> Content:
    number = len(maps.images)
    lead = f"Grad-CAM of {number} image{'s' * (number != 1)} at layer {maps.layer}"
    rows = [
        [
            words.bound(level.name),
            f"{words.compact(level.params)} ({words.percent(level.params / maps.params)})",
            f"{level.mean:.3f}",
            f"{min(level.similarity):.3f}",
            f"{sum(a == b for a, b in zip(level.predicted, maps.predicted, strict=True))} of {number}",
        ]
        for level in maps.levels
    ]
    notes = [
        "Similarity is the cosine similarity of the map and the original's, for the class that the original predicts: "
        "1 for proportional maps."
    ]
    if maps.unrelated is not None:
        notes.append(f"For comparison, the original's maps of two different images: {maps.unrelated:.3f} on average.")
    figures = [] if brief else [_pictures(maps)]
    return Content(
        title=maps.model_name or "Grad-CAM",
        kind="rankfold gradcam",
        lead=lead,
        sections=(
            Section(
                title="Similarity of the heat maps",
                heads=("network", ">params", ">mean similarity", ">least", ">same prediction"),
                rows=rows,
                notes=notes,
            ),
            Section(title="Images", figures=figures),
        ),
    )


def _pictures(maps: HeatMaps) -> Markup:
    """Return a table of images: one row for each image, one column for each network."""
    heads = ["image", "original", *(level.name for level in maps.levels)]
    rows: list[Markup] = []
    for i, image in enumerate(maps.images):
        cells = [
            _picture(image, f"image {i + 1}", ""),
            _picture(maps.overlays[i], f"image {i + 1}, original", f"class {maps.predicted[i]}"),
        ]
        for level in maps.levels:
            caption = f"{level.similarity[i]:.3f}"
            if level.predicted[i] != maps.predicted[i]:
                caption += f", predicts {level.predicted[i]}"
            cells.append(_picture(level.overlays[i], f"image {i + 1}, {level.name}", caption))
        rows.append(el("tr", [el("td", cell) for cell in cells]))
    head = el("thead", el("tr", [el("th", words.bound(name), scope="col") for name in heads]))
    return el("div", el("table", head, el("tbody", rows), class_="maps"), class_="scroll", tabindex="0")


def _picture(png: str, text: str, caption: str) -> Markup:
    image = el("img", src=f"data:image/png;base64,{png}", alt=text)
    return el("figure", image, el("figcaption", caption) if caption else None)
