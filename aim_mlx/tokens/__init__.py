"""Tokens of a frozen trunk: computed from images, or kept on disk."""
