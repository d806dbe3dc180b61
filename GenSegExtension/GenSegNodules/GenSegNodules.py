"""Lung nodules in chest CT: the module's panel, its logic for the Python console, and its self-test."""

from dataclasses import replace
from typing import Any, Union

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

import GenSegPanel  # noqa: F401 - first, for it makes GenSegLogic importable
from GenSegLogic.errors import GenSegError
from GenSegLogic.nodules.task import NoduleTask
from GenSegPanel import parameters, preflight, samples, timing
from GenSegPanel.job import PanelJob, task_job
from GenSegPanel.panel import DEVICES, TaskPanel
from GenSegPanel.review import FindingsReview
from GenSegPanel.service import PanelService, shared_service
from GenSegScene import display, volumes
from GenSegScene.segmentations import mask_from_node

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
        samples.register("chest", self.resourcePath("Icons/GenSegNodulesPhantom.png"))
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
    evidence: parameters.annotation(NoduleTask, "evidence")
    most: parameters.annotation(NoduleTask, "most")
    seed: parameters.annotation(NoduleTask, "seed")


TASK_PARAMETERS = ("bundle", "predictor", "threshold", "steps", "guidance", "start", "probability", "evidence", "most",
                   "seed")


class GenSegNodulesWidget(TaskPanel):
    """The panel."""

    task = "nodules"
    _watchedPoints = None  # the markups node that onPoints observes

    def makeLogic(self):
        """The logic on the service that all panels share."""
        return GenSegNodulesLogic()

    def makeReview(self):
        """Working through the findings."""
        return FindingsReview(self.ui, self.parent, self.controls.tell)

    def setupMore(self):
        """Describe the controls as the task does, and connect the choices."""
        parameters.describe_widgets(NoduleTask, {
            "bundle": self.ui.bundleCombo, "predictor": self.ui.predictorCombo, "steps": self.ui.stepsSpinBox,
            "guidance": self.ui.guidanceSlider, "start": self.ui.startSlider,
            "probability": self.ui.probabilitySlider, "evidence": self.ui.evidenceSlider,
            "most": self.ui.mostSpinBox, "seed": self.ui.seedSpinBox, "threshold": self.ui.thresholdSlider})
        self.ui.inputSelector.toolTip = NoduleTask.inputs["image"]
        self.ui.lungsSelector.toolTip = _(
            "{mask}. Of a segmentation, the segments that are lungs or their lobes by terminology or have \"lung\" in "
            "their name are taken; all of them where none is.").format(mask=NoduleTask.inputs["lungs"])
        self.ui.seedSelector.toolTip = _("Suspicious spots: create a list of points here, press the button beside it, "
                                         "and click on them in the slice views. Without one, the whole lung is "
                                         "searched.")
        self.ui.seedPlaceWidget.buttonsVisible = False  # colour, lock and the like, which squeeze the selector
        self.ui.seedPlaceWidget.placeButton().show()
        self.ui.seedPlaceWidget.deleteButton().show()
        self.ui.bundleCombo.connect("currentIndexChanged(int)", self.onChoice)
        self.ui.predictorCombo.connect("currentIndexChanged(int)", self.onChoice)
        self.ui.deviceCombo.connect("currentIndexChanged(int)", self.onChoice)
        self.ui.thresholdSlider.connect("valueChanged(double)", self.onThreshold)
        display.register_layout()
        if self.parent.isEntered:  # reloaded, and nobody enters what is shown already
            self.review.installKeys()

    def enter(self):
        """The user opens the panel."""
        super().enter()
        self.review.installKeys()

    def exit(self):
        """The user goes to another module; a job goes on."""
        self.review.removeKeys()
        if self.ui.seedPlaceWidget.placeModeEnabled:  # else the user's own mouse mode would end
            self.ui.seedPlaceWidget.placeModeEnabled = False
        super().exit()

    def setParameterNode(self, parameterNode):
        """Show another parameter node, or none."""
        super().setParameterNode(parameterNode)
        if parameterNode is None:
            self._watchPoints(None)

    def showRun(self, segmentation):
        """Show another run, with its threshold."""
        super().showRun(segmentation)
        if segmentation is not None:
            self._parameterNode.threshold = self.review.threshold()

    def onThreshold(self, value):
        """The user moved the threshold: of the run that is shown, and of the next one."""
        if self._parameterNode is not None and not self.review.updating:
            self._parameterNode.threshold = value
            self.review.writeThreshold(value)

    def showParameters(self):
        """Threshold, bundles, the place widget, and the points that are placed by it."""
        node = self._parameterNode
        self.review.showThreshold(node.threshold)
        parameters.fill_choices(self.ui.bundleCombo, parameters.bundle_names("flow"), node.bundle)
        parameters.fill_choices(self.ui.predictorCombo, parameters.bundle_names("predictor"), node.predictor)
        self.ui.seedPlaceWidget.setCurrentNode(node.seedPoints)
        self._watchPoints(node.seedPoints)

    def _watchPoints(self, node):
        """Observe the points of this node and of no other; None: of none."""
        if node is self._watchedPoints:
            return
        self.removeObservers(self.onPoints)
        self._watchedPoints = node
        if node is not None:
            for event in (node.PointPositionDefinedEvent, node.PointPositionUndefinedEvent, node.PointRemovedEvent):
                self.addObserver(node, event, self.onPoints)

    def onPoints(self, caller=None, event=None):
        """A suspicious spot was placed or removed."""
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
        found = preflight.check(
            lambda: NoduleTask(seed_points=points, **self.taskParameters()), node.inputVolume,
            lambda task, volume: self.logic.expectedSeconds(task, volume, node.device), _("a chest CT"))
        if node.seedPoints is not None and not points:
            doubt = _("{name} holds no point, so the whole lung would be searched: place one on each suspicious spot.")
            found = replace(found, doubts=(doubt.format(name=node.seedPoints.GetName()), *found.doubts))
        self.showPreflight(found, _("Find the nodules; results are named after the scan and lie under it."))

    def begin(self):
        """Start a job with what the panel shows."""
        node = self._parameterNode
        return self.logic.start(node.inputVolume, seedPoints=node.seedPoints, lungs=node.lungs, device=node.device,
                                **self.callbacks(), **self.taskParameters())


