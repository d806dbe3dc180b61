"""Pictures of slice views without a display: the real slice logic and displayable managers in an offscreen window."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLColorLegendDisplayableManager",
            "vtkMRMLMarkupsDisplayableManager")


class CannotRender(RuntimeError):
    """This machine has no OpenGL."""


class SliceView:
    """A live slice view of the scene. Make it before the nodes come, as on the desktop: legends need that.

        with SliceView("Red") as view:
            ...
            save_picture(view.picture(), path)
    """

    def __init__(self, layout_name: str = "Red", size: tuple[int, int] = (512, 512)) -> None:
        """Open a view.

        Args:
            layout_name: ``Red``, ``Green``, ``Yellow`` or a view of the current layout.
            size: width and height in pixels.

        Raises:
            CannotRender: no OpenGL here.
        """
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        (self.slice_node,) = [node for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")
                              if node.GetLayoutName() == layout_name]
        self._size = size
        self._window, self._interactor = vtk.vtkRenderWindow(), vtk.vtkRenderWindowInteractor()
        self._window.SetOffScreenRendering(True)
        self._window.SetMultiSamples(0)
        self._window.SetSize(*size)
        self._window.SetNumberOfLayers(2)
        images, overlays = vtk.vtkRenderer(), vtk.vtkRenderer()
        for layer, renderer in enumerate((images, overlays)):
            renderer.SetLayer(layer)
            self._window.AddRenderer(renderer)
        self._window.SetInteractor(self._interactor)
        if not self._window.SupportsOpenGL():
            raise CannotRender("no OpenGL on this machine (Debian: apt-get install libegl1 libgl1 libopengl0 mesa)")

        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._logic.SetSliceNode(self.slice_node)
        slicer.app.applicationLogic().GetSliceLogics().AddItem(self._logic)
        self._mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor.SetMapper(self._mapper)
        images.AddViewProp(actor)

        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for name in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._managers = factory.InstantiateDisplayableManagers(overlays)
        self._managers.SetMRMLDisplayableNode(self.slice_node)

    def fit(self) -> None:
        """Show the whole of the volumes, as the view's own button does; moves to their middle."""
        self._logic.ResizeSliceNode(*self._size)
        self.slice_node.SetDimensions(*self._size, 1)
        self._logic.FitSliceToAll()
        self.slice_node.UpdateMatrices()

    def picture(self) -> np.ndarray:
        """What the view shows: uint8 array (height, width, 3), first row on top."""
        self._mapper.SetInputConnection(self._logic.GetImageDataConnection())
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        pixels = numpy_support.vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        return pixels.reshape(self._size[1], self._size[0], -1)[::-1, :, :3].copy()

    def close(self) -> None:
        """Take the view away from the scene."""
        slicer.app.applicationLogic().GetSliceLogics().RemoveItem(self._logic)
        self._managers.SetMRMLDisplayableNode(None)
        self._managers.SetRenderer(None)
        self._logic.SetMRMLScene(None)
        self._window.Finalize()

    def __enter__(self) -> SliceView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Write ``pixels`` (height, width, 3) as PNG."""
    image = vtk.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    flat = np.ascontiguousarray(pixels[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(flat, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(image)
    writer.Write()
