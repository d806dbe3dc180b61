"""The two exceptions that cross every layer of GenSeg."""


class GenSegError(Exception):
    """A failure whose message is shown to the user as it stands.

    The message is one sentence: what is wrong, with which file or node, and what to do.
    """


class Cancelled(Exception):
    """Raised out of a progress call when the user has asked to stop."""
