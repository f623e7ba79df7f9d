"""How loaders in Python make an image: with compiled kernels or, where numba cannot be had, by torchvision alone."""

from ..jit import HAS_NUMBA

if HAS_NUMBA:
    from .decode import load_image, prepare
else:
    from .plain import load_image, prepare

__all__ = ["load_image", "prepare"]
