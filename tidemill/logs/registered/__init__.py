"""Values in Kafka topics whose schemas are in a schema registry.

They are in Confluent's wire format: a zero byte, the id of the writer's schema in 4 bytes, and the value.
`formats` names what there is (Avro, Protobuf), `registry` asks for schemas by their ids, `avro` and `protobuf` make them ready to read
records with, `columns` makes columns.
"""
