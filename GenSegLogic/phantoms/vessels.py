"""Branching trees: vessels and airways of the lung, grown from a root towards random targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .primitives import Capsules

LEAF_EXPONENT = 0.38
"""Radius grows with the number of leaves downstream to this power (Murray's law with exponent about 2.6)."""


@dataclass
class Tree:
    """A tree of points. ``parent[n] < n``; the root is its own parent.

    Attributes:
        points: (n, 3) x, y, z in mm.
        parent: (n,) index of the parent.
        leaves: (n,) number of leaves downstream.
    """

    points: np.ndarray
    parent: np.ndarray
    leaves: np.ndarray

    def radii(self, leaf_radius_mm: float) -> np.ndarray:
        """Radius in mm at every point."""
        return leaf_radius_mm * self.leaves**LEAF_EXPONENT

    def capsules(self, leaf_radius_mm: float, minimum_leaves: int = 1) -> Capsules:
        """The branches that feed at least ``minimum_leaves`` leaves, as tubes."""
        keep = np.flatnonzero((self.leaves >= minimum_leaves) & (self.parent != np.arange(len(self.parent))))
        radii = self.radii(leaf_radius_mm)
        # A branch starts at its own calibre, not at its parent's, as real side branches do.
        start = np.minimum(radii[self.parent[keep]], 1.25 * radii[keep])
        return Capsules(self.points[self.parent[keep]], self.points[keep], start, radii[keep])


def grow(root: np.ndarray, targets: np.ndarray, rng: np.random.Generator, piece_mm: float = 7.0) -> Tree:
    """Connect every target to the nearest suitable point of the tree so far, in wavy pieces.

    Args:
        root: (3,) where the tree enters, mm.
        targets: (n, 3) points to supply, mm; drawn in this order, so near ones first gives straighter trunks.
        rng: source of the waviness.
        piece_mm: length of one straight piece.
    """
    capacity = 1 + len(targets) * 24
    points = np.zeros((capacity, 3))
    parent = np.zeros(capacity, int)
    depth = np.zeros(capacity)
    points[0], count = root, 1
    for target in targets:
        offset = target - points[:count]
        distance = np.linalg.norm(offset, axis=1)
        # A detour through the trunk costs a little, so that branches leave at acute angles.
        attach = int(np.argmin(distance + 0.25 * depth[:count]))
        pieces = int(np.clip(np.ceil(distance[attach] / piece_mm), 1, 20))
        waviness = rng.standard_normal((pieces, 3)) * 0.14 * distance[attach] / pieces
        fractions = np.arange(1, pieces + 1)[:, None] / pieces
        line = points[attach] + fractions * offset[attach] + waviness * (fractions < 1)
        if count + pieces > capacity:
            break
        points[count : count + pieces] = line
        parent[count : count + pieces] = [attach, *range(count, count + pieces - 1)]
        depth[count : count + pieces] = depth[attach] + distance[attach] * fractions[:, 0]
        count += pieces
    points, parent = points[:count], parent[:count]
    leaves = np.zeros(count)
    has_child = np.zeros(count, bool)
    has_child[parent[1:]] = True
    leaves[~has_child] = 1
    for index in range(count - 1, 0, -1):
        leaves[parent[index]] += leaves[index]
    return Tree(points, parent, np.maximum(leaves, 1))
