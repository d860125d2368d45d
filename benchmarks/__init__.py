"""Benchmarks: each against its floor and its peers, in one run. Never a test."""
