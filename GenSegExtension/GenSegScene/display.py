"""How results look: presets, the colour legend, fading, the side-by-side layout, jumping. Nodes only, no Qt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer

from . import runs

SIDE_BY_SIDE = 7461
"""Identifier of the layout with the scan beside its counterfactual; outside the range of Slicer's own layouts."""

ORIGINAL_VIEW, COUNTERFACTUAL_VIEW = "GenSegOriginal", "GenSegCounterfactual"

SIDE_BY_SIDE_XML = f"""
<layout type="horizontal" split="true">
 <item><view class="vtkMRMLSliceNode" singletontag="{ORIGINAL_VIEW}">
  <property name="orientation" action="default">Axial</property>
  <property name="viewlabel" action="default">O</property>
  <property name="viewcolor" action="default">#F34A33</property>
  <property name="viewgroup" action="default">{SIDE_BY_SIDE}</property>
 </view></item>
 <item><view class="vtkMRMLSliceNode" singletontag="{COUNTERFACTUAL_VIEW}">
  <property name="orientation" action="default">Axial</property>
  <property name="viewlabel" action="default">C</property>
  <property name="viewcolor" action="default">#4A50C8</property>
  <property name="viewgroup" action="default">{SIDE_BY_SIDE}</property>
 </view></item>
</layout>"""

_PREVIOUS_LAYOUT = "GenSeg.PreviousLayout"
_PREVIOUS_FOREGROUND, _PREVIOUS_OPACITY = "GenSeg.PreviousForeground", "GenSeg.PreviousForegroundOpacity"
_RESIDUAL_COLORS = "vtkMRMLColorTableNodeWarm1"  # built in, yellow to red: no file of the application is needed
_CONFIDENCE_COLORS = "vtkMRMLColorTableNodeDesert"  # built in, red to orange
_RESIDUAL_OPACITY = 0.5
_SURE = 0.95  # confidence from which on nothing is coloured
# The residual is the foreground, because Slicer shows a colour legend for background, foreground and label only. The
# counterfactual lies in the first layer above these: fading goes from the scan with its overlay to the bare
# counterfactual.
_COUNTERFACTUAL_LAYER = slicer.vtkMRMLSliceCompositeNode.Layer_Last


def show_like(node: Any, reference: Any) -> None:
    """Give a volume the window, level, colours and interpolation of the scan it belongs to."""
    display, like = node.GetDisplayNode(), reference.GetDisplayNode() if reference is not None else None
    if like is None or not like.IsA("vtkMRMLScalarVolumeDisplayNode"):
        display.AutoWindowLevelOn()
        return
    display.AutoWindowLevelOff()
    display.SetWindowLevel(like.GetWindow(), like.GetLevel())
    display.SetAndObserveColorNodeID(like.GetColorNodeID())
    display.SetInterpolate(like.GetInterpolate())


def show_as_residual(node: Any, threshold: float, maximum: float, title: str) -> None:
    """Show a volume as a warm overlay that is clear below ``threshold``, with a colour legend.

    Args:
        node: scalar volume node with a display node.
        threshold: smallest value shown, in the volume's unit.
        maximum: value of the brightest colour.
        title: title of the legend, with the unit.
    """
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(_RESIDUAL_COLORS)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, max(maximum, threshold, 1.0))
    set_threshold(node, threshold)
    _add_legend(node, title, "%.0f")


def show_as_confidence(node: Any) -> None:
    """Show a confidence volume, in [0, 1], as an overlay that colours what is doubtful: red 0, orange nearly sure.

    Clear are what is sure, or else the overlay would hide the scan, and what was not looked at, which has exactly 0.
    """
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(_CONFIDENCE_COLORS)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.AutoThresholdOff()
    display.ApplyThresholdOn()
    display.SetThreshold(1e-6, _SURE)
    _add_legend(node, "Confidence", "%.1f")


def _add_legend(node: Any, title: str, number_format: str) -> None:
    """A colour legend small enough for a small view; Slicer shows it while the volume is shown."""
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    legend.SetLabelFormat(number_format)
    legend.SetSize(0.12, 0.35)  # of the view: Slicer's default covers a quarter of a small one
    legend.GetTitleTextProperty().SetFontSize(12)
    legend.GetLabelTextProperty().SetFontSize(11)
    legend.SetVisibility(True)


def set_threshold(node: Any, threshold: float) -> None:
    """Move the display threshold of a residual volume. Changes no voxel and no segment; fast enough for dragging."""
    display = node.GetDisplayNode()
    modified = display.StartModify()
    display.AutoThresholdOff()
    display.ApplyThresholdOn()
    display.SetThreshold(threshold, 1e6)
    display.EndModify(modified)


def displayed_threshold(node: Any) -> float:
    """The display threshold of a residual volume."""
    return node.GetDisplayNode().GetLowerThreshold()


