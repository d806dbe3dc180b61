"""Start the service by this file's path, with any Python: ``PythonSlicer .../GenSegLogic/service/__main__.py``.

Slicer's Python does not know the folder of GenSegLogic in a source checkout, so this file brings it along.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # A script's own folder comes first; its module names must not be found from outside of the package.
    sys.path[0] = str(Path(__file__).resolve().parents[2])


class _Console:
    def say(self, sentence: str) -> None:
        print(sentence, flush=True)


def main() -> int:
    """Serve; 0 when told to end, 1 with one sentence on standard error if the service cannot start."""
    from GenSegLogic.commands import serve
    from GenSegLogic.errors import GenSegError

    parser = argparse.ArgumentParser(prog="genseg serve")
    serve.configure(parser, sys.argv[1:])
    try:
        serve.run(parser.parse_args(), _Console())
    except GenSegError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
