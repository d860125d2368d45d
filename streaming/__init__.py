"""Streaming workers: log -> decode and pre-aggregate in columns -> route by shard -> store, archive, dead letters; and their supervisor.

`ingest` is the work itself, on one partition, without any runtime; `dataflow` hands it to Bytewax; `worker` is a process, and
`supervisor` keeps several of them alive.
"""
