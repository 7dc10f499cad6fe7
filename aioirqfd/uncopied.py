"""What owns a descriptor or a lock, or has a place in somebody's books, is one object: it is not copied, and not sent elsewhere."""

from __future__ import annotations


def refusal(thing: object, instead: str) -> TypeError:
    """The error for whoever copies or pickles it, or hands it to a process that is spawned.

    Args:
        thing: What was to be copied.
        instead: What to do instead, as a sentence.
    """
    return TypeError(f"{thing!r} cannot be copied or pickled. {instead}")
