"""A text tower and an image head trained to fit a frozen image tower (LiT, arXiv 2111.07991)."""
