"""Volume nodes and markups -> GenSegLogic, and volumes -> nodes.

A :class:`~GenSegLogic.volume.Volume` made here lives in *world* space: the node's IJK-to-RAS matrix and its linear
parent transform, turned from RAS to LPS. Points that a user clicked are world points too, so both agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk

from GenSegLogic.errors import GenSegError
from GenSegLogic.volume import SHEAR_LIMIT, Volume, shear

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns RAS into LPS and back."""

_ATTENUATION_COEFFICIENT = "112031"  # DICOM PS3.16, CID 7180: what Slicer's DICOM reader writes for CT


class NeedsHardeningError(GenSegError):
    """The volume lies under a transform that cannot be taken along; :func:`harden_copy` makes a copy that can be used.

    Attributes:
        node: the volume node in question.
    """

    def __init__(self, message: str, node: Any) -> None:
        super().__init__(message)
        self.node = node


def volume_from_node(node: Any) -> Volume:
    """The voxels and world geometry of a scalar or labelmap volume node.

    The voxels are not copied: they are a read-only view of the node's memory, in k, j, i order.

    Args:
        node: vtkMRMLScalarVolumeNode (labelmaps included) that holds an image.

    Returns:
        Volume with the node's name; ``metadata["modality"]`` is there when the node or its subject hierarchy item
        says so.

    Raises:
        NeedsHardeningError: the node is under a non-linear or shearing transform.
        GenSegError: no node, no image, or more than one value per voxel.
    """
    if node is None:
        raise GenSegError("No volume is selected: choose one first.")
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode") or node.IsA("vtkMRMLTensorVolumeNode"):
        raise GenSegError(f"{name} is no scalar volume: choose a CT or MR volume.")
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        raise GenSegError(f"{name} holds no image: load it again or choose another volume.")
    if image.GetNumberOfScalarComponents() != 1:
        raise GenSegError(f"{name} has {image.GetNumberOfScalarComponents()} values per voxel (a colour image?): "
                          "choose a volume with one.")
    affine = RAS_TO_LPS @ world_matrix(node)
    voxels = slicer.util.arrayFromVolume(node).view()
    voxels.flags.writeable = False  # the node owns this memory; no method may change the user's scan
    modality = _modality(node)
    return Volume(voxels, affine, name, {"modality": modality} if modality else {})


def world_matrix(node: Any) -> np.ndarray:
    """4x4 IJK-to-world-RAS of a volume node in mm, its linear parent transforms included.

    Raises:
        NeedsHardeningError: a parent transform is not linear, or the grid is sheared in world space.
    """
    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    matrix = slicer.util.arrayFromVTKMatrix(ijk_to_ras)
    parent = node.GetParentTransformNode()
    if parent is not None:
        if not parent.IsTransformToWorldLinear():
            raise NeedsHardeningError(
                f"{node.GetName()} lies under the non-linear transform {parent.GetName()}: "
                "use a copy with the transform applied to its voxels.", node)
        to_world = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(to_world)
        matrix = slicer.util.arrayFromVTKMatrix(to_world) @ matrix
    if shear(matrix) > SHEAR_LIMIT:
        raise NeedsHardeningError(
            f"{node.GetName()} has a sheared grid" + (f" under the transform {parent.GetName()}" if parent else "")
            + ": use a copy resampled to a straight one.", node)
    return matrix


def harden_copy(node: Any) -> Any:
    """A copy of a volume node with its transforms applied to the voxels, resampled to a straight grid; the node stays.

    The copy keeps the voxel size. What lies outside the original gets its smallest value.

    Args:
        node: vtkMRMLScalarVolumeNode, typically ``NeedsHardeningError.node``.

    Returns:
        The new node, beside the original in the subject hierarchy, under no transform.
    """
    name = slicer.mrmlScene.GenerateUniqueName(f"{node.GetName()} hardened")
    copy = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, node, name)
    try:
        to_world = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(node.GetParentTransformNode(), None, to_world)
        copy.SetAndObserveTransformNodeID(None)
        _resample_through(copy, to_world)
    except BaseException:
        slicer.mrmlScene.RemoveNode(copy)
        raise
    return copy


def volume_to_node(volume: Volume, name: str, like: Any = None, class_name: str = "vtkMRMLScalarVolumeNode") -> Any:
    """Write a volume into a new node, with a display node whose window is left to the caller.

    Args:
        volume: voxels on any grid; copied.
        name: name of the node.
        like: volume node whose grid the volume has; the new node takes its IJK-to-RAS matrix and its parent
            transform. Without it the volume's affine is written and there is no parent.
        class_name: vtkMRMLScalarVolumeNode or vtkMRMLLabelMapVolumeNode.

    Returns:
        The new node.

    Raises:
        GenSegError: the volume does not have the grid of ``like``.
    """
    node = slicer.vtkMRMLLabelMapVolumeNode() if class_name.endswith("LabelMapVolumeNode") \
        else slicer.vtkMRMLScalarVolumeNode()
    node.SetName(name)
    set_grid(node, volume, like)
    node.SetAndObserveImageData(image_from_array(volume.voxels))
    # Adding the display node first and switching its automatic window off spares a pass over all voxels, which
    # took as long as the copy.
    display = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLLabelMapVolumeDisplayNode" if node.IsA("vtkMRMLLabelMapVolumeNode")
        else "vtkMRMLScalarVolumeDisplayNode")
    if display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        display.AutoWindowLevelOff()
        display.AutoThresholdOff()
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    else:
        display.SetAndObserveColorNodeID(slicer.modules.colors.logic().GetDefaultLabelMapColorNodeID())
    node = slicer.mrmlScene.AddNode(node)
    node.SetAndObserveDisplayNodeID(display.GetID())
    return node


