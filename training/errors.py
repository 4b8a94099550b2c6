"""How training ends before it is done, when nothing is wrong."""


class Stopped(Exception):  # noqa: N818 - it reads as what happened
    """Asked to stop, by a signal or by another process, and everything up to here is saved."""
