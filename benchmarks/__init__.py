"""Commands behind the claims of README and docs: `python -m benchmarks.NAME --help`."""
