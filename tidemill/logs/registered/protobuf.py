"""A schema of Protobuf, made ready: a class for each kind of message that values are, and what kind of value each of its fields has.

A registered schema is a file of messages. Behind the schema's id a value says which of them it is: by its place in the file, and within the
message that it is nested in.

Only fields that a column can have are read. The others (messages, lists, maps, groups) are left as the bytes that they are: 1 MiB of empty
submessages would otherwise be half a million objects, each as large as all the fields that it might have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import polars as pl

from tidemill.logs.registered.protoc import ROOT, described
from tidemill.logs.registered.written import HEADER, NOT_UTF8, NOTHING, Columns, Dead, Field, Reference, SchemaRefusedError, cut_off

_FIRST = (0,)
#: How deep messages are nested in each other's definitions at most, and so how many numbers say which one it is.
_DEEPEST = 64
_NOT_FRAMED = "not in Confluent's wire format: a zero byte, the id of a schema in 4 bytes, which message it is, then Protobuf"
_DECIMAL = "a Protobuf decimal, which no column holds exactly; write it as a double, an int64 or a string"
_NO_SYMBOL = "a number for which the Protobuf enum has no name"
_NO_INSTANT = "a google.protobuf.Timestamp whose nanos are not between 0 and 999,999,999"
_INT64 = 2**63

_TIMESTAMP, _DECIMALS = "google.protobuf.Timestamp", ("confluent.type.Decimal", "google.type.Decimal")
_WRAPPERS = {
    f"google.protobuf.{name}Value": kind
    for name, kind in {
        "Double": "double",
        "Float": "float",
        "Int64": "int64",
        "UInt64": "uint64",
        "Int32": "int32",
        "UInt32": "uint32",
        "Bool": "bool",
        "String": "string",
    }.items()
}
_SCALARS: dict[str, tuple[type, pl.DataType]] = {
    **dict.fromkeys(("int32", "sint32", "sfixed32", "int64", "sint64", "sfixed64", "uint32", "fixed32"), (int, pl.Int64())),
    **dict.fromkeys(("uint64", "fixed64"), (int, pl.UInt64())),
    **dict.fromkeys(("float", "double"), (float, pl.Float64())),
    "bool": (bool, pl.Boolean()),
    "string": (str, pl.String()),
}


class _NoInstant:
    """What `_instant` has no number for."""


_Get = Callable[[Sequence[Any]], list[Any]]
_NO_INSTANT_AT_ALL = _NoInstant()
_NULL: dict[type, pl.DataType | str] = {type(None): pl.Null()}


class ProtobufMessage:
    """A kind of message. `fields`: by name."""

    def __init__(self, made: Any, fields: Mapping[str, Field], getters: Mapping[str, _Get], start: int, strict: bool) -> None:
        self.fields = fields
        # Of the class, because a field may be called like a method.
        self._read, self._whole = made.FromString, made.IsInitialized if strict else None
        self._getters, self._start = getters, start

    def columns(
        self, values: Sequence[bytes], rows: Sequence[int], names: Collection[str], number: int
    ) -> tuple[Columns, list[int], list[Dead]]:
        """See `Message`."""
        from google.protobuf.message import DecodeError

        read, start, whole = self._read, self._start, self._whole
        records: list[Any] = []
        kept: list[int] = []
        dead: list[Dead] = []
        for row in rows:
            try:
                message = read(values[row][start:])
            except DecodeError as error:
                dead.append((row, NOT_UTF8 if "UTF-8" in str(error) else cut_off(number)))
                continue
            if whole is not None and not whole(message):
                dead.append((row, f"without a field that its schema (id {number}) requires"))
                continue
            records.append(message)
            kept.append(row)
        return {name: self._getters[name](records) for name in names if name in self._getters}, kept, dead


class ProtobufSchema:
    """A file of messages. `files`: it as `ROOT`, after all that it imports, as `FileDescriptorProto`s.

    Raises `SchemaRefusedError`.
    """

    def __init__(self, files: Sequence[Any]) -> None:
        self._files = files
        self._root = next(file for file in files if file.name == ROOT)
        self._strict = any(_requires(message) for file in files for message in file.message_type)
        self._full = _pool(files)
        self._made: dict[tuple[tuple[int, ...], int], ProtobufMessage | str] = {}

    def messages(
        self, values: Sequence[bytes], rows: Sequence[int], number: int
    ) -> tuple[list[tuple[ProtobufMessage, list[int]]], list[Dead]]:
        """By what the values say that they are."""
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        dead: list[Dead] = []
        for row in rows:
            value = values[row]
            which = (_FIRST, HEADER + 1) if value[HEADER : HEADER + 1] == b"\0" else _which(value)
            if which is None:
                dead.append((row, _NOT_FRAMED))
            else:
                groups.setdefault(which, []).append(row)
        found: list[tuple[ProtobufMessage, list[int]]] = []
        for which, its in groups.items():
            message = self._made.get(which) or self._make(which)
            if isinstance(message, str):
                dead += [(row, f"message {'.'.join(map(str, which[0]))} of schema id {number}: {message}") for row in its]
            else:
                found.append((message, its))
        return found, dead

    def _make(self, which: tuple[tuple[int, ...], int]) -> ProtobufMessage | str:
        """The message at this place; or why there is none. What is wrong is not kept: values can name any place."""
        from google.protobuf.message_factory import GetMessageClass

        path, start = which
        names: list[str] = [self._root.package] if self._root.package else []
        within = self._root.message_type
        for place in path:
            declared = [message for message in within if not message.options.map_entry]
            if len(declared) < len(within) and names:
                return "it is nested in a message with maps, and writers disagree about the place of such"
            if place >= len(declared):
                return "there is none at that place"
            names.append(declared[place].name)
            within = declared[place].nested_type
        name = ".".join(names)
        declared_as = self._full.FindMessageTypeByName(name)
        fields, getters = _fields(declared_as, GetMessageClass(declared_as).HasField)
        read = {field for field, get in getters.items() if get is not _unread}
        made = GetMessageClass(_pool(_without(self._files, path, read)).FindMessageTypeByName(name))
        self._made[which] = message = ProtobufMessage(made, fields, getters, start, self._strict)
        return message


def protobuf_schema(text: str, references: Sequence[Reference] = ()) -> ProtobufSchema:
    r"""A schema, made ready. `references`: the files that it imports, and those that they import.

    Raises `SchemaRefusedError`, and `LogUnavailableError` where protoc does not come back.

    >>> made = protobuf_schema('syntax = "proto3"; message R { optional int64 n = 1; repeated string tags = 2; }')
    >>> [(message, rows)], dead = made.messages([bytes(6) + b"\x08\x05", bytes(6)], [0, 1], 7)
    >>> message.fields["n"], message.columns([bytes(6) + b"\x08\x05", bytes(6)], rows, ["n"], 7)
    ({<class 'NoneType'>: Null, <class 'int'>: Int64}, ({'n': [5, None]}, [0, 1], []))
    """
    return ProtobufSchema(list(described(text, references).file))


def _pool(files: Sequence[Any]) -> Any:
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    for file in files:
        try:
            pool.Add(file)
        except TypeError as error:  # protoc has looked at it
            raise SchemaRefusedError(f"is no Protobuf schema: {str(error)[:200]}") from None
    return pool


def _requires(message: Any) -> bool:
    required = any(field.label == field.LABEL_REQUIRED for field in message.field)
    return required or any(_requires(nested) for nested in message.nested_type)


def _which(value: bytes) -> tuple[tuple[int, ...], int] | None:
    """Which message a value says that it is, and where its body begins. None: it does not say so.

    Numbers in base 128, the lowest first, their sign in the lowest bit: how many follow, and the places. Of the first message only that
    none follow.
    """
    numbers: list[int] = []
    start = HEADER
    while not numbers or len(numbers) <= numbers[0]:
        number = shift = 0
        while True:
            if start >= len(value) or shift > 28:
                return None
            byte = value[start]
            start += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if number & 1:  # below zero
            return None
        numbers.append(number >> 1)
        if numbers[0] > _DEEPEST:
            return None
    return tuple(numbers[1:]) or _FIRST, start


def _without(files: Sequence[Any], path: Sequence[int], read: Collection[str]) -> list[Any]:
    """The files, with those fields of the message at `path` that are not read made bytes."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    pruned: list[Any] = []
    for file in files:
        copy = FileDescriptorProto.FromString(file.SerializeToString())
        if file.name == ROOT:
            message = copy.message_type[path[0]]
            for place in path[1:]:
                message = message.nested_type[place]
            for field in message.field:
                if field.name not in read:
                    for attribute in ("type_name", "options", "default_value", "json_name"):
                        field.ClearField(attribute)
                    field.type, field.label = field.TYPE_BYTES, field.LABEL_OPTIONAL
            for nested in message.nested_type:
                nested.options.ClearField("map_entry")
        pruned.append(copy)
    return pruned


