"""Decodes crops of tiled JPEGs, with the pixels that libjpeg-turbo gives for them, in half its time."""

from ...compilation import announced

with announced("compiling the decoder, once: takes about 15 s"):
    from .decode import CHANGED, DAMAGED, DONE, STEPS, UNSUPPORTED, decode_crop, time_crop

__all__ = ["CHANGED", "DAMAGED", "DONE", "STEPS", "UNSUPPORTED", "decode_crop", "time_crop"]
