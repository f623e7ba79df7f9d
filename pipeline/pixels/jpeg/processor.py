"""What the processor has that kernels are compiled for, and which instructions they take."""

import os

from numba.core.registry import cpu_target

from ...errors import InputError

_TRIPLE, _, _FEATURES = cpu_target.target_context.codegen().magic_tuple()
"""Of numba's own compiler, so that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES count. For code that numba caches on disk
they are part of the key."""

IS_X86 = _TRIPLE.startswith("x86_64")
IS_ARM = _TRIPLE.startswith(("aarch64", "arm64"))


def has(feature: str) -> bool:
    """Whether LLVM may use a feature, by LLVM's name for it."""
    return f"+{feature}" in _FEATURES.split(",")


AVX2, SSE2, ANY = "avx2", "sse2", "any"
"""Vectors of 32 and 16 bytes with the instructions of x86-64, and vectors of 16 bytes in LLVM's own words, which
every processor has (on aarch64 they become NEON)."""

AVAILABLE = (*((AVX2,) if IS_X86 and has("avx2") else ()), *((SSE2,) if IS_X86 else ()), ANY)
"""Vectors that kernels can use here, the best first."""

VECTORS = os.environ.get("SLUICE_VECTORS", AVAILABLE[0])
"""What kernels use. Decoding a crop takes 253 us with ANY where it takes 227 with AVX2 (EPYC, ImageNet)."""
if VECTORS not in AVAILABLE:
    raise InputError(f"SLUICE_VECTORS={VECTORS}: this processor has {', '.join(AVAILABLE)}")
