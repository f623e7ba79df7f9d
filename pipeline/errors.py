"""Errors whose text is meant for the user."""


class InputError(ValueError):
    """What the user gave cannot be used: a path, a flag, a file's content.

    The message is one line that says what is wrong, in which file or flag, and what to do. Commands print it
    on stderr and exit with code 2. Broken invariants of the code itself are asserts, not this.
    """
