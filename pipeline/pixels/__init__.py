"""From the bytes of a JPEG to a resized crop."""

from .._kernel_cache import prepare as _prepare_kernel_cache

_prepare_kernel_cache()
