"""A bundle of one's own from a handful of cases: few-shot where they are labelled, source-free where they are not.

The prior of a source bundle is trained on; SAM 2 stays as it is, to the bit. Ours: the augmentation, the early
stopping, and the ways in which an ensemble of differently shown scans has to agree before it is learned from.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...anatomy import ORGANS
from ...bundles import Bundle, load_bundle, write_bundle
from ...errors import GenSegError
from ...networks.memory_prior import MemoryPrior
from ...progress import Progress, part, silent
from ...volume import Volume
from .learning import LabelledScan, batches, drawing_loss, freeze_reading, reading_loss
from .models import OrganModels, organ_models
from .prior import select_organs
from .propagate import look_at, segment
from .self_training import CURVES, pseudo_label
from .task import modality_of, sam2_bundle

PAIRS = 4
LEARNING_RATE = 6e-4
READING_SHARE = 0.65
"""Part of the time in which the read-out is learned, before memories are drawn on top of it."""
CHECKS = 8
"""How often the held-out case is looked at in either part."""
PATIENCE = 3
"""Checks without improvement after which learning stops."""
HELD_OUT_FROM = 3
"""Cases needed before one of them is held out; fewer are all learned from, for the whole time."""
HELD_OUT_SLICES = 32
"""Most slices of it that are looked at."""
ROUNDS = 2
"""Rounds of self-training."""


@dataclass(frozen=True)
class Adapted:
    """What :func:`adapt` learned; ``write(folder)`` makes it a bundle.

    Attributes:
        networks, metadata: for :func:`GenSegLogic.bundles.write_bundle`.
        curve: one row a check: minutes, loss, Dice on the held-out case where there is one.
        messages: sentences for the user.
    """

    networks: Mapping[str, Any]
    metadata: Mapping[str, Any]
    curve: list[dict[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Bundle:
        """Write the bundle, whole or not at all.

        Raises:
            GenSegError: if ``folder`` holds something other than a bundle, or cannot be written.
        """
        return write_bundle(folder, {**self.metadata, "name": folder.name}, self.networks, self._card(folder.name),
                            "Made on this computer from one's own cases; it belongs to whoever made it.\n"
                            "It goes back to weights of the GenSeg project under Apache-2.0.\n")

    def _card(self, name: str) -> str:
        training = self.metadata["training"]
        lines = [f"# {name}", "", self.metadata["description"], "", "Not for clinical use.", "",
                 f"- Recipe: `{training['recipe']}`, seed {training['seed']}, {training['minutes']} minutes",
                 f"- Source: {training['source']}", f"- Cases: {training['data']['cases']}",
                 f"- Organs: {', '.join(self.metadata['organs'])}", ""]
        if self.curve:
            keys = list(self.curve[-1])
            lines += ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
            lines += ["| " + " | ".join(f"{row.get(key, math.nan):g}" for key in keys) + " |" for row in self.curve]
        return "\n".join([*lines, *self.messages]) + "\n"


def adapt(
    cases: Sequence[tuple[Volume, Volume | None]],
    source: Bundle,
    minutes: float = 5.0,
    seed: int = 0,
    progress: Progress = silent,
    source_free: bool = False,
    device: str = "cpu",
) -> Adapted:
    """Adapt the prior of ``source`` to other scans; SAM 2 stays as it is.

    Args:
        cases: (scan, labels) pairs on any grid; labels as in ORGANS, or None, and left unread, with ``source_free``.
        source: a bundle of kind ``organs``.
        minutes: budget of computing; it may stop earlier, when the held-out case no longer improves.
        seed: of all random numbers.
        progress: called at every step; may raise.
        source_free: learn from the scans alone: self-training where an ensemble agrees, and aligned grey values.
        device: where to train.

    Raises:
        GenSegError: if there is no case, labels do not lie on their scan or hold none of the organs.
    """
    if not cases:
        raise GenSegError("There is no case to learn from: give at least one scan.")
    if not source_free and (missing := [image.name for image, labels in cases if labels is None]):
        raise GenSegError(f"{missing[0]} has no labels: give them, or learn without any (source-free).")
    models = _load(source, device)
    modality = modality_of(cases[0][0])
    if other := [image.name for image, _ in cases if modality_of(image) != modality]:
        raise GenSegError(f"{other[0]} is not {modality} as {cases[0][0].name} is: learn from one kind of scan at a "
                          "time.")
    models = replace(models, grid=models.grid.for_modality(modality))
    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source_free:
            prior, curve, messages, stated = _source_free([image for image, _ in cases], models, minutes, seed,
                                                          progress)
            learned = models.organs
        else:
            scans, learned = _labelled(cases, models)
            models = _with_organs(models, learned)
            prior, curve, messages, stated = _few_shot(scans, models, minutes, seed, progress)
            messages = [_amounts(cases, learned), *messages]
    name = "source-free adaptation" if source_free else "few-shot adaptation"
    spent = round((time.monotonic() - began) / 60, 1)
    arguments = {**source.inference["networks"]["prior"], "organs": len(learned)}
    arguments.pop("_target_")
    metadata = {
        **{key: source.metadata[key] for key in ("kind", "task", "sam2", "licence", "commercial_use")},
        "image": models.grid.to_metadata(modality),
        "description": f"DiffuSAM's prior after {name} to {len(cases)} case{'s' if len(cases) > 1 else ''}.",
        "organs": list(learned),
        "training": {"recipe": f"genseg adapt organs{' --source-free' if source_free else ''}", "seed": seed,
                     "minutes": spent, "source": f"{source.name} ({source.digest[:12]})",
                     "data": {"cases": len(cases), **stated}, "curve": curve},
        "metrics": _best_held_out(curve),
        "source": f"{name} of {source.name} on this computer",
    }
    return Adapted({"prior": ("memory-prior", arguments, prior.cpu())}, metadata, curve, messages)


def _load(source: Bundle, device: str) -> OrganModels:
    if source.kind != "organs":
        raise GenSegError(f"{source.name} is a bundle of kind {source.kind}, but adapting needs one of kind organs.")
    return organ_models(load_bundle(source, device), load_bundle(sam2_bundle(source), device))


def _with_organs(models: OrganModels, names: Sequence[str]) -> OrganModels:
    """The same models, reduced to some of their organs."""
    indices = [models.organs.index(name) for name in names]
    return OrganModels(models.sam2, select_organs(models.prior, indices), tuple(names), models.grid)


# Few-shot


def _labelled(cases: Sequence[tuple[Volume, Volume | None]],
              models: OrganModels) -> tuple[list[LabelledScan], tuple[str, ...]]:
    """Cases on the canonical grid, and the organs, in the models' order, that occur in any of them.

    Of an organ that a case does not label nothing is known: it may be there and nobody outlined it.
    """
    placed = []
    for image, labels in cases:
        assert labels is not None  # checked by adapt
        if labels.shape != image.shape or not np.allclose(labels.affine, image.affine, atol=1e-2):
            raise GenSegError(f"{labels.name} does not lie on the grid of {image.name}: their sizes or positions "
                              "differ; save the labels on the scan's own grid.")
        placed.append((models.grid.apply(image).voxels, models.grid.apply_labels(labels, image)))
    there = set().union(*(np.unique(labels).tolist() for _, labels in placed))
    learned = tuple(name for name in models.organs if ORGANS[name].label in there)
    if not learned:
        raise GenSegError(f"The labels of {cases[0][0].name} hold none of the organs that {', '.join(models.organs)} "
                          "name; is the numbering another one?")
    scans = []
    for voxels, given in placed:
        own = np.zeros_like(given)
        for number, name in enumerate(learned, 1):
            own[given == ORGANS[name].label] = number
        labelled = [bool((own == place + 1).any()) for place in range(len(learned))]
        scans.append(LabelledScan((voxels,), own, np.tile(np.array(labelled, np.uint8), (len(own), 1))))
    return scans, learned


def _amounts(cases: Sequence[tuple[Volume, Volume | None]], learned: Sequence[str]) -> str:
    """What was learned from, so that whoever gave labels in another numbering sees it at once."""
    parts = []
    for name in learned:
        counts = [int((labels.voxels == ORGANS[name].label).sum()) * float(np.prod(image.spacing)) / 1000
                  for image, labels in cases if labels is not None]
        parts.append(f"{ORGANS[name].title.lower()} (" + ", ".join(f"{ml:.0f}" for ml in counts if ml) + " ml)")
    return "Learned from the labels: " + "; ".join(parts) + "."


def _held_out(scans: Sequence[LabelledScan]) -> int | None:
    """The case to hold out: of three and more, the last one all of whose organs occur in another case as well."""
    there = [set(np.unique(scan.labels).tolist()) - {0} for scan in scans]
    fit = [number for number, own in enumerate(there)
           if own and own <= set().union(*(other for place, other in enumerate(there) if place != number))]
    return fit[-1] if fit and len(scans) >= HELD_OUT_FROM else None


def _few_shot(scans: list[LabelledScan], models: OrganModels, minutes: float, seed: int, progress: Progress):
    """Returns the prior, the curve, sentences, and facts for the metadata."""
    chosen = _held_out(scans)
    held_out = None if chosen is None else _thinned(scans[chosen])
    learned = [scan for number, scan in enumerate(scans) if number != chosen]
    prior, curve, stopped = _train(models, learned, seed, 1.2, minutes, progress, held_out)
    messages = ["All cases are learned from and none is held out to tell when to stop: that takes three cases, and one "
                "whose organs the others have as well."]
    if held_out is not None:
        messages = [f"On the case that was held out, the mean Dice is {_best_held_out(curve)['held_out_dice']:.2f}"
                    + (", and learning stopped early because it no longer rose." if stopped else ".")]
    return prior, curve, messages, {"held_out": 0 if held_out is None else 1}


def _best_held_out(curve: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``held_out_dice`` of the weights that are kept: the best check of the drawing; nothing if none was held out."""
    checks = [row["held_out_dice"] for row in curve if row.get("phase") == 2 and "held_out_dice" in row]
    return {"held_out_dice": max(checks)} if checks else {}


