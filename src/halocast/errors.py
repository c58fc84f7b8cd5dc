"""The exceptions halocast raises on purpose; the command line prints each as one line and returns its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HalocastError(Exception):
    """Something went wrong that the user can understand: one line saying what, where and what to do."""

    exit_code = 1


class MisuseError(HalocastError):
    """The input is wrong: an unknown name, a malformed file, an impossible combination of settings."""

    exit_code = 2


class GraphError(MisuseError):
    """A graph that cannot be trained on; the message names the file and the first offending entry."""


class RunError(HalocastError):
    """A run that started and failed; results already on disk are intact."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or the list of what is allowed if none is close.

    Letters that have changed places are closer than others.
    """
    names = list(allowed)
    close = difflib.get_close_matches(name, names, n=len(names) or 1, cutoff=0.5)
    swapped = [each for each in close if sorted(each) == sorted(name)]
    if close:
        return f"; did you mean '{(swapped or close)[0]}'?"
    return f"; allowed: {', '.join(names)}"
