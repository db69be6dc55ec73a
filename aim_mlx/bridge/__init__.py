"""A model for host apps, such as Swift apps through PythonKit: errors are data, none is raised."""

from aim_mlx.bridge.embedder import Embedder, Result

__all__ = ["Embedder", "Result"]