def set_grid(node: Any, volume: Volume, like: Any = None) -> None:
    """Give ``node`` the IJK-to-RAS matrix and parent transform of ``like``, or else the volume's own affine.

    Raises:
        GenSegError: the volume's shape differs from that of ``like``.
    """
    if like is None:
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(RAS_TO_LPS @ volume.affine))
        return
    shape = tuple(reversed(like.GetImageData().GetDimensions())) if like.GetImageData() else None
    if shape != tuple(volume.shape):
        raise GenSegError(f"The result has {volume.shape} voxels, but {like.GetName()} now has {shape}: "
                          "it changed while the job ran; run it again.")
    matrix = vtk.vtkMatrix4x4()
    like.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(like.GetTransformNodeID())


def image_from_array(voxels: np.ndarray) -> Any:
    """A vtkImageData that holds a copy of ``voxels`` (k, j, i); bool becomes uint8, float16 float32."""
    from vtk.util import numpy_support

    voxels = np.asarray(voxels)
    if voxels.dtype == bool:
        voxels = voxels.view(np.uint8)
    elif voxels.dtype == np.float16:
        voxels = voxels.astype(np.float32)
    image = vtk.vtkImageData()
    image.SetDimensions(*reversed(voxels.shape))
    image.AllocateScalars(numpy_support.get_vtk_array_type(voxels.dtype.newbyteorder("=")), 1)
    numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(voxels.shape)[...] = voxels
    return image


def seed_points_from_markups(node: Any) -> tuple[tuple[float, float, float], ...]:
    """The defined control points of a markups node as LPS mm in world space, which is where volumes made here live."""
    points = []
    if node is not None:
        for index in range(node.GetNumberOfControlPoints()):
            if node.GetNthControlPointPositionStatus(index) == slicer.vtkMRMLMarkupsNode.PositionDefined:
                x, y, z = node.GetNthControlPointPositionWorld(index)
                points.append((-float(x), -float(y), float(z)))
    return tuple(points)


def _modality(node: Any) -> str:
    """``CT``, ``MR`` ... as DICOM writes it, or "" where nothing says so."""
    modality = node.GetAttribute("DICOM.Modality")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node)
    if not modality and item != hierarchy.GetInvalidItemID():
        modality = hierarchy.GetItemAttribute(item, "DICOM.Modality")
    quantity = node.GetVoxelValueQuantity()
    if not modality and quantity is not None and quantity.GetCodeValue() == _ATTENUATION_COEFFICIENT:
        modality = "CT"
    return modality or ""


def _resample_through(node: Any, to_world: Any) -> None:
    """Resample a node without parent onto a straight grid that covers it after the transform ``to_world``."""
    image = node.GetImageData()
    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    forward = vtk.vtkGeneralTransform()
    forward.Concatenate(to_world)
    forward.Concatenate(ijk_to_ras)

    # Axes of the straight grid: the transformed grid's own at its centre, made orthogonal.
    dimensions = np.array(image.GetDimensions())
    centre = (dimensions - 1) / 2
    jacobian = np.stack([np.subtract(forward.TransformPoint(centre + step), forward.TransformPoint(centre - step))
                         for step in np.eye(3) / 2], axis=1)
    left, _, right = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0))
    axes = left @ right
    spacing = np.asarray(node.GetSpacing())

    # The transformed faces bound the transformed volume.
    fractions = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    surface = fractions[((fractions == 0) | (fractions == 1)).any(axis=1)]
    corners = np.array([forward.TransformPoint(point) for point in surface * (dimensions - 1)]) @ axes
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = np.ceil((high - low) / spacing - 1e-6).astype(int) + 1

    straight = np.eye(4)
    straight[:3, :3], straight[:3, 3] = axes * spacing, axes @ low
    pull = vtk.vtkGeneralTransform()  # output voxel -> world -> input voxel
    inverse = vtk.vtkGeneralTransform()
    inverse.DeepCopy(forward)
    inverse.Inverse()
    pull.Concatenate(inverse)
    pull.Concatenate(slicer.util.vtkMatrixFromArray(straight))

    plain = vtk.vtkImageData()
    plain.ShallowCopy(image)
    plain.SetOrigin(0, 0, 0)
    plain.SetSpacing(1, 1, 1)
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(plain)
    reslice.SetResliceTransform(pull)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent(0, int(size[0]) - 1, 0, int(size[1]) - 1, 0, int(size[2]) - 1)
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        reslice.SetInterpolationModeToNearestNeighbor()
    else:
        reslice.SetInterpolationModeToLinear()
    reslice.SetBackgroundLevel(image.GetScalarRange()[0])
    reslice.Update()
    output = vtk.vtkImageData()
    output.ShallowCopy(reslice.GetOutput())
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(straight))
    node.SetAndObserveImageData(output)
