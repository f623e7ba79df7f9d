"""Errors whose text is meant for the user."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input cannot be used: a path, a flag, the content of a file.

    The message is one line that says what is wrong, in which file or flag, and what to do. Commands print it
    on stderr and exit with code 2. Broken invariants of the code are asserts instead.
    """


class StorageError(InputError):
    """Storage failed while it was in use: a file vanished, became shorter or cannot be read any more, a disk is full.

    One line, as for all bad input. But nothing is wrong with what the user gave, and trying again may help: commands
    exit with code 1.
    """


class UsageError(RuntimeError):
    """A loader of `sluice.open` is used in a way that cannot work: after it was closed, by two loops at once, in a
    process that did not open it, as a rank that it was not opened for, or opened where a process must not be forked.

    The message says which, and what to do.
    """


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What an error adds after an unknown word: the most similar known ones, each after `prefix`, or nothing where none
    is similar."""
    similar = [prefix + match for match in difflib.get_close_matches(word, dict.fromkeys(known), n=3)]
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def without_escapes(text: str) -> str:
    """Replace what a terminal would obey instead of showing it; line breaks and tabs stay."""
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def one_line(text: str) -> str:
    """Replace line breaks and other control characters, which file names may contain."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", "?", text)
