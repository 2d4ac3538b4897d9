"""Benchmarks: what is asked of which subjects, one file each, listed by the registry."""