def _thinned(scan: LabelledScan) -> LabelledScan:
    """Every n-th slice of a scan: what is looked at eight times and more may not take the time to learn.

    Of the ways to take them, the one that shows most of the labels: there may be few labelled slices.
    """
    step = -(-len(scan.labels) // HELD_OUT_SLICES)
    first = max(range(step), key=lambda first: np.count_nonzero(scan.labels[first::step]))
    every = slice(first, None, step)
    return replace(scan, images=tuple(image[every] for image in scan.images), labels=scan.labels[every],
                   known=scan.known[every])


@torch.no_grad()
def mean_dice(models: OrganModels, prior: nn.Module, scan: LabelledScan, drawing: bool,
              callback: Callable[[float], None] = lambda fraction: None) -> float:
    """Mean Dice over the organs that are in a labelled scan: of the propagation, or of the read-out alone.

    ``callback`` is called with the fraction done and may raise.
    """
    current = OrganModels(models.sam2, prior, models.organs, models.grid)  # type: ignore[arg-type]
    volume = Volume(scan.images[0], np.eye(4), "held-out case")
    if drawing:
        found = segment(volume, current, models.organs, steps=2, samples=1, callback=callback).probabilities
        masks = [found[name] > 0.5 for name in models.organs]
    else:
        readout = look_at(volume, current, callback).context.readout
        enlarged = F.interpolate(readout, volume.shape[1:], mode="bilinear").cpu().numpy()
        masks = [enlarged[:, place] > 0 for place in range(len(models.organs))]
    scores = []
    for place, mask in enumerate(masks):
        truth = scan.labels == place + 1
        if truth.any():
            scores.append(2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()))
    return float(np.mean(scores)) if scores else 0.0


