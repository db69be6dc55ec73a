"""Images to vectors: the encoder, its pipeline and its batches."""