def show_segmentation(node: Any) -> None:
    """Outlines that leave the image readable, with a light fill."""
    display = node.GetDisplayNode()
    display.SetAllSegmentsVisibility(True)
    display.SetOpacity2DFill(0.25)
    display.SetOpacity2DOutline(1.0)


def show_in_views(scan: Any, counterfactual: Any = None, residual: Any = None) -> None:
    """Show the scan in all slice views with the residual over it, and the counterfactual faded out above both.

    A scan that no view showed is fitted into them. Side by side, the two views show the scan and the counterfactual as
    :func:`enter_side_by_side` does.
    """
    known = any(composite.GetBackgroundVolumeID() == scan.GetID() for composite in composites())
    for composite in composites():
        if composite.GetLayoutName() not in (ORIGINAL_VIEW, COUNTERFACTUAL_VIEW):
            composite.SetBackgroundVolumeID(scan.GetID())
            composite.SetNthLayerVolumeID(_COUNTERFACTUAL_LAYER, _id(counterfactual))
            composite.SetNthLayerOpacity(_COUNTERFACTUAL_LAYER, 0.0)
    if is_side_by_side():
        enter_side_by_side(scan, counterfactual, residual)
    else:
        show_residual(residual)
    if not known:
        slicer.util.setSliceViewerLayers(fit=True)


def show_run(segmentation: Any) -> None:
    """Show the run of a segmentation node: its scan in the views, and of all runs' segmentations only its own.

    What is no run's stays as it is, and so do the views where the run's scan is gone.
    """
    if segmentation is None or segmentation.GetAttribute(runs.RUN) is None:
        return
    _show_layers(segmentation)
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node.GetAttribute(runs.RUN) is not None:
            node.SetDisplayVisibility(node is segmentation)


def show_new_run(segmentation: Any) -> None:
    """Show a run that was written without being shown, as it would have been."""
    _show_layers(segmentation)
    segmentation.SetDisplayVisibility(True)
    hide_earlier_runs(segmentation)


def _show_layers(segmentation: Any) -> None:
    scan = runs.related(segmentation, runs.INPUT)
    if scan is not None:
        show_in_views(scan, runs.related(segmentation, "counterfactual"), runs.related(segmentation, "residual"))


def hide_earlier_runs(segmentation: Any) -> None:
    """Hide the segmentations of earlier runs of the same task on the same scan, which would lie under this one.

    A run that was shown single spots finds nothing else, and is looked at beside the others.
    """
    if runs.related(segmentation, "seed_points") is not None:
        return
    scan, task = runs.related(segmentation, runs.INPUT), segmentation.GetAttribute(runs.TASK)
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if (node is not segmentation and node.GetAttribute(runs.RUN) is not None
                and node.GetAttribute(runs.TASK) == task and runs.related(node, runs.INPUT) is scan):
            node.SetDisplayVisibility(False)


def show_residual(residual: Any) -> None:
    """Show ``residual`` as overlay in all slice views but that of the counterfactual.

    None: no overlay; each view gets back the foreground, with its opacity, that the overlay took the place of.
    """
    for composite in composites():
        if composite.GetLayoutName() == COUNTERFACTUAL_VIEW:
            composite.SetForegroundVolumeID(None)
        elif residual is not None:
            _cover(composite, residual)
        else:
            _uncover(composite)
    # Views look again at whether a legend's volume is shown only when a person changes the layer, or the legend does.
    for legend in slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode"):
        legend.Modified()


def _cover(composite: Any, overlay: Any) -> None:
    """Make ``overlay`` the foreground; the user's own is remembered in the view's node, in a saved scene too."""
    if not _has_overlay(composite):
        composite.SetNodeReferenceID(_PREVIOUS_FOREGROUND, composite.GetForegroundVolumeID())
        composite.SetAttribute(_PREVIOUS_OPACITY, str(composite.GetForegroundOpacity()))
    composite.SetForegroundVolumeID(overlay.GetID())
    composite.SetForegroundOpacity(_RESIDUAL_OPACITY)


def _uncover(composite: Any) -> None:
    """Give the user's own foreground back, unless there is one already."""
    if _has_overlay(composite):
        composite.SetForegroundVolumeID(composite.GetNodeReferenceID(_PREVIOUS_FOREGROUND))
        composite.SetForegroundOpacity(float(composite.GetAttribute(_PREVIOUS_OPACITY) or _RESIDUAL_OPACITY))


def _has_overlay(composite: Any) -> bool:
    """Whether the foreground of a view is of a run, not the user's own."""
    foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
    return foreground is not None and foreground.GetAttribute(runs.RUN) is not None


def fade(fraction: float) -> None:
    """Fade all slice views from the original (0) to the counterfactual (1)."""
    for composite in composites():
        if composite.GetLayoutName() not in (ORIGINAL_VIEW, COUNTERFACTUAL_VIEW):
            composite.SetNthLayerOpacity(_COUNTERFACTUAL_LAYER, min(max(float(fraction), 0.0), 1.0))


