"""Sample data that needs no download: a procedural phantom, drawn when somebody asks for it."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

SAMPLE_NAME = "GenSegChestPhantom"


def register(thumbnail: str) -> None:
    """Offer the chest phantom in the Sample Data module, category GenSeg. Nothing is made before a user asks."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="GenSeg",
        sampleName=SAMPLE_NAME,
        uris="genseg:chest-phantom",  # asked for by Slicer, though nothing is downloaded
        fileNames=SAMPLE_NAME,
        nodeNames=SAMPLE_NAME,
        thumbnailFileName=thumbnail,
        customDownloader=add_chest_sample,
    )


def add_chest_sample(source: Any = None) -> list[Any]:
    """What the Sample Data module calls: the nodes that it then lists."""
    return [add_chest_phantom()]


def add_chest_phantom(seed: int = 0) -> Any:
    """Draw a chest phantom and add it to the scene as a CT volume with a lung window.

    Args:
        seed: another seed, another patient.

    Returns:
        vtkMRMLScalarVolumeNode, shown in the slice views.
    """
    from GenSegLogic.phantoms.kinds import chest
    from GenSegScene.volumes import volume_to_node

    node = volume_to_node(chest(seed)["chest"], slicer.mrmlScene.GenerateUniqueName(SAMPLE_NAME))
    node.SetAttribute("DICOM.Modality", "CT")
    node.SetDescription(_("Procedural phantom, seed {seed}; no patient.").format(seed=seed))
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(1400, -500)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node
