"""A classifier with the encoder below it trained too: LoRA, whole, or its last blocks."""
