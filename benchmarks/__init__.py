"""What the performance table is made from: `python -m benchmarks` (see README.md here)."""
