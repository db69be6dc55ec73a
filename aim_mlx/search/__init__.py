"""What is like what: nearest neighbours, duplicates, and what is asked for."""
