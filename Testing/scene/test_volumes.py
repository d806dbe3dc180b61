"""Volume nodes to Volume and back, checked against what MRML itself says about the same voxels."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from GenSegLogic.errors import GenSegError
from GenSegScene.volumes import (
    NeedsHardeningError,
    harden_copy,
    seed_points_from_markups,
    volume_from_node,
    volume_to_node,
)

SHAPE = (5, 6, 7)


def add(ijk_to_ras, dtype="int16", name="Chest"):
    return slicer.util.addVolumeFromArray(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype), ijk_to_ras, name)


def world_of_voxel(node, ijk):
    """World RAS of a voxel, by MRML's own transforms."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    world = [0.0] * 3
    node.TransformPointToWorld(matrix.MultiplyPoint([*ijk, 1])[:3], world)
    return np.array(world)


@pytest.mark.parametrize("moved", [False, True])
def test_voxels_lie_where_mrml_puts_them(ijk_to_ras, linear_transform, moved):
    node = add(ijk_to_ras)
    if moved:
        node.SetAndObserveTransformNodeID(linear_transform.GetID())
    volume = volume_from_node(node)
    for ijk in [(0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (2, 3, 1)]:
        np.testing.assert_allclose(volume.to_lps(ijk), world_of_voxel(node, ijk) * [-1, -1, 1], atol=1e-9)
        assert volume.voxels[ijk[::-1]] == node.GetImageData().GetScalarComponentAsDouble(*ijk, 0)


def test_voxels_are_a_read_only_view(ijk_to_ras):
    node = add(ijk_to_ras)
    volume = volume_from_node(node)
    assert np.shares_memory(volume.voxels, slicer.util.arrayFromVolume(node))
    with pytest.raises(ValueError):
        volume.voxels[0, 0, 0] = 1


def test_round_trip_keeps_grid_and_parent(ijk_to_ras, linear_transform):
    node = add(ijk_to_ras)
    node.SetAndObserveTransformNodeID(linear_transform.GetID())
    volume = volume_from_node(node)
    back = volume_to_node(volume, "Back", like=node)
    assert slicer.util.arrayFromVolume(back).dtype == np.int16
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(back), slicer.util.arrayFromVolume(node))
    assert not np.shares_memory(slicer.util.arrayFromVolume(back), slicer.util.arrayFromVolume(node))
    assert back.GetTransformNodeID() == linear_transform.GetID()
    matrix = vtk.vtkMatrix4x4()
    back.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), ijk_to_ras, atol=1e-12)
    np.testing.assert_allclose(volume_from_node(back).affine, volume.affine, atol=1e-9)


def test_round_trip_without_a_reference_stands_on_its_own(ijk_to_ras, linear_transform):
    node = add(ijk_to_ras)
    node.SetAndObserveTransformNodeID(linear_transform.GetID())
    volume = volume_from_node(node)
    back = volume_to_node(volume, "Back")
    assert back.GetParentTransformNode() is None
    np.testing.assert_allclose(volume_from_node(back).affine, volume.affine, atol=1e-9)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64"])
def test_every_voxel_type_comes_back(dtype):
    volume = volume_from_node(add(np.eye(4)))
    values = (volume.voxels % 2).astype(dtype)
    back = volume_to_node(volume.with_voxels(values), "Typed")
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(back), values)


def test_modality_comes_from_node_hierarchy_or_quantity():
    node = add(np.eye(4))
    assert "modality" not in volume_from_node(node).metadata
    entry = slicer.vtkCodedEntry()
    entry.SetValueSchemeMeaning("112031", "DCM", "Attenuation Coefficient")
    node.SetVoxelValueQuantity(entry)
    assert volume_from_node(node).metadata["modality"] == "CT"
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "PT")
    assert volume_from_node(node).metadata["modality"] == "PT"
    node.SetAttribute("DICOM.Modality", "MR")
    assert volume_from_node(node).metadata["modality"] == "MR"


