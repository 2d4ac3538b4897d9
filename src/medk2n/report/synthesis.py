"""One self-contained HTML file about one synthesis: opens from disk, needs no network and no script."""

from typing import TYPE_CHECKING, Any

import numpy as np

import medk2n
from medk2n.data.patient import patient
from medk2n.io.volume import Volume
from medk2n.report.figures import View, display_range, stage_png, strip_png
from medk2n.report.outputs import run_facts, scaling_facts, sources
from medk2n.report.page import flat, render
from medk2n.report.words import quality_words
from medk2n.vocabulary import MODALITIES

if TYPE_CHECKING:
    from medk2n.inference.synthesizer import Explanation, Synthesis

MOST_BYTES = 10_000_000
_RESOLUTIONS_DPI = (120, 90, 60, 40)  # the first that keeps the file under MOST_BYTES


def render_report(synthesis: "Synthesis", study_id: str) -> str:
    """The report as HTML text, at most `MOST_BYTES` long."""
    html = ""
    for dpi in _RESOLUTIONS_DPI:
        html = render("synthesis.html.j2", _context(synthesis, study_id, dpi))
        if len(html.encode()) <= MOST_BYTES:
            break
    return html


def _context(synthesis: "Synthesis", study_id: str, dpi: int) -> dict[str, Any]:
    reference = synthesis.inputs[synthesis.reference]
    inside = patient(reference)  # of all images alike: they lie on its grid
    view = View.around(reference, inside=inside)
    return {
        "study": study_id,
        "version": medk2n.__version__,
        "inputs": [_column(volume, view, inside, dpi, synthetic=False) for volume in synthesis.inputs.values()],
        "outputs": [_column(volume, view, inside, dpi, synthetic=True) for volume in synthesis.volumes.values()],
        "targets": [_target(synthesis, name, view, inside, dpi) for name in synthesis.volumes],
        "sources": sources(synthesis),
        "reference": synthesis.reference,
        "grid": {
            "shape": " x ".join(map(str, reference.grid.shape)),
            "spacing": " x ".join(f"{edge:.3g}" for edge in reference.grid.spacing_mm),
        },
        "warnings": synthesis.record.get("warnings", []),
        "record": flat(run_facts(synthesis)),
        "model": str(synthesis.record.get("model", "unnamed model")),
        "methods": methods_text(synthesis),
    }


def _column(volume: Volume, view: View, inside: np.ndarray, dpi: int, *, synthetic: bool) -> dict[str, Any]:
    return {
        "name": volume.modality,
        "label": MODALITIES[volume.modality].label,
        "image": strip_png(volume, view, display_range(volume, inside), synthetic=synthetic, dpi=dpi),
    }


def _target(synthesis: "Synthesis", name: str, view: View, inside: np.ndarray, dpi: int) -> dict[str, Any]:
    volume, explanation = synthesis.volumes[name], synthesis.explanations[name]
    word, sentence = quality_words(explanation.predicted_psnr_db)
    return {
        "name": name,
        "label": MODALITIES[name].label,
        "unit": scaling_facts(synthesis, name)["unit"],
        "key": explanation.key,
        "image": strip_png(volume, view, display_range(volume, inside), synthetic=True, vertical=False, dpi=dpi),
        "deviation": _deviation(synthesis, name, view, inside, dpi),
        "remade": name in synthesis.inputs,
        "predicted_psnr_db": explanation.predicted_psnr_db,
        "quality_word": word,
        "quality_sentence": sentence,
        "bars": bars(explanation.contribution_db),
        "stages": _stages(explanation),
        "orders": explanation.progression.orders,
        "order_deviation": 100 * explanation.progression.order_deviation,
        "method": explanation.contribution_method,
        "scaling": scaling_facts(synthesis, name),
    }


def _stages(explanation: "Explanation") -> list[dict[str, Any]]:
    """The progressive strip: the target after each frame, what the frame was worth and why it was let in or not."""
    rows: list[dict[str, Any]] = []
    before = None
    final = explanation.progression.stages[-1].image
    low, high = np.percentile(final[final > 0], [0.5, 99.5]) if final.any() else (0.0, 1.0)
    for step, stage in zip(explanation.steps, explanation.progression.stages, strict=True):
        rows.append(
            {
                "source": step.source,
                "image": stage_png(stage.image, (low, high)),
                "psnr_db": stage.predicted_psnr_db,
                "gain_db": None if before is None else stage.predicted_psnr_db - before,
                "step": step,
            }
        )
        before = stage.predicted_psnr_db
    return rows


def _deviation(synthesis: "Synthesis", name: str, view: View, inside: np.ndarray, dpi: int) -> dict[str, Any] | None:
    volume = synthesis.deviations.get(name)
    if volume is None:
        return None
    values = volume.array[inside]
    most = float(np.percentile(values, 99)) if values.size else float(volume.array.max())
    image = strip_png(volume, view, (0.0, most), synthetic=True, colours="magma", vertical=False, dpi=dpi)
    return {"image": image, "most": f"{most:.3g}"}


def bars(contribution_db: dict[str, float]) -> list[dict[str, Any]]:
    """One bar per input, largest first; width in percent of the largest magnitude."""
    largest = max((abs(value) for value in contribution_db.values()), default=0.0) or 1.0
    rows = sorted(contribution_db.items(), key=lambda item: -item[1])
    return [
        {"source": source, "db": value, "width": 100 * abs(value) / largest, "helps": value >= 0}
        for source, value in rows
    ]


def methods_text(synthesis: "Synthesis") -> str:
    """A paragraph for the methods section of a paper."""
    targets = ", ".join(MODALITIES[name].label for name in synthesis.volumes)
    inputs = ", ".join(MODALITIES[name].label for name in synthesis.inputs)
    model = synthesis.record.get("model", "unnamed")
    digest = str(synthesis.record.get("model_sha256", ""))[:12] or "unknown"
    return (
        f"Synthetic images ({targets}) were predicted from acquired images ({inputs}) with medk2n "
        f"{medk2n.__version__}, an implementation of the Med-K2N method (arXiv 2510.02815), "
        f"model {model} (SHA-256 {digest}...), on the voxel "
        f"grid of the {MODALITIES[synthesis.reference].label} image. Synthetic images were not used for diagnosis."
    )
