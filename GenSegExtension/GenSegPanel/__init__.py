"""GenSegPanel: what the panels share. Needs slicer and, for what has a window, qt.

Importing it brings GenSegScene, which makes GenSegLogic importable; nothing heavy is imported.
"""

import GenSegScene  # noqa: F401
