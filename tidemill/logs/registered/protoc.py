"""Schemas of Protobuf to descriptors, by protoc in a process of its own: what strangers wrote cannot end ours, and not keep it waiting.

Registries hold a schema as text (.proto), or as the descriptor that a Python producer made of it, in base64; and so do those that it
imports, mixed.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tidemill.errors import LogUnavailableError
from tidemill.logs.registered.written import Reference, SchemaRefusedError

#: The name that the schema itself gets; those that it imports have theirs.
ROOT = "tidemill.registered.proto"
#: In seconds. It takes a twentieth of one.
_PATIENCE = 30.0
_SAID = 200


def described(text: str, references: Sequence[Reference]) -> Any:
    """A `FileDescriptorSet`: the schema as `ROOT`, after all that it imports.

    Google's well-known types, `google/type` and Confluent's own types need no reference. Raises `SchemaRefusedError`, and
    `LogUnavailableError` where protoc does not come back.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    given = FileDescriptorSet(file=_confluents())
    with tempfile.TemporaryDirectory(prefix="tidemill-protoc-") as name:
        folder = Path(name)
        for its_name, its_text in (*references, Reference(ROOT, text)):
            descriptor = _descriptor(its_text)
            if descriptor is None:
                path = PurePosixPath(its_name)
                if path.is_absolute() or ".." in path.parts or "\0" in its_name or not path.parts:
                    raise SchemaRefusedError(f"imports a file of an impossible name: {its_name[:_SAID]!r}")
                folder.joinpath("text", path).parent.mkdir(parents=True, exist_ok=True)
                folder.joinpath("text", path).write_text(its_text, encoding="utf-8")
            else:
                descriptor.name = its_name
                given.file.append(descriptor)
        (folder / "text").mkdir(exist_ok=True)
        (folder / "given").write_bytes(given.SerializeToString())
        _run(folder)
        return FileDescriptorSet.FromString((folder / "made").read_bytes())


def _run(folder: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(folder / "text"), *_googles()]
    command += [f"--descriptor_set_in={folder / 'given'}", "--include_imports", f"--descriptor_set_out={folder / 'made'}", ROOT]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise LogUnavailableError(f"protoc has not read a schema of Protobuf within {_PATIENCE:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").replace(str(folder / "text") + "/", "").strip()
        raise SchemaRefusedError(f"is no Protobuf schema: {said[:_SAID] or f'protoc ends with {done.returncode}'}")


def _descriptor(text: str) -> Any:
    """The `FileDescriptorProto` that the text is in base64; None: it is the text of a .proto file, which has blanks and semicolons."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import DecodeError

    try:
        return FileDescriptorProto.FromString(base64.b64decode(text, validate=True)) if text else None
    except (binascii.Error, ValueError, DecodeError):
        return None


def _googles() -> list[str]:
    """Where google/type/*.proto lie; protoc brings google/protobuf/*.proto itself."""
    found = importlib.util.find_spec("google.type")
    return [] if found is None else [f"-I{Path(place).parents[1]}" for place in found.submodule_search_locations or ()]


def _confluents() -> list[Any]:
    """The files that Confluent's registry knows without a reference."""
    from confluent_kafka.schema_registry.confluent import meta_pb2
    from confluent_kafka.schema_registry.confluent.type import decimal_pb2
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    return [FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in (meta_pb2, decimal_pb2)]
