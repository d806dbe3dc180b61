"""Lung nodules in chest CT: the module's panel, its logic for the Python console, and its self-test."""

from typing import Any, Union

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

import GenSegPanel  # noqa: F401 - first, for it makes GenSegLogic importable
from GenSegLogic.errors import GenSegError
from GenSegLogic.nodules.task import NoduleTask
from GenSegPanel import install, parameters, preflight, samples, timing
from GenSegPanel.controls import JobControls
from GenSegPanel.job import PanelJob
from GenSegPanel.review import FindingsReview
from GenSegPanel.service import PanelService, shared_service
from GenSegScene import display, runs, volumes
from GenSegScene.segmentations import mask_from_node
from GenSegScene.writing import results_to_scene

DEVICES = ("auto", "cpu", "cuda")
TYPICAL_REGIONS = 4  # that a search of the whole lung paints, for the estimate of time


class GenSegNodules(ScriptedLoadableModule):
    """Describes the module to Slicer."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("GenSeg Nodules")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The GenSeg developers"]
        self.parent.helpText = _(
            "Finds lung nodules in a chest CT: a generative model redraws each suspicious region as if nothing were "
            "there, and what it had to take away is the nodule. For research, not for clinical use.")
        self.parent.acknowledgementText = _(
            "Method: training-free guidance of a rectified flow, after Petersen, Alvén and Kahl, arXiv 2604.08313.")
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        """Offer the phantom as sample data, and make the side-by-side layout known before a scene needs it."""
        samples.register(self.resourcePath("Icons/GenSegNodulesPhantom.png"))
        display.register_layout()


@parameterNodeWrapper
class GenSegNodulesParameterNode:
    """What the panel shows, kept in the scene. Ranges and defaults come from the task."""

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    seedPoints: slicer.vtkMRMLMarkupsFiducialNode
    # typing.Union: Slicer's node selectors do not know the type that | makes.
    lungs: Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007
    result: slicer.vtkMRMLSegmentationNode
    bundle: parameters.annotation(NoduleTask, "bundle")
    predictor: parameters.annotation(NoduleTask, "predictor")
    device: str = DEVICES[0]
    threshold: parameters.annotation(NoduleTask, "threshold")
    steps: parameters.annotation(NoduleTask, "steps")
    guidance: parameters.annotation(NoduleTask, "guidance")
    start: parameters.annotation(NoduleTask, "start")
    probability: parameters.annotation(NoduleTask, "probability")
    most: parameters.annotation(NoduleTask, "most")
    seed: parameters.annotation(NoduleTask, "seed")


TASK_PARAMETERS = ("bundle", "predictor", "threshold", "steps", "guidance", "start", "probability", "most", "seed")


class GenSegNodulesWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._preflight = preflight.Preflight()

    # Life cycle

    def setup(self):
        """Load the widgets and connect them; called once, when the panel is first shown."""
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/GenSegNodules.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = GenSegNodulesLogic()
        self.controls = JobControls(self.ui, self.onBegin)
        self.review = FindingsReview(self.ui, self.parent, self.controls.tell)
        parameters.describe_widgets(NoduleTask, {
            "bundle": self.ui.bundleCombo, "predictor": self.ui.predictorCombo, "steps": self.ui.stepsSpinBox,
            "guidance": self.ui.guidanceSlider, "start": self.ui.startSlider,
            "probability": self.ui.probabilitySlider, "most": self.ui.mostSpinBox, "seed": self.ui.seedSpinBox,
            "threshold": self.ui.thresholdSlider})
        self.ui.inputSelector.toolTip = NoduleTask.inputs["image"]
        self.ui.lungsSelector.toolTip = NoduleTask.inputs["lungs"]
        self.ui.seedSelector.toolTip = NoduleTask.parameters()["seed_points"].metadata["help"]
        self.ui.deviceCombo.addItems(list(DEVICES))

        self.ui.resultSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.review.setSegmentation)
        self.ui.hardenButton.connect("clicked()", self.onHarden)
        self.ui.bundlesFolderButton.connect("clicked()", self.onShowBundlesFolder)
        self.ui.bundleCombo.connect("currentIndexChanged(int)", self.onChoice)
        self.ui.predictorCombo.connect("currentIndexChanged(int)", self.onChoice)
        self.ui.deviceCombo.connect("currentIndexChanged(int)", self.onChoice)

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        display.register_layout()
        self.initializeParameterNode()

    def cleanup(self):
        """The panel goes away: end its job, and the service unless another panel needs it."""
        if self.controls.busy:
            self.controls.job.abandon()
        self.exit()
        self.review.setSegmentation(None)
        self.removeObservers()
        if not self.logic.service.jobs:
            self.logic.service.stop()

    def enter(self):
        """The user opens the panel."""
        self.initializeParameterNode()
        self.review.installKeys()

    def exit(self):
        """The user goes to another module; a job goes on."""
        self.review.removeKeys()
        self.ui.seedPlaceWidget.placeModeEnabled = False
        self.setParameterNode(None)

    def onSceneStartClose(self, caller=None, event=None):
        """The job, if any, cancels itself."""
        self.review.setSegmentation(None)
        self.setParameterNode(None)

    def onSceneEndClose(self, caller=None, event=None):
        """Go on with the new scene if the panel is shown."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    # State

    def initializeParameterNode(self):
        """Take the scene's parameter node, and the first volume where none was chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            scans = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
                     if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetAttribute(runs.RUN)]
            if scans:
                self._parameterNode.inputVolume = scans[0]

    def setParameterNode(self, parameterNode):
        """Show another parameter node, or none."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self._parameterNode = parameterNode
        if parameterNode is None:
            return
        # The run comes first: its threshold is in the parameter node too, and moving the slider rewrites segments.
        self.review.setSegmentation(parameterNode.result)
        self._guiTag = parameterNode.connectGui(self.ui)
        self.addObserver(parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self.onParameters()

    def onParameters(self, caller=None, event=None):
        """Something was chosen: show it where no connection does, and look whether Apply can be pressed."""
        node = self._parameterNode
        parameters.fill_choices(self.ui.bundleCombo, parameters.bundle_names("flow"), node.bundle)
        parameters.fill_choices(self.ui.predictorCombo, parameters.bundle_names("predictor"), node.predictor)
        parameters.fill_choices(self.ui.deviceCombo, list(DEVICES), node.device)
        self.ui.seedPlaceWidget.setCurrentNode(node.seedPoints)
        self.checkCanApply()

    def onChoice(self, index):
        """A bundle or the device was chosen."""
        if self._parameterNode is not None and index >= 0:
            with slicer.util.NodeModify(self._parameterNode.parameterNode):
                chosen = (self.ui.bundleCombo.currentText, self.ui.predictorCombo.currentText,
                          self.ui.deviceCombo.currentText)
                self._parameterNode.bundle, self._parameterNode.predictor, self._parameterNode.device = chosen

    def taskParameters(self) -> dict[str, Any]:
        """Parameter name -> value, as the panel shows them."""
        return {name: getattr(self._parameterNode, name) for name in TASK_PARAMETERS}

    def checkCanApply(self):
        """Show the preflight line and let Apply say why it is off."""
        node = self._parameterNode
        points = volumes.seed_points_from_markups(node.seedPoints)
        self._preflight = preflight.check(
            lambda: NoduleTask(seed_points=points, **self.taskParameters()), node.inputVolume,
            (node.bundle, node.predictor), lambda task, volume: self.logic.expectedSeconds(task, volume, node.device))
        self.ui.preflightLabel.text = self._preflight.text()
        self.ui.hardenButton.visible = self._preflight.node_to_harden is not None
        self.controls.setReady(self._preflight.ready, self._preflight.problem or _(
            "Find the nodules; results are named after the scan and lie under it."))

    # Actions

    def onBegin(self):
        """Apply: install what is missing, then start; None if the user declined."""
        if not install.ensure():
            self.controls.tell(_("Nothing was installed, so nothing was started."))
            return None
        node = self._parameterNode
        return self.logic.start(
            node.inputVolume, seedPoints=node.seedPoints, lungs=node.lungs, device=node.device,
            onProgress=self.controls.progress, onFinished=self.onFinished, onFailed=self.onFailed,
            onCancelled=self.onCancelled, **self.taskParameters())

    def onFinished(self, nodes):
        """Show the run that has just been written."""
        results = self.controls.job.results
        self.controls.tell(" ".join([results.summary, *results.messages]))
        self.controls.update()
        self.logic.getParameterNode().result = nodes["nodules_segmentation"]  # the panel may be closed meanwhile
        self.review.setSegmentation(nodes["nodules_segmentation"])
        self.ui.resultsCollapsible.collapsed = False

    def onFailed(self, sentence):
        """Say why; the scene is as it was."""
        self.controls.fail(sentence, self.controls.job.details)
        self.controls.update()

    def onCancelled(self):
        """Say so."""
        self.controls.tell(_("Stopped; the scene is as it was."))
        self.controls.update()

    def onHarden(self):
        """Use a copy of the scan with its transform applied."""
        with slicer.util.tryWithErrorDisplay(_("The copy could not be made."), waitCursor=True):
            self._parameterNode.inputVolume = volumes.harden_copy(self._preflight.node_to_harden)

    def onShowBundlesFolder(self):
        """Open the folder of fetched and imported bundles, which the user may empty."""
        import qt

        from GenSegLogic.bundles import cache_folder

        cache_folder().mkdir(parents=True, exist_ok=True)
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(cache_folder())))


