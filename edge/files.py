"""Files of the system and of the user, as text; and why something can't be read, in words."""

from __future__ import annotations

import os
import pathlib

from edge.text import encodable, visible


def reason(error: Exception) -> str:
    """Why something can't be read, in a few words that fit a line."""
    kind, words = type(error), str(error)
    if isinstance(error, OSError):
        words = error.strerror or words
    elif kind.__module__ == "builtins" and not isinstance(error, RuntimeError):
        words = f"{kind.__name__}: {words}".removesuffix(": ")  # "'MemTotal'" alone says little
    return visible(encodable(words or kind.__name__), 100)


def read_text(path: pathlib.Path) -> str:
    """The text of a file that the system keeps, 1 MiB at most: what is no UTF-8 in it becomes �. Raises OSError.

    By os.read: where a sensor answers EAGAIN, a file of Python's own gives None, or TypeError. It does not wait for a pipe.
    """
    descriptor, text = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), b""
    try:
        while len(text) < 2**20 and (part := os.read(descriptor, 2**16)):
            text += part
        return text.decode(errors="replace").strip("\0 \n")
    finally:
        os.close(descriptor)
