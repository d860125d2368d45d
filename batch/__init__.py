"""Batch jobs: cut the log, fold its segments into daily partials, publish them; roll back."""