# Source-free


def _source_free(images: Sequence[Volume], models: OrganModels, minutes: float, seed: int, progress: Progress):
    """Returns the prior, the curve, sentences, and facts for the metadata."""
    volumes = [models.grid.apply(image) for image in images]
    curve: list[dict[str, float]] = []
    current, kept, total = models, 0, 0
    spent = 0.0
    for number in range(ROUNDS):
        began = time.monotonic()
        scans = []
        for index, volume in enumerate(volumes):
            share = part(progress, (number + 0.3 * index / len(volumes)) / ROUNDS,
                         (number + 0.3 * (index + 1) / len(volumes)) / ROUNDS)
            sentence = f"round {number + 1}: asking the ensemble, scan {index + 1} of {len(volumes)}"
            with _fast(next(current.prior.parameters()).device):
                scans.append(pseudo_label(volume, current, np.random.default_rng([seed, number, index]),
                                          CURVES if number == 0 else 0, _saying(share, sentence)))
        kept = sum(int(scan.known.sum()) for scan in scans)
        total = sum(scan.known.size for scan in scans)
        if not any(scan.known.any() and scan.labels.any() for scan in scans):
            return (current.prior, curve, ["The ensemble agreed on nothing in these scans, so nothing was learned; "
                                           "label a case or two instead."], {"agreed": 0.0})
        spent += (time.monotonic() - began) / 60
        left = max((minutes - spent) / (ROUNDS - number), 0.1 * minutes)
        # The ensemble of the next round is asked what it reads, so memories are drawn in the last round alone.
        prior, rows, _ = _train(current, scans, seed + number, 1.0, left,
                                part(progress, (number + 0.3) / ROUNDS, (number + 1) / ROUNDS), None,
                                drawing=number == ROUNDS - 1)
        spent += left
        curve += [{"round": number + 1, **row} for row in rows]
        current = OrganModels(models.sam2, prior, models.organs, models.grid)
    agreed = kept / max(total, 1)
    sentence = f"The ensemble agreed on {100 * agreed:.0f} % of all pairs of a slice and an organ; these were learned."
    return current.prior, curve, [sentence], {"agreed": round(agreed, 3)}


