"""In place of the vendor's profiler, which has the interface of PyTorch's."""

from torch.profiler import profile, supported_activities

__all__ = ["profile", "supported_activities"]
