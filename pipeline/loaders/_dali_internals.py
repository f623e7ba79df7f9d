"""A private part of DALI. Written for nvidia-dali 1.50 to 2.4.

- `Pipeline._shutdown`: stops a pipeline's threads and waits for them, as its deletion does.

A pipeline has no public way to end. Waiting for its deletion is not enough: an exception's traceback may hold it, and
if it is then deleted in a process that was forked later, it waits for ever for threads the child does not have.
"""

from nvidia.dali.pipeline import Pipeline


def shut_down(pipeline: Pipeline) -> None:
    """End the pipeline's threads now."""
    pipeline._shutdown()
