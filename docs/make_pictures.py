"""The pictures of the tutorials and the samples' thumbnails, rendered from real runs in a real MRML scene.

    python docs/make_pictures.py                    # needs the tests' packages and OpenGL, not the Slicer application
    python docs/make_pictures.py --only organs      # or nodules, or thumbnails, which need no model

The panels' own code works on the sample phantoms with the models that ship; Slicer's own slice views, offscreen, take
the pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = ROOT / "GenSegExtension"
PICTURES = ROOT / "docs" / "pictures"
THUMBNAILS = {
    "chest": EXTENSION / "GenSegNodules" / "Resources" / "Icons" / "GenSegNodulesPhantom.png",
    "abdomen-ct": EXTENSION / "GenSegOrgans" / "Resources" / "Icons" / "GenSegOrgansPhantomCT.png",
    "abdomen-mr": EXTENSION / "GenSegOrgans" / "Resources" / "Icons" / "GenSegOrgansPhantomMR.png",
}
SIZE = (480, 400)


def main() -> None:
    """Write all pictures, or some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("thumbnails", "nodules", "organs"), help="these alone")
    only = parser.parse_args().only
    sys.path[:0] = [str(ROOT / "Testing" / "panel"), str(ROOT / "Testing"), str(EXTENSION)]
    import panel_stand_in

    panel_stand_in.install()
    PICTURES.mkdir(exist_ok=True)
    for name, take in (("thumbnails", thumbnails), ("nodules", nodules), ("organs", organs)):
        if only in (None, name):
            take()


def thumbnails() -> None:
    """The samples as the Sample Data module shows them."""
    import slicer

    from GenSegPanel import samples
    from slicer_stand_in.rendering import SliceView, save_picture

    for kind, path in THUMBNAILS.items():
        slicer.mrmlScene.Clear(False)
        with SliceView("Red", (192, 160)) as view:
            samples.add_phantom(kind)
            view.fit()
            save_picture(view.picture(), path)


def nodules() -> None:
    """Finding, outline and counterfactual in the chest phantom."""
    from slicer_stand_in.rendering import SliceView, save_picture

    with SliceView("Red", SIZE) as view:
        panel, module = applied("GenSegNodules", "chest", view, "sample.png")
        most_probable_first(panel.review)
        closer(view)
        save_picture(view.picture(), PICTURES / "overlay.png")
        panel.ui.residualCheckBox.checked = False
        panel.ui.fadeSlider.value = 1.0
        panel.review.node.GetDisplayNode().SetVisibility(False)
        save_picture(view.picture(), PICTURES / "counterfactual.png")
    module.unload()


def organs() -> None:
    """Organs and their confidence in the CT phantom, at the liver's middle."""
    from slicer_stand_in.rendering import SliceView, save_picture

    with SliceView("Red", SIZE) as view:
        panel, module = applied("GenSegOrgans", "abdomen-ct", view, "organs-sample.png")
        table = panel.ui.findingsTable
        for row in range(table.rowCount):
            print(*(table.item(row, column).text() for column in range(table.columnCount)), sep="  ")
        table.selectRow([table.item(row, 0).text() for row in range(table.rowCount)].index("Liver"))
        save_picture(view.picture(), PICTURES / "organs.png")
        panel.ui.confidenceCheckBox.checked = True
        save_picture(view.picture(), PICTURES / "organs-confidence.png")
    module.unload()


def applied(name: str, kind: str, view: Any, picture: str) -> tuple[Any, Any]:
    """A module's panel after Apply on a phantom, of which a picture is taken before; and the module."""
    import panel_stand_in
    import slicer

    from GenSegPanel import samples
    from slicer_stand_in.rendering import save_picture

    slicer.mrmlScene.Clear(False)
    scan = samples.add_phantom(kind)
    view.fit()
    save_picture(view.picture(), PICTURES / picture)
    module = panel_stand_in.add_module(EXTENSION / name / f"{name}.py")
    slicer.util.selectModule(name)
    panel = module.self()
    panel.ui.inputSelector.setCurrentNode(scan)
    panel.ui.applyButton.click()
    panel_stand_in.process_events(3600, lambda: not panel.controls.busy)
    if panel.controls.job.state != "done":
        sys.exit(f"The job failed: {panel.controls.job.error}")
    print(panel.ui.statusLabel.text)
    return panel, module


def most_probable_first(review: Any) -> None:
    """Select the finding of the highest probability, which moves the views there."""
    from GenSegScene import findings

    found = findings.findings(review.node)
    for finding in found:
        print(finding.name, findings.center_of(review.node, finding.segment_id), finding.row.get("long_axis_mm"),
              finding.row.get("probability"))
    certain = [float(finding.row.get("probability") or 0.0) for finding in found]
    review.ui.findingsTable.selectRow(certain.index(max(certain)))


def closer(view: Any, width_mm: float = 120.0) -> None:
    """Zoom in on the middle of the view."""
    node = view.slice_node
    node.SetFieldOfView(width_mm, width_mm * SIZE[1] / SIZE[0], 1.0)
    node.UpdateMatrices()


if __name__ == "__main__":
    main()
