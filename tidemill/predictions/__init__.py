"""Predictions as data: scores of many entities as of one instant, in Parquet by run, and in a table that switches all at once."""
