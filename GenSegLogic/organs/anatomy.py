"""The organs, from where phantoms and data sets, which no method's folder may serve, find them as well."""

from ..anatomy import CATEGORY, LEFT, ORGANS, RIGHT, Organ, check_names

__all__ = ["CATEGORY", "LEFT", "ORGANS", "RIGHT", "Organ", "check_names"]
