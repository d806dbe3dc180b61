"""The recipes behind ``genseg train RECIPE``: from nothing to a bundle with its card, each within its time budget.

Every recipe takes ``(output, minutes, seed, progress)``, those of the organs' priors also ``device`` and ``sam2``. It
works in ``<output>.work`` beside the bundle, where an interrupted run goes on, and shares the training tiles in
``chest-tiles`` beside it with the other chest recipes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress, part

if TYPE_CHECKING:
    from torch import nn

    from ..bundles import Bundle

Networks = dict[str, tuple[str, dict[str, Any], "nn.Module"]]
"""Name in the bundle -> target of :data:`GenSegLogic.networks.TARGETS`, arguments, network."""

RECIPES: dict[str, str] = {
    "chest-flow": "GenSegLogic.training.recipes:chest_flow",
    "nodule-cnn": "GenSegLogic.training.recipes:nodule_cnn",
    "nodule-tinyvit": "GenSegLogic.training.recipes:nodule_tinyvit",
    "nodule-unet": "GenSegLogic.training.recipes:nodule_unet",
    "organs-sam2": "GenSegLogic.training.organs:sam2",
    "organs-ct": "GenSegLogic.training.organs:prior_ct",
    "organs-mr": "GenSegLogic.training.organs:prior_mr",
}
"""Word on the command line -> ``module:function``."""

TILES_SHARE = 0.15
"""Part of the time that drawing the tiles may take; recipes that find them drawn train longer."""


def chest_flow(output: Path, minutes: float, seed: int, progress: Progress) -> None:
    """The generative model of the chest: autoencoder and rectified flow."""
    from . import chest_flow as recipe

    crops, _, facts, left = _tiles(output, minutes, seed, progress)
    work = work_folder(output, seed)
    autoencoder, scale, velocity, curve = recipe.fit(crops, work, left, seed, part(progress, 0.1, 1))
    networks = {
        "autoencoder": ("folding-autoencoder", recipe.AUTOENCODER, autoencoder),
        # In half precision on disk, where it is by far the largest file; it is widened when it is loaded.
        "velocity": ("maisi-velocity", recipe.VELOCITY, velocity.half()),
    }
    latent = {"channels": 4, "downsampling": 2, "scale_factor": scale}
    description = "Factor-2 autoencoder and rectified flow of chest CT, trained on procedural phantoms."
    _write(output, "chest-flow", "flow", "generation", description, networks, curve, seed, left, facts, latent=latent)


def nodule_cnn(output: Path, minutes: float, seed: int, progress: Progress) -> None:
    """The convolutional predictor."""
    _predictor("nodule-cnn", "predictor-cnn", "3D residual network", output, minutes, seed, progress)


def nodule_tinyvit(output: Path, minutes: float, seed: int, progress: Progress) -> None:
    """The TinyViT predictor."""
    family = "TinyViT on triplets of axial slices"
    _predictor("nodule-tinyvit", "predictor-tinyvit", family, output, minutes, seed, progress)


def nodule_unet(output: Path, minutes: float, seed: int, progress: Progress) -> None:
    """The supervised upper bound: it alone reads voxel labels, and only the evaluation uses it."""
    from . import nodule_unet as recipe
    from .chest_tiles import nodule_tiles
    from .data import Crops

    began = time.monotonic()
    folder = output.with_name("chest-tiles")
    drawn = nodule_tiles(folder, "train", seed, part(progress, 0, 0.09), TILES_SHARE * minutes)
    held_out = Crops([nodule_tiles(folder, "held-out", seed, part(progress, 0.09, 0.1))])
    crops, facts, left = Crops([drawn]), _facts([drawn]), _left(minutes, began)
    network, curve = recipe.fit(crops, held_out, work_folder(output, seed), left, seed, part(progress, 0.1, 1))
    networks: Networks = {"segmenter": ("segmenter-unet", {}, network)}
    description = "Supervised 3D U-Net of nodules, the upper bound of the benchmark; trained on voxel labels."
    _write(output, "nodule-unet", "segmenter", "segmentation", description, networks, curve, seed, left, facts)


def _predictor(
    recipe_name: str, target: str, family: str, output: Path, minutes: float, seed: int, progress: Progress
) -> None:
    from . import nodule_calibration as calibration
    from . import nodule_predictor as recipe
    from .chest_tiles import search_tiles
    from .data import Crops

    began, work = time.monotonic(), work_folder(output, seed)
    crops, held_out, facts, left = _tiles(output, minutes, seed, progress)
    network, curve = recipe.fit(
        recipe.untrained(target, seed), crops, held_out, work / "even", recipe.EVEN_TIME * left, seed,
        part(progress, 0.1, 0.6),
    )
    searched = search_tiles(work / "searched", network, seed, part(progress, 0.6, 0.65))
    crops = Crops([*crops.folders, searched])
    facts["tiles"] |= _facts([searched])["tiles"]
    hard_minutes = min((1 - recipe.EVEN_TIME) * left, _left(minutes, began))
    network, more = recipe.fit(
        network, crops, held_out, work / "hard", hard_minutes, seed + 1, part(progress, 0.65, 0.95),
        recipe.chances_by_loss(network, crops),
    )
    curve += [row | {name: round(curve[-1][name] + row[name], 2) for name in ("step", "minutes")} for row in more]
    cases = calibration.calibration_cases(
        calibration.NODULES, calibration.CLEAN_PATIENTS, part(progress, 0.95, 1)
    )
    facts["calibration"] = calibration.calibrate(network, cases)
    networks: Networks = {"predictor": (target, recipe.PREDICTORS[target], network)}
    description = f"Is there a nodule in this crop? {family}, trained on one bit per crop."
    _write(output, recipe_name, "predictor", "classification", description, networks, curve, seed, left, facts)


def work_folder(output: Path, seed: int) -> Path:
    """Where the training of a bundle works: what was begun with one seed does not go on with another.

    Its parent goes once the bundle is written.
    """
    return output.with_name(output.name + ".work") / f"seed-{seed}"


def _tiles(output: Path, minutes: float, seed: int, progress: Progress):
    """Training tiles, held-out tiles, what they are made of, and the minutes that are left for training."""
    from .chest_tiles import held_out_tiles, training_tiles
    from .data import Crops

    began = time.monotonic()
    folder = output.with_name("chest-tiles")
    folders = training_tiles(folder, seed, part(progress, 0, 0.09), TILES_SHARE * minutes)
    held_out = held_out_tiles(folder, seed, part(progress, 0.09, 0.1))
    facts = _facts(folders)
    if any(path.name == "real" for path in folders):
        facts["real"] = "left lung of C3N-00247 (TCIA CPTAC-LSCC, CC BY), without its nodule"
    return Crops(folders), Crops([held_out]), facts, _left(minutes, began)


def _facts(folders: list[Path]) -> dict[str, Any]:
    """What the card tells of the tiles in ``folders``."""
    return {
        "tiles": {path.name: len(json.loads((path / "kinds.json").read_text())) for path in folders},
        "phantoms": "procedural chests of GenSegLogic.phantoms, split 'train', no patient",
    }


def _left(minutes: float, began: float) -> float:
    """Of ``minutes`` what is left for training, a fifth at least; ``began`` on the monotonic clock."""
    return max(minutes - (time.monotonic() - began) / 60, 0.2 * minutes)


def _write(
    output: Path,
    recipe: str,
    kind: str,
    task: str,
    description: str,
    networks: Networks,
    curve: list[dict[str, float]],
    seed: int,
    minutes: float,
    facts: dict[str, Any],
    **more: Any,
) -> None:
    """Write the bundle and drop the work folder."""
    from .data import FIELD_VOXELS, WINDOW_HU
    from .tiles import SPACINGS_MM

    image = {
        "modality": "CT",
        "window_hu": list(WINDOW_HU),
        "spacing_mm": [SPACINGS_MM[0]] * 3,
        "spacings_mm": list(SPACINGS_MM),
        "orientation": "LPS",
        "field_voxels": FIELD_VOXELS,
    }
    metadata = {
        "kind": kind,
        "task": task,
        "description": description,
        "image": image,
        "training": {
            "recipe": f"genseg train {recipe}",
            "seed": seed,
            "minutes": round(minutes, 1),
            "data": facts,
            "curve": curve,
        },
        "source": "trained by this project; no published weights were used",
        **more,
    }
    lines = [
        f"- Data: {facts['phantoms']}; tiles: {facts['tiles']}",
        *_calibration_lines(facts),
        *([f"- Real scan: {facts['real']}"] if "real" in facts else []),
        f"- Input: {image['modality']}, window {image['window_hu']} HU, spacings {image['spacings_mm']} mm",
    ]
    write_trained(output, metadata, networks, lines)
    shutil.rmtree(work_folder(output, seed).parent, ignore_errors=True)


def write_trained(folder: Path, metadata: dict[str, Any], networks: Networks, lines: Sequence[str]) -> Bundle:
    """Write the bundle of a recipe, under the project's licence, with its card.

    Args:
        folder: of the bundle; it gives the name.
        metadata: without name, licence and metrics: these are the figures of validation at the end of the curve.
        networks: see :data:`Networks`.
        lines: of the card, on data and input.
    """
    from ..bundles import write_bundle

    curve = metadata["training"]["curve"]
    last = curve[-1] if curve else {}
    metadata = {
        **metadata,
        "name": folder.name,
        "metrics": {name: value for name, value in last.items() if name.startswith("validation")},
        "licence": "Apache-2.0",
        "commercial_use": True,
    }
    licence = Path(__file__).resolve().parents[2] / "LICENSE"
    text = licence.read_text() if licence.exists() else "Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_bundle(folder, metadata, networks, card(metadata, lines), text)


def card(metadata: dict[str, Any], lines: Sequence[str]) -> str:
    """The model card of a bundle that a recipe made, Markdown; ``lines`` tell of data and input."""
    training = metadata["training"]
    curve = training["curve"]
    columns = list(dict.fromkeys(name for row in curve for name in row))
    table = [
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        # A row may lack a figure: its phase measures another one.
        *["| " + " | ".join(f"{row[name]:g}" if name in row else "" for name in columns) + " |" for row in curve],
    ]
    return "\n".join([
        f"# {metadata['name']}", "", metadata["description"], "", "Not for clinical use.", "",
        f"- Recipe: `{training['recipe']}`, seed {training['seed']}, {training['minutes']} minutes of training",
        *lines,
        f"- Licence: {metadata['licence']}; commercial use allowed", "",
        *(table if curve else []),
    ]) + "\n"


def _calibration_lines(data: dict[str, Any]) -> list[str]:
    if "calibration" not in data:
        return []
    figures = data["calibration"]
    return [
        f"- Calibrated (logits shifted by {figures['shift']:+g}) on {figures['nodules']} nodules and "
        f"{figures['clean_places']} places without any of the {figures['split']} phantoms: at even odds "
        f"{100 * figures['nodules_seen']:.0f} % of the nodules are seen and "
        f"{100 * figures['places_left_empty']:.0f} % of the places stay empty"
    ]
