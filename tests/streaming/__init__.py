"""Tests of the stream workers: without any runtime around them, in Bytewax, and as real processes."""
