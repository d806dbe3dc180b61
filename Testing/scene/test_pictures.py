"""What a person sees: slice views of the real scene, rendered offscreen."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

import slicer_stand_in
from GenSegScene import display, findings
from GenSegScene.segmentations import mask_from_segment
from GenSegScene.volumes import volume_from_node
from GenSegScene.writing import results_to_scene
from slicer_stand_in.rendering import CannotRender, SliceView, save_picture


@pytest.fixture
def view():
    try:
        made = SliceView("Red", (300, 260))
    except CannotRender as error:
        pytest.skip(str(error))
    yield made
    made.close()


def pixel_of(view, ras):
    """Row and column of a world point in the picture."""
    to_ras = slicer.util.arrayFromVTKMatrix(view.slice_node.GetXYToRAS())
    x, y, *_ = np.linalg.inv(to_ras) @ [*ras, 1]
    return view.slice_node.GetDimensions()[1] - 1 - round(y), round(x)


def colourfulness(picture, view, ras, reach=2):
    """Largest minus smallest of red, green, blue, averaged round a world point; 0 is grey."""
    row, column = pixel_of(view, ras)
    patch = picture[row - reach:row + reach + 1, column - reach:column + reach + 1].astype(float)
    return float((patch.max(axis=-1) - patch.min(axis=-1)).mean())


def test_overlay_outline_and_legend_are_seen_and_fade(view, plain_chest, make_results, tmp_path):
    display.show_in_views(plain_chest)
    view.fit()
    bare = view.picture()
    nodes = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
    segmentation = nodes["nodules_segmentation"]
    first = segmentation.GetSegmentation().GetSegmentIDs()[0]
    assert findings.jump_to_finding(segmentation, first)
    center = findings.center_of(segmentation, first)
    shown = view.picture()
    save_picture(shown, tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").read_bytes()[:4] == b"\x89PNG"
    assert colourfulness(bare, view, center) == 0
    with_overlay = colourfulness(shown, view, center)
    assert with_overlay > 60
    # The legend stands at the right edge, where the bare picture has nothing but grey.
    edge = np.s_[:, -60:]
    assert bare.max() > 30 and (bare[edge].max(axis=-1) == bare[edge].min(axis=-1)).all()
    assert (shown[edge].max(axis=-1).astype(int) - shown[edge].min(axis=-1) > 100).sum() > 100

    segmentation.GetDisplayNode().SetVisibility(False)
    display.fade(1.0)
    assert colourfulness(view.picture(), view, center) == 0  # the bare counterfactual
    display.fade(0.0)
    display.set_threshold(nodes["residual"], 500.0)  # above all residuals
    assert colourfulness(view.picture(), view, center) == 0
    display.set_threshold(nodes["residual"], 30.0)
    assert colourfulness(view.picture(), view, center) > 60


def test_outlines_lie_where_the_segment_is_under_a_transform(view, plain_chest, linear_transform, make_results):
    plain_chest.SetAndObserveTransformNodeID(linear_transform.GetID())
    nodes = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
    segmentation = nodes["nodules_segmentation"]
    display.show_residual(None)
    view.fit()
    first = segmentation.GetSegmentation().GetSegmentIDs()[0]
    findings.jump_to_finding(segmentation, first)
    picture = view.picture().astype(int)
    coloured = np.argwhere(picture.max(axis=-1) - picture.min(axis=-1) > 30)
    expected = pixel_of(view, findings.center_of(segmentation, first))
    np.testing.assert_allclose(coloured.mean(axis=0), expected, atol=20)
    assert mask_from_segment(segmentation, first, plain_chest).voxels.any()


def test_side_by_side_shows_scan_and_bare_counterfactual(view, plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    nodes = results_to_scene(results, plain_chest)
    nodes["nodules_segmentation"].GetDisplayNode().SetVisibility(False)
    display.enter_side_by_side(plain_chest, nodes["counterfactual"], nodes["residual"])
    slicer_stand_in.update_views()
    with SliceView(display.ORIGINAL_VIEW, (300, 260)) as left, \
            SliceView(display.COUNTERFACTUAL_VIEW, (300, 260)) as right:
        display.enter_side_by_side(plain_chest, nodes["counterfactual"], nodes["residual"])
        left.fit()
        right.fit()
        center = findings.center_of(nodes["nodules_segmentation"], "Segment_1")
        display.jump_to(center)
        assert colourfulness(left.picture(), left, center) > 60
        assert colourfulness(right.picture(), right, center) == 0
        assert right.picture().max() > 30  # not an empty view


def test_new_views_show_the_scan_where_the_old_one_does(view, plain_chest, make_results):
    to_ras = slicer.util.arrayFromVTKMatrix(_matrix(plain_chest))
    to_ras[:3, 3] += 700.0  # far from where new views look
    plain_chest.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras))
    nodes = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
    view.fit()
    center = findings.center_of(nodes["nodules_segmentation"], "Segment_1")
    display.jump_to(center)
    display.enter_side_by_side(plain_chest, nodes["counterfactual"])
    slicer_stand_in.update_views()
    with SliceView(display.ORIGINAL_VIEW, (300, 260)) as left, \
            SliceView(display.COUNTERFACTUAL_VIEW, (300, 260)) as right:
        for composite in display.composites():
            if composite.GetLayoutName() == display.ORIGINAL_VIEW:
                composite.SetBackgroundVolumeID(None)  # as a new view, which the application makes meanwhile
        display.enter_side_by_side(plain_chest, nodes["counterfactual"])
        assert left.slice_node.GetSliceOffset() == pytest.approx(view.slice_node.GetSliceOffset())
        for one in (left, right):
            row, column = pixel_of(one, center)
            assert 0 < row < 260 and 0 < column < 300
            assert one.picture().max() > 30
        zoomed = [side / 2 for side in left.slice_node.GetFieldOfView()]
        left.slice_node.SetFieldOfView(*zoomed)
        display.enter_side_by_side(plain_chest, nodes["counterfactual"])  # the user's zoom is left alone
        assert left.slice_node.GetFieldOfView()[0] == right.slice_node.GetFieldOfView()[0] == pytest.approx(zoomed[0])


def _matrix(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def test_views_survive_undo_and_closing_the_scene(view, plain_chest, make_results):
    from GenSegLogic.errors import Cancelled

    def cancel_at_the_end(fraction, message):
        if fraction == 1.0:
            raise Cancelled

    display.show_in_views(plain_chest)
    view.fit()
    before = view.picture()
    with pytest.raises(Cancelled):
        results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest, progress=cancel_at_the_end)
    np.testing.assert_array_equal(view.picture(), before)
    results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
    slicer_stand_in.clear_scene()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == 0
    assert view.picture().max() == 0