def _fields(message: Any, has: Callable[[Any, str], bool]) -> tuple[dict[str, Field], dict[str, _Get]]:
    """What the values of its fields are, and how they are had of messages."""
    fields: dict[str, Field] = {}
    getters: dict[str, _Get] = {}
    for field in message.fields:
        name = field.name
        kind = "" if field.is_repeated else _KINDS.get(field.type, "")
        its_type = field.message_type.full_name if kind == "message" else ""
        get: Callable[[Any], Any] = attrgetter(name)
        if kind in _SCALARS:
            python, values = _SCALARS[kind]
            fields[name] = _NULL | {python: values} | ({bytes: NOT_UTF8} if python is str else {})
        elif kind == "enum":
            fields[name] = _NULL | {str: pl.String(), int: _NO_SYMBOL}
            get = _symbol(get, field.enum_type)
        elif its_type == _TIMESTAMP:
            fields[name] = _NULL | {int: pl.Datetime("us", "UTC"), _NoInstant: _NO_INSTANT}
            get = _instant(get)
        elif its_type in _WRAPPERS:
            python, values = _SCALARS[_WRAPPERS[its_type]]
            fields[name] = _NULL | {python: values}
            get = attrgetter(f"{name}.value")
        else:
            fields[name] = {bytes: _DECIMAL if its_type in _DECIMALS else NOTHING}
            getters[name] = _unread
            continue
        getters[name] = _where(name, has, get) if field.has_presence else _all(get)
    return fields, getters


