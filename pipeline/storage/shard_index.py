"""The index of a shard, in the form of DALI's wds2idx, parsed: 0.1 us a sample, where Python's own words take 2.

ImageNet-21k has 14 million lines in its indices, and each process of a run reads them when it starts.
"""

import numpy as np

from ..jit import njit

SOUND, UNREADABLE, OUTSIDE = 0, 1, 2

_BLOCK = 512  # of a tar archive
_SPACE, _NEWLINE, _ZERO = 32, 10, 48
_LONGEST_NUMBER = 18  # digits that int64 holds
_JPG = np.frombuffer(b"jpg", np.uint8)
_CLS = np.frombuffer(b"cls", np.uint8)


@njit(cache=True, nogil=True)
def parse_index(text, shard_bytes, largest_jpeg, largest_label, blocks, sizes, label_sizes):
    """Parse the lines of an index after the first, uint8 [bytes]. Each line has `EXTENSION OFFSET SIZE NAME` for each
    file of a sample: a jpg of at most `largest_jpeg` bytes, and behind it a cls of at most `largest_label`.

    Writes, as far as there is room, in which block of the shard each JPEG begins, uint32 [samples], its bytes, uint32,
    and those of its label, uint8. The label begins one block behind the last one of the JPEG, after its header.

    Returns the number of lines and SOUND, or that of the lines before the first one that has another form, UNREADABLE,
    or points to where the shard cannot have these files, OUTSIDE.
    """
    at, count = 0, 0
    while at < len(text):
        jpeg_at = jpeg_size = label_at = label_size = -1
        while True:
            at = _skip_spaces(text, at)
            if at == len(text) or text[at] == _NEWLINE:
                break
            end = _end_of_word(text, at)
            is_jpeg, is_label = _is_word(text, at, end, _JPG), _is_word(text, at, end, _CLS)
            offset, end = _number(text, _skip_spaces(text, end))
            size, end = _number(text, _skip_spaces(text, end))
            name_at = _skip_spaces(text, end)
            at = _end_of_word(text, name_at)
            if offset < 0 or size < 0 or at == name_at:
                return count, UNREADABLE
            if is_jpeg:
                jpeg_at, jpeg_size = offset, size
            elif is_label:
                label_at, label_size = offset, size
        if jpeg_at < 0 or label_at < 0:
            return count, UNREADABLE
        end = jpeg_at + jpeg_size + -jpeg_size % _BLOCK
        fits = jpeg_at % _BLOCK == 0 and jpeg_at >= _BLOCK and jpeg_at // _BLOCK <= 0xFFFFFFFF
        fits = fits and jpeg_size <= largest_jpeg and label_at == end + _BLOCK
        if not fits or label_size > largest_label or label_at + label_size > shard_bytes:
            return count, OUTSIDE
        if count < len(blocks):
            blocks[count], sizes[count], label_sizes[count] = jpeg_at // _BLOCK, jpeg_size, label_size
        count, at = count + 1, at + 1
    return count, SOUND


@njit(cache=True, nogil=True)
def _skip_spaces(text, at):
    while at < len(text) and text[at] == _SPACE:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _end_of_word(text, at):
    while at < len(text) and text[at] != _SPACE and text[at] != _NEWLINE:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _is_word(text, start, end, word):
    if end - start != len(word):
        return False
    same = True
    for place in range(len(word)):
        same &= text[start + place] == word[place]
    return same


@njit(cache=True, nogil=True)
def _number(text, start):
    """The number in the word at `start`, -1 where it is none, and the word's end."""
    end = _end_of_word(text, start)
    if not 0 < end - start <= _LONGEST_NUMBER:
        return -1, end
    value = 0
    for place in range(start, end):
        digit = np.int64(text[place]) - _ZERO
        if not 0 <= digit <= 9:
            return -1, end
        value = 10 * value + digit
    return value, end
