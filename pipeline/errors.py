"""Errors whose text is meant for the user."""

import re


class InputError(ValueError):
    """What the user gave cannot be used: a path, a flag, a file's content.

    The message is one line that says what is wrong, in which file or flag, and what to do. Commands print it
    on stderr and exit with code 2. Broken invariants of the code itself are asserts, not this.
    """


def one_line(text: str) -> str:
    """Without line breaks and other control characters, which names of files may hold."""
    return re.sub(r"[\0-\x1f\x7f\x85\u2028\u2029]", "?", text)
