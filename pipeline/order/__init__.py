"""Which samples, in which order, cropped how."""

from .._kernel_cache import prepare as _prepare_kernel_cache

_prepare_kernel_cache()