def test_what_cannot_be_used_is_refused_by_name():
    with pytest.raises(GenSegError, match="No volume"):
        volume_from_node(None)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing in it")
    with pytest.raises(GenSegError, match="Nothing in it"):
        volume_from_node(empty)
    colour = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5, 3)), None, "Photo", "vtkMRMLVectorVolumeNode")
    with pytest.raises(GenSegError, match="Photo"):
        volume_from_node(colour)
    with pytest.raises(GenSegError, match="Chest"):
        volume_to_node(volume_from_node(add(np.eye(4), name="Chest")).with_voxels(np.zeros(SHAPE)), "x",
                       like=slicer.util.addVolumeFromArray(np.zeros((2, 2, 2)), name="Chest 2"))


def bent(shape_mm=20.0):
    """A thin-plate transform that bends x by up to 2 mm along z."""
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for x in (-shape_mm, 0, shape_mm):
        for y in (-shape_mm, 0, shape_mm):
            for z in (-shape_mm, 0, shape_mm):
                source.InsertNextPoint(x, y, z)
                target.InsertNextPoint(x + 2 * (z / shape_mm) ** 2, y, z)
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Bent")
    node.SetAndObserveTransformToParent(spline)
    return node


def blob_node(centre_ras, ijk_to_ras):
    """A volume of a smooth ball at a world position; 41 voxels a side of 1 mm."""
    indices = np.stack(np.meshgrid(*[np.arange(41)] * 3, indexing="ij"), axis=-1)[..., ::-1]
    ras = indices @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
    voxels = 1000 * np.exp(-((ras - centre_ras) ** 2).sum(axis=-1) / 18)
    return slicer.util.addVolumeFromArray(voxels.astype("int16"), ijk_to_ras, "Ball")


def centre_of_mass_lps(volume):
    weights = volume.voxels.astype(float)
    indices = np.stack(np.nonzero(weights > 50), axis=-1)
    values = weights[tuple(indices.T)]
    return volume.to_lps((indices[:, ::-1] * values[:, None]).sum(axis=0) / values.sum())


def test_non_linear_transform_is_refused_and_hardened_on_a_copy():
    grid = np.eye(4)
    grid[:3, 3] = -20
    node = blob_node((0, 0, 10), grid)
    transform = bent()
    node.SetAndObserveTransformNodeID(transform.GetID())
    before = slicer.util.arrayFromVolume(node).copy()
    with pytest.raises(NeedsHardeningError, match=r"Ball.*Bent") as caught:
        volume_from_node(node)
    copy = harden_copy(caught.value.node)
    assert copy.GetParentTransformNode() is None
    world = [0.0] * 3
    node.TransformPointToWorld([0, 0, 10], world)
    assert abs(world[0]) > 0.3  # the transform really moves this point
    np.testing.assert_allclose(centre_of_mass_lps(volume_from_node(copy)), np.multiply(world, [-1, -1, 1]), atol=0.1)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), before)
    assert node.GetTransformNodeID() == transform.GetID()


def test_sheared_transform_is_refused_and_hardened_on_a_copy():
    grid = np.eye(4)
    grid[:3, 3] = -20
    node = blob_node((3, -4, 10), grid)
    shear = np.eye(4)
    shear[0, 2] = 0.3
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Tilted")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shear))
    node.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(NeedsHardeningError, match=r"Ball.*Tilted"):
        volume_from_node(node)
    volume = volume_from_node(harden_copy(node))
    np.testing.assert_allclose(centre_of_mass_lps(volume), [-(3 + 0.3 * 10), 4, 10], atol=0.1)
    assert volume.voxels.max() > 950


def test_seed_points_are_world_points_in_lps(linear_transform):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Spots")
    node.AddControlPoint([1.0, 2.0, 3.0])
    node.SetAndObserveTransformNodeID(linear_transform.GetID())
    node.AddControlPointWorld([10.0, -20.0, 30.0])
    world = [0.0] * 3
    node.TransformPointToWorld([1.0, 2.0, 3.0], world)
    points = seed_points_from_markups(node)
    np.testing.assert_allclose(points[0], np.multiply(world, [-1, -1, 1]), atol=1e-9)
    np.testing.assert_allclose(points[1], [-10, 20, 30], atol=1e-9)
    node.UnsetNthControlPointPosition(0)
    assert len(seed_points_from_markups(node)) == 1
    assert seed_points_from_markups(None) == ()
