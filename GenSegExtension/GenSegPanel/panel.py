"""The widget of a panel as far as all panels are alike: its life, its parameter node, and what becomes of a job."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from GenSegScene import display, runs, volumes

from . import install, parameters, preflight
from .controls import JobControls
from .run_review import RunReview

DEVICES = ("auto", "cpu", "cuda")


class TaskPanel(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Base of the panels' widgets: one scan in, one task, one run of results to look at.

    A panel's own class gives the methods below "What a panel gives". Its ``.ui`` has the widgets that
    :class:`~GenSegPanel.controls.JobControls` and :class:`~GenSegPanel.run_review.RunReview` drive, and
    ``resultSelector``, ``resultsCollapsible``, ``hardenButton``, ``bundlesFolderButton``, ``deviceCombo``; its
    parameter node has ``inputVolume``, ``result`` and ``device``.

    Attributes:
        task: name of the task (``nodules``), whose runs can be looked at.
        logic, controls, review, ui: there after :meth:`setup`.
    """

    task = ""
    logic: Any
    controls: JobControls
    review: RunReview
    ui: Any

    def __init__(self, parent: Any = None) -> None:
        """Called by Slicer with the widget to fill."""
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self._parameterNode: Any = None
        self._guiTag: Any = None
        self._preflight = preflight.Preflight()
        self._selectors: list[Any] = []  # all that choose a node
        self._unseen = False  # whether the last run was written while the user worked in another module

    # What a panel gives

    def makeLogic(self) -> Any:
        """The module's logic."""
        raise TypeError(f"{type(self).__name__} makes no logic")

    def makeReview(self) -> RunReview:
        """What drives the results section."""
        raise TypeError(f"{type(self).__name__} makes no review")

    def setupMore(self) -> None:
        """Describe and connect the panel's own widgets; the scene's parameter node comes afterwards."""

    def showParameters(self) -> None:
        """Show of the parameter node what no connection shows."""

    def checkCanApply(self) -> None:
        """Show the preflight line and let Apply say why it is off."""

    def begin(self) -> Any:
        """Start the job, with the callbacks of :meth:`callbacks`."""
        raise TypeError(f"{type(self).__name__} starts no job")

    # Life cycle

    def setup(self) -> None:
        """Load the widgets and connect them; called once, when the panel is first shown."""
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath(f"UI/{self.moduleName}.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        self._selectors = slicer.util.findChildren(widget, className="qMRMLNodeComboBox")
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = self.makeLogic()
        self.controls = JobControls(self.ui, self.onBegin)
        self.review = self.makeReview()
        self.ui.deviceCombo.addItems(list(DEVICES))
        self.setupMore()
        self.ui.resultSelector.addAttribute("vtkMRMLSegmentationNode", runs.TASK, self.task)
        # Only of the user's own choice, so that opening the module or a scene leaves the views alone.
        self.ui.resultSelector.connect("nodeActivated(vtkMRMLNode*)", self.review.onChosen)
        self.ui.hardenButton.connect("clicked()", self.onHarden)
        self.ui.bundlesFolderButton.connect("clicked()", self.onShowBundlesFolder)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        # Before the lists of the selectors hear of it, which they do with priority -10.
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved,
                         priority=10.0)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """The panel goes away: end its job, and the service unless another panel needs it."""
        if self.controls.busy:
            self.controls.job.abandon()
        if not self.logic.service.jobs:
            self.logic.service.stop()
        if self.parent:  # false of a widget that is gone, as when the application ends
            self.exit()
            self.review.setSegmentation(None)
        self.review.removeObservers()
        self.removeObservers()

    def enter(self) -> None:
        """The user opens the panel, maybe after editing segments elsewhere or while a job found something."""
        self.initializeParameterNode()
        if self._unseen:
            self._unseen = False
            self.review.onNew()
        else:
            self.review.tellEdited()

    def exit(self) -> None:
        """The user goes to another module; a job goes on."""
        self.setParameterNode(None)

    def onSceneStartClose(self, caller: Any = None, event: Any = None) -> None:
        """The job, if any, cancels itself."""
        if not self.controls.busy:
            self.controls.job = None  # it holds the nodes that go away
            self.controls.tell("")  # which would else be read as the next patient's
        self._unseen = False
        display.leave_side_by_side()  # while the scene still knows the layout from before
        self.review.setSegmentation(None)
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any = None, event: Any = None) -> None:
        """Go on with the new scene if the panel is shown."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller: Any, event: str, node: Any) -> None:
        """Choose nothing where this node is chosen: left to itself, the selector would choose a neighbour of it."""
        for selector in self._selectors:
            if selector.currentNode() is node:
                selector.setCurrentNode(None)
        if self.review.node is node:  # while the panel is not shown, no selector tells it
            self.review.setSegmentation(None)

    # State

    def isShown(self) -> bool:
        """Whether the user works in this panel; if not, the views belong to another module."""
        return self._parameterNode is not None

    def initializeParameterNode(self) -> None:
        """Take the scene's parameter node, and the first volume where none was chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            scans = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
                     if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetAttribute(runs.RUN)]
            if scans:
                self._parameterNode.inputVolume = scans[0]

    def setParameterNode(self, parameterNode: Any) -> None:
        """Show another parameter node, or none."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self._parameterNode = parameterNode
        if parameterNode is None:
            return
        self._guiTag = parameters.connect(parameterNode, self.ui)
        self.addObserver(parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self.onParameters()

    def onParameters(self, caller: Any = None, event: Any = None) -> None:
        """Something was chosen: show it where no connection does, and look whether Apply can be pressed."""
        if self._parameterNode.result is not self.review.node:
            self.showRun(self._parameterNode.result)
        parameters.fill_choices(self.ui.deviceCombo, list(DEVICES), self._parameterNode.device)
        self.showParameters()
        self.checkCanApply()

    def showRun(self, segmentation: Any) -> None:
        """Show another run in the results section; None: none."""
        self.review.setSegmentation(segmentation)

    def showPreflight(self, found: preflight.Preflight, purpose: str) -> None:
        """Show what is known before a job; ``purpose`` is Apply's tool tip when it can start."""
        self._preflight = found
        self.ui.preflightLabel.text = found.text()
        self.ui.hardenButton.visible = found.node_to_harden is not None
        self.controls.setReady(found.ready, found.problem or purpose)

    # Actions

    def onBegin(self) -> Any:
        """Apply: install what is missing, then start; None if the user declined."""
        if not install.ensure():
            self.controls.tell(_("Nothing was installed, so nothing was started."))
            return None
        return self.begin()

    def callbacks(self) -> dict[str, Any]:
        """What a job calls, as the arguments of the logic's ``start``."""
        return {"show": self.isShown, "onProgress": self.controls.progress, "onFinished": self.onFinished,
                "onFailed": self.onFailed, "onCancelled": self.onCancelled}

    def onFinished(self, nodes: dict[str, Any]) -> None:
        """Show the run that has just been written, if need be when the user comes back."""
        job = self.controls.job
        self.controls.announce(" ".join([job.results.summary, *job.results.messages]))
        self.controls.update()
        self.logic.getParameterNode().result = nodes[f"{self.task}_segmentation"]
        job.nodes = {}  # else a run that the user deletes would stay in memory until the next Apply
        self.ui.resultsCollapsible.collapsed = False
        self._unseen = not self.isShown()
        if not self._unseen:
            self.review.showFirst()

    def onFailed(self, sentence: str) -> None:
        """Say why; the scene is as it was."""
        self.controls.announce(sentence, self.controls.job.details)
        self.controls.update()

    def onCancelled(self) -> None:
        """Say so."""
        self.controls.tell(_("Stopped; the scene is as it was."))
        self.controls.update()

    def onHarden(self) -> None:
        """Use a copy of the scan with its transform applied."""
        with slicer.util.tryWithErrorDisplay(_("The copy could not be made."), waitCursor=True):
            self._parameterNode.inputVolume = volumes.harden_copy(self._preflight.node_to_harden)

    def onShowBundlesFolder(self) -> None:
        """Open the folder of fetched and imported bundles, which the user may empty."""
        import qt

        from GenSegLogic.bundles import cache_folder

        cache_folder().mkdir(parents=True, exist_ok=True)
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(cache_folder())))
