"""The networks and nothing else: no files, no images, no command line."""
