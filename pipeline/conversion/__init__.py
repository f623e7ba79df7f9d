"""From ImageNet in any form to a dataset directory.

finding, listing, classes, labels: which images there are, and their classes; images: what becomes of one; planning,
work: what will be written, and what has been; writing, finishing: writing it; convert: all of this in order.
"""
