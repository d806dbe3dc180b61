"""``demo.html``: results on one page that needs nothing else, pictures included."""

from __future__ import annotations

import base64
import html
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, overlay
from ..overlay import Spot
from ..provenance import NOTICE
from ..results import Results, Segmentation
from ..volume import Volume

_MAXIMUM_CARDS = 6
_TRUTH_COLOR = (1.0, 1.0, 1.0)

_PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>GenSeg: $title</title>
<style>
body { background: #101418; color: #d8dee4; font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1240px;
  padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; max-width: 52rem; } .note { color: #8f9ba8; } code { color: #e6c07b; }
.cards { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
.card { background: #1a2027; border-radius: 10px; padding: .9rem; }
.card h3 { margin: 0 0 .5rem; font-size: 1rem; } .card p { font-size: .9rem; }
.stack { position: relative; aspect-ratio: 1; background: #000; border-radius: 6px; overflow: hidden; }
.stack img { position: absolute; inset: 0; width: 100%; height: 100%; }
.stack .counterfactual, .stack .map { opacity: 0; }
.stack .mark { position: absolute; right: .5rem; bottom: .3rem; color: #ff6b6b; font-weight: 700; opacity: 0; }
.slide { display: flex; gap: .6rem; align-items: center; margin-top: .6rem; font-size: .85rem; }
.slide input[type=range] { flex: 1; }
table { border-collapse: collapse; font-size: .92rem; } td, th { padding: .3rem .8rem; text-align: right;
  border-bottom: 1px solid #2a323b; } td:first-child, th:first-child { text-align: left; }
.good { color: #7bd88f; } .bad { color: #ff6b6b; }
.overlay { width: 100%; border-radius: 10px; }
</style></head><body>
<h1>$title</h1>
<p><strong>$summary</strong></p>
<p class="note">$origin $notice</p>
$messages
<h2>What was found</h2>
<p>Each slider fades from the scan to its counterfactual: the same patch, regenerated without the nodule.
What disappears is the nodule; the difference gives its mask.$legend</p>
<div class="cards">$cards</div>
<h2>Measurements</h2>
$table
<h2>Overview</h2>
<img class="overlay" alt="three views and close-ups" src="$overview">
<p class="note">Made by GenSeg $version on $device in $seconds s. Files beside this page:
<code>nodules.seg.nrrd</code> opens in 3D Slicer with names, colours and codes; <code>provenance.json</code> says how
everything was made.</p>
<script>
for (const card of document.querySelectorAll(".card")) {
  const show = (name, value) => card.querySelectorAll(name).forEach(part => part.style.opacity = value);
  card.querySelector("input[type=range]")?.addEventListener("input", event => {
    show(".counterfactual", event.target.value); show(".mark", event.target.value > 0 ? 1 : 0); });
  card.querySelector(".difference")?.addEventListener("change", event => show(".map", event.target.checked ? .75 : 0));
  card.querySelector(".outlines")?.addEventListener("change", event => show(".lines", event.target.checked ? 1 : 0));
}
</script>
</body></html>
""")

_CARD = string.Template("""<div class="card"><h3 style="color: $color">$name</h3>
<div class="stack"><img alt="scan" src="$scan">$layers<img class="lines" alt="outlines" src="$lines">
<span class="mark">SYNTHETIC</span></div>
<div class="slide">scan <input type="range" min="0" max="1" step="0.02" value="0"> counterfactual</div>
<div class="slide"><label><input type="checkbox" class="outlines" checked> outlines</label>
<label><input type="checkbox" class="difference"> difference</label></div>
<p>$text</p></div>
""")


def write_page(path: Path, results: Results, image: Volume, truth: Segmentation | None = None) -> None:
    """Write the page.

    Args:
        results: with ``overlay.png`` saved beside ``path``.
        image: the scan.
        truth: what is known to be in it, on the same grid; None for a scan of a patient.
    """
    found = next(iter(results.segmentations.values()), None)
    rows = next(iter(results.tables.values()), [])
    matches = match(found, truth) if found and truth else {}
    spots = overlay.spots(found)
    cards = "".join(_card(spot, results, image, found, truth, _row_of(spot, found, rows), matches)
                    for spot in spots[:_MAXIMUM_CARDS])
    origin = "A chest phantom: drawn by a program, no patient." if truth else f"Scan: {html.escape(image.name)}."
    legend = " White outlines: the truth." if truth else ""
    page = _PAGE.substitute(
        title="Lung nodules by generative segmentation",
        summary=html.escape(results.summary),
        origin=origin,
        notice=html.escape(NOTICE),
        messages="".join(f'<p class="note">{html.escape(sentence)}</p>' for sentence in results.messages),
        legend=legend,
        cards=cards or "<p>Nothing.</p>",
        table=_table(rows, found, truth, matches),
        overview=_data_url((path.parent / "overlay.png").read_bytes()),
        version=__version__,
        device=html.escape(str(results.provenance.get("device", ""))),
        seconds=f"{results.provenance.get('duration_seconds', 0):.0f}",
    )
    path.write_text(page, encoding="utf-8", errors="replace")


def match(found: Segmentation, truth: Segmentation) -> dict[int, tuple[int, float]]:
    """Label of a true nodule -> label found that overlaps it most, and their Dice; nodules without overlap are absent.

    Both labelmaps lie on the same grid.
    """
    true_labels, found_labels = truth.labelmap.voxels, found.labelmap.voxels
    both = (true_labels > 0) & (found_labels > 0)
    pairs, counts = np.unique(np.stack([true_labels[both], found_labels[both]]), axis=1, return_counts=True)
    matches: dict[int, tuple[int, float]] = {}
    for number in np.argsort(counts, kind="stable"):  # the largest overlap last, so that it stays
        (true_label, found_label), count = pairs[:, number].tolist(), counts[number]
        total = np.count_nonzero(true_labels == true_label) + np.count_nonzero(found_labels == found_label)
        matches[true_label] = (found_label, float(2 * count / total))
    return matches


def _card(
    spot: Spot, results: Results, image: Volume, found: Segmentation | None, truth: Segmentation | None,
    row: Mapping[str, Any], matches: Mapping[int, tuple[int, float]]
) -> str:
    plane = overlay.close_up(spot)
    window = overlay.display_window(image)
    layers = []
    for stem, volume in results.volumes.items():
        synthetic = stem in results.synthetic
        limits = window if synthetic else overlay.map_limits(volume)
        picture = overlay.draw_layer(plane, volume, limits, is_map=not synthetic)
        layers.append(f'<img class="{"counterfactual" if synthetic else "map"}" alt="{html.escape(stem)}" '
                      f'src="{_data_url(picture)}">')
    outlines: list[tuple[Segmentation, tuple[float, float, float] | None]] = [(truth, _TRUTH_COLOR)] if truth else []
    outlines += [(found, None)] if found else []
    agreement = [f"Dice with the truth {dice:.2f}" for label, dice in matches.values() if label == spot.segment.label]
    sizes = [f"{row['mean_axis_mm']:.1f} mm"] if "mean_axis_mm" in row else []
    chances = [f"probability {row['probability']:.2f}"] if "probability" in row else []
    color = "rgb({:.0f} {:.0f} {:.0f})".format(*(255 * component for component in spot.segment.color))
    return _CARD.substitute(
        name=html.escape(spot.segment.name), color=color, layers="".join(layers),
        scan=_data_url(overlay.draw_layer(plane, image, window)),
        lines=_data_url(overlay.draw_layer(plane, outlines=outlines)),
        text=html.escape(", ".join(sizes + chances + agreement)))


def _row_of(spot: Spot, found: Segmentation | None, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The table's row of a segment: rows and segments come in the same order."""
    labels = [segment.label for segment in found.segments] if found else []
    return rows[labels.index(spot.segment.label)] if len(rows) == len(labels) else {}


def _table(
    rows: Sequence[Mapping[str, Any]], found: Segmentation | None, truth: Segmentation | None,
    matches: Mapping[int, tuple[int, float]]
) -> str:
    """Findings, with the truth beside them where it is known, and the nodules that were missed."""
    if not rows and not truth:
        return "<p>No rows.</p>"
    columns = list(rows[0]) if rows else []
    labels = [segment.label for segment in found.segments] if found else []
    header = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    header += "<th>truth</th><th>true diameter mm</th><th>Dice</th>" if truth else ""
    lines = []
    diameters = _diameters(truth)
    names = {segment.label: segment.name for segment in truth.segments} if truth else {}
    for label, row in zip(labels, rows, strict=False):
        cells = "".join(f"<td>{html.escape(_text(row.get(name)))}</td>" for name in columns)
        if truth:
            true_label, dice = next(((true, pair[1]) for true, pair in matches.items() if pair[0] == label), (0, 0.0))
            cells += (f'<td class="good">{html.escape(names[true_label])}</td><td>{diameters[true_label]:.1f}</td>'
                      f"<td>{dice:.2f}</td>" if true_label else '<td class="bad">no nodule</td><td></td><td></td>')
        lines.append(f"<tr>{cells}</tr>")
    for label in sorted(set(diameters) - set(matches)):
        lines.append(f'<tr><td colspan="{max(1, len(columns))}" class="bad">missed</td>'
                     f"<td>{html.escape(names[label])}</td><td>{diameters[label]:.1f}</td><td>0</td></tr>")
    return f"<table><tr>{header}</tr>{''.join(lines)}</table>"


def _diameters(truth: Segmentation | None) -> dict[int, float]:
    """Label -> diameter in mm of the ball of the same volume."""
    if truth is None:
        return {}
    voxel_mm3 = abs(float(np.linalg.det(truth.labelmap.affine[:3, :3])))
    counts = np.bincount(truth.labelmap.voxels.ravel())
    return {segment.label: float((6 / np.pi * counts[segment.label] * voxel_mm3) ** (1 / 3))
            for segment in truth.segments if segment.label < len(counts) and counts[segment.label]}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
