"""Images and words in one space: tokens of texts, LiT, zero-shot classification."""
