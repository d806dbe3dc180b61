
"""GenSegScene: MRML nodes <-> GenSegLogic. Needs slicer, never Qt.

Importing it makes GenSegLogic importable: installed, both lie in ``qt-scripted-modules``; in a source checkout
GenSegLogic lies two folders up, where Slicer's ``--additional-module-paths`` does not look. The folder goes to the
front, or a copy that pip installed would win over the one that belongs to this extension.
"""

import sys
from pathlib import Path

for _folder in (Path(__file__).parents[1], Path(__file__).parents[2]):
    if (_folder / "GenSegLogic" / "__init__.py").is_file():
        if str(_folder) not in sys.path[:1]:
            sys.path.insert(0, str(_folder))
        break