# Training


def _saying(progress: Progress, sentence: str) -> Callable[[float], None]:
    """A callback for what only knows how far it is."""
    return lambda fraction: progress(fraction, sentence)


def _train(models: OrganModels, scans: Sequence[LabelledScan], seed: int, strength: float, minutes: float,
           progress: Progress, held_out: LabelledScan | None,
           drawing: bool = True) -> tuple[MemoryPrior, list[dict[str, float]], bool]:
    """Train a copy of the prior: first its reading, then, with that frozen, its drawing of memories.

    Args:
        strength: of the augmentation.
        drawing: without it, all the time goes to the reading.

    Returns:
        The prior, the curve, and whether it stopped early.
    """
    prior = copy.deepcopy(models.prior)
    curve: list[dict[str, float]] = []
    stopped = False
    reads = READING_SHARE if drawing else 1.0
    for phase, (start, end) in enumerate(((0.0, reads), (reads, 1.0))[: 1 + drawing]):
        prior.train().requires_grad_(True)
        draws = phase == 1
        if draws:
            freeze_reading(prior)
        source = batches(scans, PAIRS if draws else 2 * PAIRS, seed, strength=strength, paired=draws)
        prior, rows, early = _phase(prior, models, source, (end - start) * minutes, part(progress, start, end),
                                    held_out, draws)
        curve += [{"phase": 1 + phase, **row} for row in rows]
        stopped |= early
    return prior, curve, stopped


def _phase(prior: MemoryPrior, models: OrganModels, source: Iterator[dict[str, Tensor]], minutes: float,
           progress: Progress, held_out: LabelledScan | None,
           drawing: bool) -> tuple[MemoryPrior, list[dict[str, float]], bool]:
    """One phase: cosine schedule, averaged weights; the best of the checks on the held-out case, else the last."""
    device = next(prior.parameters()).device
    loss_of = drawing_loss if drawing else reading_loss
    averaged = AveragedModel(prior, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    trained = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=1e-2, betas=(0.9, 0.98))
    curve: list[dict[str, float]] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    spent, running, stale = 0.0, 0.0, 0
    while spent < minutes and stale < PATIENCE:
        began = time.monotonic()
        fraction = spent / minutes
        rate = LEARNING_RATE * min(20 * fraction + 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 0.01 * LEARNING_RATE)
        batch = {name: value.to(device) for name, value in next(source).items()}
        with _fast(device):
            loss = loss_of(prior, models.sam2, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        averaged.update_parameters(prior)
        running = float(loss.detach()) if running == 0.0 else 0.95 * running + 0.05 * float(loss.detach())
        spent += (time.monotonic() - began) / 60
        progress(min(spent / minutes, 1.0), f"Learning to {'draw' if drawing else 'read'}, loss {running:.3f}")
        if len(curve) < int(CHECKS * spent / minutes):
            began = time.monotonic()
            row = {"minutes": round(spent, 2), "loss": round(running, 4)}
            at = min(spent / minutes, 1.0)
            if held_out is not None:
                averaged.eval()
                with _fast(device):
                    dice = mean_dice(models, averaged.module, held_out, drawing,
                                     _saying(part(progress, at, at), "Looking at the case that is held out"))
                row["held_out_dice"] = round(dice, 4)
                improved = best is None or row["held_out_dice"] > best[0]
                stale = 0 if improved else stale + 1
                if improved:
                    best = (row["held_out_dice"], copy.deepcopy(averaged.module.state_dict()))
            curve.append(row)
            spent += (time.monotonic() - began) / 60
    result = cast(MemoryPrior, averaged.module.eval().requires_grad_(False))
    if best is not None:
        result.load_state_dict(best[1])
    return result, curve, stale >= PATIENCE


def _fast(device: torch.device) -> torch.autocast:
    """Computing in bfloat16 where the device is faster in it."""
    from ...engine import precision

    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
