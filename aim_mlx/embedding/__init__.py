"""The main job: files to the rows of a store."""