class GenSegNodulesLogic(ScriptedLoadableModuleLogic):
    """Finds nodules in volume nodes, from the panel or from the Python console.

    Copy and paste, with a chest CT loaded as ``chest``::

        from GenSegNodules import GenSegNodulesLogic
        nodes = GenSegNodulesLogic().run(slicer.util.getNode("chest"), most=5)
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
            show: show the results in the slice views; a function is asked when they are written.
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
        return timing.expected_seconds(task.name, _steps(task), volume.voxels.size / 1e6, device)

    def _job(self, inputVolume, seedPoints, lungs, device, show, taskParameters, **callbacks):
        scan = volumes.volume_from_node(inputVolume)
        try:
            task = NoduleTask(seed_points=volumes.seed_points_from_markups(seedPoints), **taskParameters)
        except TypeError as error:
            raise GenSegError(f"nodules has no such parameter ({error}): see NoduleTask.parameters().") from error
        mask = mask_from_node(lungs, inputVolume) if lungs is not None else None
        return task_job(self.service, task, inputVolume, scan, {"lungs": mask},
                        {"lungs": lungs, "seed_points": seedPoints}, _steps(task), device, show, **callbacks)


def _steps(task) -> int:
    """Sampler steps over all regions."""
    return task.steps * (len(task.seed_points) or min(TYPICAL_REGIONS, task.most))


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
        node = samples.add_phantom("chest")
        found = preflight.check(NoduleTask, node, lambda task, volume: None, "a CT")
        self.assertTrue(found.ready, found.problem)
        self.assertIn("CT", found.summary)
        self.assertEqual(found.doubts, ())
