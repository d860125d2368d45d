"""Logged predictions as Parquet, for people to look back and to train from.

`rows` says what a row is, `portions` where it is read from, and `archive` writes each exactly once.
"""
