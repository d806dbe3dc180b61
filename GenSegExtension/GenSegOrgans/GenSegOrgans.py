"""Abdominal organs in CT and MR: the module's panel, its logic for the Python console, and its self-test."""

from typing import Any

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
from GenSegLogic.anatomy import ORGANS, check_names
from GenSegLogic.bundles import AUTO
from GenSegLogic.errors import GenSegError
from GenSegLogic.organs.diffusam.task import OrgansTask, bundle_for, prior_bundle
from GenSegPanel import parameters, preflight, samples, timing
from GenSegPanel.adaptation_section import AdaptationSection
from GenSegPanel.job import PanelJob, task_job
from GenSegPanel.organ_review import OrganReview
from GenSegPanel.panel import DEVICES, TaskPanel
from GenSegPanel.service import PanelService, shared_service
from GenSegScene import volumes

NO_ORGAN = "none"
TASK_PARAMETERS = ("bundle", "steps", "samples", "seed")


class GenSegOrgans(ScriptedLoadableModule):
    """Describes the module to Slicer."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("GenSeg Organs")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The GenSeg developers"]
        self.parent.helpText = _(
            "Segments the organs of the abdomen in CT and MR without a click: a diffusion model imagines what Segment "
            "Anything 2 would remember of each organ from the slice before. For research, not for clinical use.")
        self.parent.acknowledgementText = _("Method: DiffuSAM, after Grossman et al., arXiv 2604.24719.")
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        """Offer the phantoms as sample data."""
        samples.register("abdomen-ct", self.resourcePath("Icons/GenSegOrgansPhantomCT.png"))
        samples.register("abdomen-mr", self.resourcePath("Icons/GenSegOrgansPhantomMR.png"))


@parameterNodeWrapper
class GenSegOrgansParameterNode:
    """What the panel shows, kept in the scene. Ranges and defaults come from the task."""

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    result: slicer.vtkMRMLSegmentationNode
    organs: str = ",".join(ORGANS)  # those that are ticked, or NO_ORGAN
    bundle: parameters.annotation(OrgansTask, "bundle")
    device: str = DEVICES[0]
    steps: parameters.annotation(OrgansTask, "steps")
    samples: parameters.annotation(OrgansTask, "samples")
    seed: parameters.annotation(OrgansTask, "seed")
    cases: int = 0  # scans to learn from, kept as node references by GenSegPanel.adaptation_section
    sourceFree: bool = False  # learn from them without their labels


class GenSegOrgansWidget(TaskPanel):
    """The panel."""

    task = "organs"

    def makeLogic(self):
        """The logic on the service that all panels share."""
        return GenSegOrgansLogic()

    def makeReview(self):
        """Looking at the organs."""
        return OrganReview(self.ui, self.parent, self.controls.tell)

    def setupMore(self):
        """Fill the list, describe the controls as the task does, and connect the choices."""
        parameters.describe_widgets(OrgansTask, {
            "bundle": self.ui.bundleCombo, "organs": self.ui.organsList, "steps": self.ui.stepsSpinBox,
            "samples": self.ui.samplesSpinBox, "seed": self.ui.seedSpinBox})
        self.ui.inputSelector.toolTip = OrgansTask.inputs["image"]
        self.ui.organsList.addItems([organ.title for organ in ORGANS.values()])
        self.ui.organsList.connect("itemChanged(QListWidgetItem*)", self.onTick)
        self.ui.allOrgansButton.connect("clicked()", self.onAllOrgans)
        self.ui.noOrgansButton.connect("clicked()", self.onNoOrgans)
        self.adaptation = AdaptationSection(self.ui, lambda: self._parameterNode, self.onLearned)
        self.ui.bundleCombo.connect("currentIndexChanged(int)", self.onChoice)
        self.ui.deviceCombo.connect("currentIndexChanged(int)", self.onChoice)

    def cleanup(self):
        """The panel goes away: end its job and its learning."""
        if self.adaptation.busy:
            self.adaptation.adaptation.cancel()
        super().cleanup()

    def onSceneStartClose(self, caller=None, event=None):
        """The job, if any, cancels itself; learning goes on once it has its cases."""
        self.adaptation.onSceneStartClose()
        super().onSceneStartClose(caller, event)

    def onLearned(self, name):
        """Choose the bundle that was learned; the panel may be closed meanwhile."""
        self.logic.getParameterNode().bundle = name

    def showParameters(self):
        """Bundles, and the organs that the chosen one knows."""
        import qt

        node = self._parameterNode
        parameters.fill_choices(self.ui.bundleCombo, [AUTO, *parameters.bundle_names("organs")], node.bundle)
        ticked, known, blocked = self.tickedOrgans(), self.knownOrgans(), self.ui.organsList.blockSignals(True)
        for row, name in enumerate(ORGANS):
            self.ui.organsList.item(row).setCheckState(qt.Qt.Checked if name in ticked else qt.Qt.Unchecked)
            self.ui.organsList.setRowHidden(row, name not in known)
        self.ui.organsList.blockSignals(blocked)
        self.adaptation.refresh()

    def tickedOrgans(self) -> tuple[str, ...]:
        """Names of the organs that are ticked, whether the bundle knows them or not."""
        return tuple(name for name in ORGANS if name in self._parameterNode.organs.split(","))

    def knownOrgans(self) -> tuple[str, ...]:
        """Names of the organs that the bundle knows; all of them where the bundle is not there to be asked."""
        try:
            volume = volumes.volume_from_node(self._parameterNode.inputVolume)
            bundle = prior_bundle(bundle_for(volume, self._parameterNode.bundle))
            return check_names(bundle.metadata.get("organs", ORGANS))
        except GenSegError:  # the preflight line says it
            return tuple(ORGANS)

    def onTick(self, item):
        """An organ was ticked or no longer is."""
        import qt

        if self._parameterNode is not None:
            self._setOrgans([name for row, name in enumerate(ORGANS)
                             if self.ui.organsList.item(row).checkState() == qt.Qt.Checked])

    def onAllOrgans(self):
        """Tick all."""
        self._setOrgans(ORGANS)

    def onNoOrgans(self):
        """Tick none, to begin a choice of a few."""
        self._setOrgans([])

    def _setOrgans(self, names):
        self._parameterNode.organs = ",".join(names) or NO_ORGAN

    def onChoice(self, index):
        """A bundle or the device was chosen."""
        if self._parameterNode is not None and index >= 0:
            with slicer.util.NodeModify(self._parameterNode.parameterNode):
                chosen = self.ui.bundleCombo.currentText, self.ui.deviceCombo.currentText
                self._parameterNode.bundle, self._parameterNode.device = chosen

    def taskParameters(self) -> dict[str, Any]:
        """Parameter name -> value, as the panel shows them.

        Raises:
            GenSegError: if no organ is ticked.
        """
        known = self.knownOrgans()
        wanted = tuple(name for name in self.tickedOrgans() if name in known)
        if not wanted:
            raise GenSegError(_("Tick at least one organ."))
        values = {name: getattr(self._parameterNode, name) for name in TASK_PARAMETERS}
        return {**values, "organs": () if wanted == known else wanted}

    def checkCanApply(self):
        """Show the preflight line and let Apply say why it is off."""
        node = self._parameterNode
        self.showPreflight(preflight.check(
            lambda: OrgansTask(**self.taskParameters()), node.inputVolume,
            lambda task, volume: self.logic.expectedSeconds(task, volume, node.device), _("a CT or MR of the abdomen")),
            _("Segment the ticked organs; results are named after the scan and lie under it."))

    def begin(self):
        """Start a job with what the panel shows."""
        node = self._parameterNode
        return self.logic.start(node.inputVolume, device=node.device, **self.callbacks(), **self.taskParameters())


class GenSegOrgansLogic(ScriptedLoadableModuleLogic):
    """Segments organs in volume nodes, from the panel or from the Python console.

    Copy and paste, with a CT or MR of the abdomen loaded as ``abdomen``::

        from GenSegOrgans import GenSegOrgansLogic
        nodes = GenSegOrgansLogic().run(slicer.util.getNode("abdomen"), organs=("liver", "spleen"))
        print(slicer.util.arrayFromTableColumn(nodes["organs_table"], "volume_ml"), "ml")

    Without blocking the window::

        job = GenSegOrgansLogic().start(slicer.util.getNode("abdomen"),
                                        onProgress=lambda fraction, message: print(f"{fraction:.0%} {message}"),
                                        onFinished=lambda nodes: print(nodes["organs_table"].GetName()),
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
        return GenSegOrgansParameterNode(super().getParameterNode())

    def run(self, inputVolume, *, device="auto", show=True, onProgress=None, **taskParameters) -> dict[str, Any]:
        """Segment organs and wait for the result; works with and without an event loop.

        Args:
            inputVolume: vtkMRMLScalarVolumeNode, a CT in HU or an MR of the abdomen.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            show: show the results in the slice views; a function is asked when they are written.
            onProgress: called with the fraction done and a message.
            taskParameters: any of ``OrgansTask.parameters()``: bundle, organs, steps, samples, seed.

        Returns:
            The new nodes by key: ``organs_segmentation``, ``organs_table``, ``confidence``.

        Raises:
            GenSegError: with one sentence; the scene is unchanged.
        """
        return self._job(inputVolume, device, show, taskParameters, onProgress=onProgress).run()

    def start(self, inputVolume, *, device="auto", show=True, onProgress=None, onFinished=None, onFailed=None,
              onCancelled=None, **taskParameters) -> PanelJob:
        """Segment organs in the background and return at once; needs an event loop.

        Args:
            onProgress: called with the fraction done and a message. onFinished: with the new nodes, as :meth:`run`
                returns them. onFailed: with one sentence. onCancelled: with nothing.
            inputVolume, device, show, taskParameters: as for :meth:`run`.

        Returns:
            The job; ``job.cancel()`` stops it and leaves the scene as it was.

        Raises:
            GenSegError: the input cannot be used.
        """
        return self._job(inputVolume, device, show, taskParameters, onProgress=onProgress, onFinished=onFinished,
                         onFailed=onFailed, onCancelled=onCancelled).start()

    def expectedSeconds(self, task, volume, device="auto") -> float:
        """How long a task will take on a volume, as far as can be known before."""
        return timing.expected_seconds(task.name, task.steps * task.samples, volume.voxels.size / 1e6, device)

    def _job(self, inputVolume, device, show, taskParameters, **callbacks):
        scan = volumes.volume_from_node(inputVolume)
        try:
            task = OrgansTask(**taskParameters)
        except TypeError as error:
            raise GenSegError(f"organs has no such parameter ({error}): see OrgansTask.parameters().") from error
        return task_job(self.service, task, inputVolume, scan, {}, {}, task.steps * task.samples, device, show,
                        **callbacks)


class GenSegOrgansTest(ScriptedLoadableModuleTest):
    """The self-test that Slicer's developer mode and its generic ctest run."""

    def setUp(self):
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests."""
        self.setUp()
        self.test_parameters_start_at_the_tasks_defaults()

    def test_parameters_start_at_the_tasks_defaults(self):
        """A new scene's parameter node holds the defaults of the task, and every organ."""
        node = GenSegOrgansLogic().getParameterNode()
        for name in TASK_PARAMETERS:
            self.assertEqual(getattr(node, name), OrgansTask.parameters()[name].default, name)
        self.assertEqual(node.organs.split(","), list(ORGANS))