class GenSegNodulesLogic(ScriptedLoadableModuleLogic):
    """Finds nodules in volume nodes, from the panel or from the Python console.

    Copy and paste, with a chest CT loaded as ``chest``::

        from GenSegNodules import GenSegNodulesLogic
        nodes = GenSegNodulesLogic().run(slicer.util.getNode("chest"), steps=8)
        print(nodes["nodules_segmentation"].GetSegmentation().GetNumberOfSegments(), "nodules")

    Without blocking the window::

        job = GenSegNodulesLogic().start(slicer.util.getNode("chest"),
                                         onProgress=lambda fraction, message: print(f"{fraction:.0%} {message}"),
                                         onFinished=lambda nodes: print(nodes["nodules_table"].GetName()),
                                         onFailed=print)
        job.cancel()        # at any time
    """

    def __init__(self, service: PanelService | None = None) -> None:
        """
        Args:
            service: where jobs run; None: the one that all panels share.
        """
        ScriptedLoadableModuleLogic.__init__(self)
        self.service = service or shared_service()

    def getParameterNode(self):
        """The scene's parameter node with typed attributes."""
        return GenSegNodulesParameterNode(super().getParameterNode())

    def run(self, inputVolume, *, seedPoints=None, lungs=None, device="auto", show=True, onProgress=None,
            **taskParameters) -> dict[str, Any]:
        """Find nodules and wait for the result; works with and without an event loop.

        Args:
            inputVolume: vtkMRMLScalarVolumeNode, a chest CT in HU.
            seedPoints: vtkMRMLMarkupsFiducialNode whose points (RAS, mm) are suspicious; None: search the lungs.
            lungs: segmentation or labelmap node of the lungs; None: found by threshold.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            show: show the results in the slice views.
            onProgress: called with the fraction done and a message.
            taskParameters: any of ``NoduleTask.parameters()``: steps, guidance, threshold, seed, ...

        Returns:
            The new nodes by key: ``nodules_segmentation``, ``nodules_table``, ``counterfactual``, ``residual``.

        Raises:
            GenSegError: with one sentence; the scene is unchanged.
        """
        return self._job(inputVolume, seedPoints, lungs, device, show, taskParameters, onProgress=onProgress).run()

    def start(self, inputVolume, *, seedPoints=None, lungs=None, device="auto", show=True, onProgress=None,
              onFinished=None, onFailed=None, onCancelled=None, **taskParameters) -> PanelJob:
        """Find nodules in the background and return at once; needs an event loop.

        Args:
            onProgress: called with the fraction done and a message. onFinished: with the new nodes, as :meth:`run`
                returns them. onFailed: with one sentence. onCancelled: with nothing.
            inputVolume, seedPoints, lungs, device, show, taskParameters: as for :meth:`run`.

        Returns:
            The job; ``job.cancel()`` stops it and leaves the scene as it was.

        Raises:
            GenSegError: the inputs cannot be used.
        """
        return self._job(inputVolume, seedPoints, lungs, device, show, taskParameters, onProgress=onProgress,
                         onFinished=onFinished, onFailed=onFailed, onCancelled=onCancelled).start()

    def expectedSeconds(self, task, volume, device="auto") -> float:
        """How long a task will take on a volume, as far as can be known before."""
        return timing.expected_seconds(task.name, *_amount(task, volume), device)

    def _job(self, inputVolume, seedPoints, lungs, device, show, taskParameters, onFinished=None, **callbacks):
        scan = volumes.volume_from_node(inputVolume)
        try:
            task = NoduleTask(seed_points=volumes.seed_points_from_markups(seedPoints), **taskParameters)
        except TypeError as error:
            raise GenSegError(f"nodules has no such parameter ({error}): see NoduleTask.parameters().") from error
        mask = mask_from_node(lungs, inputVolume) if lungs is not None else None
        amount = _amount(task, scan)

        def write(results):
            with slicer.util.RenderBlocker():
                return results_to_scene(results, inputVolume, inputs={"lungs": lungs, "seed_points": seedPoints},
                                        show=show)

        def finished(nodes):
            timing.remember(task.name, *amount, device, job.seconds)
            if onFinished is not None:
                onFinished(nodes)

        job = PanelJob(self.service, task, preflight.inputs_with(scan, {"lungs": mask}), write, device,
                       onFinished=finished, **callbacks)
        return job


def _amount(task, volume) -> tuple[int, float]:
    """Sampler steps over all regions, and the size of the volume in million voxels."""
    regions = len(task.seed_points) or min(TYPICAL_REGIONS, task.most)
    return task.steps * regions, volume.voxels.size / 1e6


class GenSegNodulesTest(ScriptedLoadableModuleTest):
    """The self-test that Slicer's developer mode and its generic ctest run; the others lie in Testing/desktop."""

    def setUp(self):
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests."""
        self.setUp()
        self.test_phantom_passes_preflight()

    def test_phantom_passes_preflight(self):
        """The sample is a CT that the task has no doubts about."""
        node = samples.add_chest_phantom()
        found = preflight.check(NoduleTask, node, (), lambda task, volume: None)
        self.assertTrue(found.ready, found.problem)
        self.assertIn("CT", found.summary)
        self.assertEqual(found.doubts, ())
