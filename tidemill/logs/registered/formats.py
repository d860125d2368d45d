"""The formats of a topic's values whose schemas a registry has."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidemill.errors import LogError
from tidemill.logs.registered.avro import avro_schema
from tidemill.logs.registered.protobuf import protobuf_schema
from tidemill.logs.registered.written import Reference, WrittenSchema


@dataclass(frozen=True, slots=True)
class Format:
    """`title`: its name in sentences. `kind`: its name in the registry. `packages`: what it imports, which `tidemill[extra]` brings.

    `made`: a schema's text made ready; raises `SchemaRefusedError`, and `LogUnavailableError` where that cannot be said now.
    """

    title: str
    kind: str
    extra: str
    packages: Sequence[str]
    made: Callable[[str, Sequence[Reference]], WrittenSchema]

    def check(self) -> None:
        """Raises `LogError` where packages are missing."""
        try:
            for package in ("confluent_kafka.schema_registry", *self.packages):
                importlib.import_module(package)
        except ImportError:
            raise LogError(f"{self.title} topics need packages that are not installed: pip install 'tidemill[{self.extra}]'") from None


AVRO = Format("Avro", "AVRO", "avro", ("fastavro",), avro_schema)
PROTOBUF = Format("Protobuf", "PROTOBUF", "protobuf", ("google.protobuf", "grpc_tools"), protobuf_schema)
#: By the `value_format` of a source.
FORMATS = {"avro": AVRO, "protobuf": PROTOBUF}
