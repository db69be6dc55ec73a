"""Repo tool, not in the wheel: PyTorch weights to the package's format, with a parity report."""
