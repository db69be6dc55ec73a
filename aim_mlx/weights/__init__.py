"""Bytes on disk to checked arrays under the package's own names, and back."""
