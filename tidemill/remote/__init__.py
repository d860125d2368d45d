"""The scoring service seen from outside: the form of its requests and answers, and clients for it. Nothing here imports Polars."""
