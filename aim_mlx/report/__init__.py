"""Pages and figures: HTML that is complete in itself, charts, and how good predictions are."""