def faded() -> float:
    """How far the slice views are faded towards the counterfactual, 0 to 1."""
    return max((composite.GetNthLayerOpacity(_COUNTERFACTUAL_LAYER) for composite in composites()
                if composite.GetNthLayerVolumeID(_COUNTERFACTUAL_LAYER)), default=0.0)


def let_counterfactual_go(composite: Any) -> bool:
    """Take a counterfactual out of a view that shows another scan than its own, as every view does once one is loaded.

    Slicer then puts the new scan under it, and the counterfactual of one patient would lie on the scan of the next.

    Returns:
        Whether there was one.
    """
    counterfactual = slicer.mrmlScene.GetNodeByID(composite.GetNthLayerVolumeID(_COUNTERFACTUAL_LAYER) or "")
    below = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
    if counterfactual is None or below is None or below is runs.related(counterfactual, runs.INPUT):
        return False
    if below.GetAttribute(runs.RUN) == counterfactual.GetAttribute(runs.RUN):
        return False
    composite.SetNthLayerVolumeID(_COUNTERFACTUAL_LAYER, None)
    composite.SetNthLayerOpacity(_COUNTERFACTUAL_LAYER, 0.0)
    return True


def register_layout() -> Any:
    """Make the side-by-side layout known to the layout node, which is returned; None in a scene without one.

    Call it when Slicer starts: a scene that was saved in this layout opens in it only where it is known.
    """
    found = slicer.util.getNodesByClass("vtkMRMLLayoutNode")
    if not found:
        return None
    if not found[0].IsLayoutDescription(SIDE_BY_SIDE):
        found[0].AddLayoutDescription(SIDE_BY_SIDE, SIDE_BY_SIDE_XML)
    return found[0]


def enter_side_by_side(scan: Any, counterfactual: Any, residual: Any = None) -> None:
    """Switch to two linked slices of one orientation: the scan beside its counterfactual.

    The layout that the user had is remembered in the layout node, in a saved scene too. With a window, Slicer makes
    the views while it processes the change, before this returns.
    """
    layout = register_layout()
    if layout is None:
        return
    if layout.GetViewArrangement() != SIDE_BY_SIDE:
        layout.SetAttribute(_PREVIOUS_LAYOUT, str(layout.GetViewArrangement()))
        layout.RemoveAllMaximizedViewNodes()  # else the one that is maximised stays alone on the screen
        layout.SetViewArrangement(SIDE_BY_SIDE)
    known = True
    for composite in composites():
        if composite.GetLayoutName() in (ORIGINAL_VIEW, COUNTERFACTUAL_VIEW):
            left = composite.GetLayoutName() == ORIGINAL_VIEW
            known = known and (not left or composite.GetBackgroundVolumeID() == scan.GetID())
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)
            composite.SetDoPropagateVolumeSelection(False)  # a scan that is loaded is no counterfactual
            composite.SetNthLayerVolumeID(_COUNTERFACTUAL_LAYER, None)
            composite.SetBackgroundVolumeID(_id(scan if left else counterfactual))
    show_residual(residual)
    slices = {node.GetLayoutName(): node for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")}
    original, changed = slices.get(ORIGINAL_VIEW), slices.get(COUNTERFACTUAL_VIEW)
    if original is None or changed is None:
        return
    if not known:
        _fit(original, slices.get("Red"))
    changed.SetFieldOfView(*original.GetFieldOfView())
    changed.GetSliceToRAS().DeepCopy(original.GetSliceToRAS())
    changed.UpdateMatrices()


def _fit(view: Any, like: Any) -> None:
    """Fit a new view's background into it, since nobody else does, in the slice that another view shows it in."""
    logic = slicer.app.applicationLogic().GetSliceLogic(view)
    if logic is not None:
        logic.FitSliceToBackground()
    if like is not None and like.GetOrientation() == view.GetOrientation():
        view.SetSliceOffset(like.GetSliceOffset())


def leave_side_by_side() -> None:
    """Give the user back the layout from before :func:`enter_side_by_side`."""
    layout = register_layout()
    if layout is not None and layout.GetViewArrangement() == SIDE_BY_SIDE:
        previous = int(layout.GetAttribute(_PREVIOUS_LAYOUT) or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        layout.RemoveAllMaximizedViewNodes()
        layout.SetViewArrangement(previous)


def is_side_by_side() -> bool:
    """Whether the side-by-side layout is on."""
    layout = register_layout()
    return layout is not None and layout.GetViewArrangement() == SIDE_BY_SIDE


def jump_to(point_ras: Sequence[float]) -> None:
    """Move all slice views to a world point (RAS, mm)."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *[float(value) for value in point_ras],
                                          slicer.vtkMRMLSliceNode.CenteredJumpSlice)


def composites() -> list[Any]:
    """The slice composite nodes of the scene: one per slice view, none without a window."""
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def _id(node: Any) -> str | None:
    return node.GetID() if node is not None else None
