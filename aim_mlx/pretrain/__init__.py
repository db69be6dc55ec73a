"""Multimodal autoregressive pre-training (AIMv2, arXiv 2411.14402): the next patch, then words."""