def _unread(messages: Sequence[Any]) -> list[bytes]:
    """What stands for values that no column can have, be they empty."""
    return [b""] * len(messages)


def _all(get: Callable[[Any], Any]) -> _Get:
    return lambda messages: list(map(get, messages))


def _where(name: str, has: Callable[[Any, str], bool], get: Callable[[Any], Any]) -> _Get:
    return lambda messages: [get(message) if has(message, name) else None for message in messages]


def _symbol(get: Callable[[Any], Any], enum: Any) -> Callable[[Any], str | int]:
    symbols: dict[int, str] = {}
    for value in enum.values:
        symbols.setdefault(value.number, value.name)

    def symbol(message: Any) -> str | int:
        number: int = get(message)
        return symbols.get(number, number)

    return symbol


def _instant(get: Callable[[Any], Any]) -> Callable[[Any], int | _NoInstant]:
    def instant(message: Any) -> int | _NoInstant:
        found = get(message)
        if not 0 <= found.nanos < 1_000_000_000:
            return _NO_INSTANT_AT_ALL
        micros: int = found.seconds * 1_000_000 + found.nanos // 1000
        return max(-_INT64, min(_INT64 - 1, micros))  # far outside the years that are allowed is as good as anywhere outside

    return instant


_KINDS = {
    1: "double",
    2: "float",
    3: "int64",
    4: "uint64",
    5: "int32",
    6: "fixed64",
    7: "fixed32",
    8: "bool",
    9: "string",
    11: "message",
    13: "uint32",
    14: "enum",
    15: "sfixed32",
    16: "sfixed64",
    17: "sint32",
    18: "sint64",
}
