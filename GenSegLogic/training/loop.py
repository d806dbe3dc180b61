"""The one training loop: time-boxed, resumable, with a curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import GenSegError
from ..progress import Progress

Network = TypeVar("Network", bound=nn.Module)
CHECKPOINT = "checkpoint.pt"
CURVE = "curve.json"


def train(
    network: Network,
    loss_of: Callable[[Network, dict[str, Tensor]], Tensor],
    batches: Iterator[dict[str, Tensor]],
    folder: Path,
    minutes: float,
    progress: Progress,
    learning_rate: float = 1e-3,
    ema_decay: float = 0.995,
    validate: Callable[[Network], dict[str, float]] | None = None,
    bfloat16: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[Network, list[dict[str, float]]]:
    """Train until ``minutes`` of computing are spent; a checkpoint in ``folder`` is taken up where it stopped.

    One-cycle schedule over the time budget, AdamW, gradient clipping, exponential moving average of the weights.

    Args:
        network: trained in place.
        loss_of: (network, batch) -> scalar loss.
        batches: endless iterator of batches on the CPU.
        folder: takes ``checkpoint.pt`` and ``curve.json``.
        minutes: budget, earlier runs of the same checkpoint counted in.
        progress: called every step.
        learning_rate: peak of the schedule.
        ema_decay: of the averaged weights.
        validate: figures of the averaged network, ten times over the run.
        bfloat16: autocast; the weights stay float32.
        device: where to train.

    Returns:
        The averaged network and the curve: one row a tenth of the run with step, minutes, loss and validation figures.

    Raises:
        GenSegError: if there is a checkpoint, and it is damaged or of another network, or it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.to(device).train()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4, betas=(0.9, 0.98))
    step, spent, curve, running = 0, 0.0, [], 0.0
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        state = read_state(checkpoint, device)
        try:
            network.load_state_dict(state["network"])
            averaged.load_state_dict(state["averaged"])
            optimizer.load_state_dict(state["optimizer"])
            step, spent, curve = state["step"], state["minutes"], state["curve"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise GenSegError(
                f"{checkpoint} is of another network than the one to train; delete it to begin anew."
            ) from error
    saved = spent
    while spent < minutes:
        began = time.monotonic()
        fraction = spent / minutes
        warm_up = min(fraction / 0.05 + 0.05, 1.0)
        rate = learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 0.01 * learning_rate)
        batch = to_device(next(batches), device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            loss = loss_of(network, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(network)
        step += 1
        running = float(loss.detach()) if running == 0.0 else 0.98 * running + 0.02 * float(loss.detach())
        spent += (time.monotonic() - began) / 60
        progress(min(spent / minutes, 1.0), f"step {step}, loss {running:.4f}")
        if len(curve) < int(10 * spent / minutes):
            row = {"step": step, "minutes": round(spent, 2), "loss": round(running, 5)}
            if validate is not None:
                averaged.eval()
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
                    figures = validate(cast(Network, averaged.module))
                row |= {name: round(value, 5) for name, value in figures.items()}
                network.train()
            curve.append(row)
            (folder / CURVE).write_text(json.dumps(curve, indent=1))
            progress(min(spent / minutes, 1.0), json.dumps(row))
        if spent - saved > 3 or spent >= minutes:
            saved = spent
            state = {"network": network.state_dict(), "averaged": averaged.state_dict(), "curve": curve}
            write_state(state | {"optimizer": optimizer.state_dict(), "step": step, "minutes": spent}, checkpoint)
    return cast(Network, averaged.module.eval()), curve


def to_device(batch: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """A batch on the device where it is learned from."""
    return {name: value.to(device) for name, value in batch.items()}


def write_state(state: dict[str, Any], file: Path) -> None:
    """Write what an interrupted training goes on from, whole or not at all.

    Raises:
        GenSegError: if the disk does not take it.
    """
    partial = file.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(file)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's
        raise GenSegError(f"{file} cannot be written; make room and train again: it goes on where it last was "
                          "written.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_state(file: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What an interrupted training left in a file.

    Raises:
        GenSegError: if the file is damaged.
    """
    try:
        state = torch.load(file, weights_only=True, map_location=device)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damage makes the reader fail in any way: index, key, unicode, zip, seek
        raise GenSegError(f"{file} is damaged; delete it to begin anew.") from error
    if not isinstance(state, dict):
        raise GenSegError(f"{file} is no checkpoint of GenSeg's training; delete it to begin anew.")
    return state
