"""The pictures of the tutorial and the sample's thumbnail, rendered from a real run in a real MRML scene.

    python docs/make_pictures.py            # needs the tests' packages and OpenGL, not the Slicer application

The panel's own code finds the nodules of the sample phantom with the models that ship; Slicer's own slice views,
offscreen, take the pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
THUMBNAIL = ROOT / "GenSegExtension" / "GenSegNodules" / "Resources" / "Icons" / "GenSegNodulesPhantom.png"
SIZE = (480, 400)


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thumbnail-only", action="store_true", help="only the sample's thumbnail, without any model")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "Testing" / "panel"), str(ROOT / "Testing"), str(ROOT / "GenSegExtension")]
    import panel_stand_in

    slicer = panel_stand_in.install()
    module = panel_stand_in.add_module(ROOT / "GenSegExtension" / "GenSegNodules" / "GenSegNodules.py")
    from GenSegPanel import samples
    from slicer_stand_in.rendering import SliceView, save_picture

    with SliceView("Red", (192, 160)) as view:
        scan = samples.add_phantom("chest")
        view.fit()
        save_picture(view.picture(), THUMBNAIL)
    if options.thumbnail_only:
        return
    slicer.mrmlScene.Clear(False)
    PICTURES.mkdir(exist_ok=True)
    with SliceView("Red", SIZE) as view:
        scan = samples.add_phantom("chest")
        view.fit()
        save_picture(view.picture(), PICTURES / "sample.png")
        slicer.util.selectModule("GenSegNodules")
        panel = module.self()
        panel.ui.inputSelector.setCurrentNode(scan)
        panel.ui.applyButton.click()
        panel_stand_in.process_events(3600, lambda: not panel.controls.busy)
        if panel.controls.job.state != "done":
            sys.exit(f"The job failed: {panel.controls.job.error}")
        print(panel.ui.statusLabel.text)
        most_probable_first(panel.review)
        closer(view)
        save_picture(view.picture(), PICTURES / "overlay.png")
        panel.ui.residualCheckBox.checked = False
        panel.ui.fadeSlider.value = 1.0
        panel.review.node.GetDisplayNode().SetVisibility(False)
        save_picture(view.picture(), PICTURES / "counterfactual.png")
    module.unload()


def most_probable_first(review: Any) -> None:
    """Select the finding of the highest probability, which moves the views there."""
    from GenSegScene import findings

    found = findings.findings(review.node)
    for finding in found:
        print(finding.name, finding.center_ras, finding.row.get("long_axis_mm"), finding.row.get("probability"))
    certain = [float(finding.row.get("probability") or 0.0) for finding in found]
    review.ui.findingsTable.selectRow(certain.index(max(certain)))


def closer(view: Any, width_mm: float = 120.0) -> None:
    """Zoom in on the middle of the view."""
    node = view.slice_node
    node.SetFieldOfView(width_mm, width_mm * SIZE[1] / SIZE[0], 1.0)
    node.UpdateMatrices()


if __name__ == "__main__":
    main()
