"""The commands behind ``genseg``, one module each, imported only when its command is asked for.

A command module has two functions:

``configure(parser, words)``
    adds its arguments to an ``argparse.ArgumentParser`` that has ``--quiet`` and ``--json`` already. ``words`` is what
    the user typed after the command's name, so that a command that dispatches further (a task, a recipe) imports only
    the one that was asked for.
``run(arguments, console)``
    does the work and returns a mapping, printed as the last line with ``--json``; people read what it says
    through ``console.say(sentence)``, and see progress through ``console.progress``. It raises GenSegError or
    Cancelled. The mapping may hold ``"failed": True`` for work that ended with failures already reported (exit code 1).
"""
