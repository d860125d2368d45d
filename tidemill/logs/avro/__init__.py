"""Avro values in Kafka topics, in Confluent's wire format: a zero byte, the id of the writer's schema in 4 bytes, and the record.

`registry` asks a schema registry for schemas by their ids, `schema` finds out what fields they have, `columns` makes columns.
"""
