"""What users bring: tables, labelled images, splits, pairs of image and caption."""
