"""The messages of MLCommons Chakra execution traces that we write, without protoc.

Field numbers are those of ``schema/protobuf/et_def.proto`` (github.com/mlcommons/chakra, schema version 0.0.4). The
descriptors live in a pool of their own, so they do not meet those of an installed Chakra.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

SCHEMA_VERSION = "0.0.4"
PACKAGE = "ChakraProtoMsg"
# Of et_def.proto's enum NodeType and CollectiveCommType.
COMP_NODE, COMM_SEND_NODE, COMM_RECV_NODE, COMM_COLL_NODE = 4, 5, 6, 7
ALL_REDUCE = 0
STRING, INT32, INT64, UINT64, BOOL = "string", "int32", "int64", "uint64", "bool"
FIELDS: tuple[tuple[str, tuple[tuple[str, int, str, bool], ...]], ...] = (
    # message: (field, number, type, repeated)
    (
        "AttributeProto",
        (
            ("name", 1, STRING, False),
            ("int32_val", 7, INT32, False),
            ("int64_val", 9, INT64, False),
            ("uint64_val", 13, UINT64, False),
            ("bool_val", 27, BOOL, False),
            ("string_val", 29, STRING, False),
        ),
    ),
    ("GlobalMetadata", (("version", 1, STRING, False), ("attr", 2, "AttributeProto", True))),
    (
        "Node",
        (
            ("id", 1, UINT64, False),
            ("name", 2, STRING, False),
            ("type", 3, INT32, False),  # an enum is an int32 on the wire
            ("ctrl_deps", 4, UINT64, True),
            ("data_deps", 5, UINT64, True),
            ("start_time_micros", 6, UINT64, False),
            ("duration_micros", 7, UINT64, False),
            ("attr", 10, "AttributeProto", True),
        ),
    ),
)


@dataclass(frozen=True)
class ChakraMessages:
    """The message classes."""

    metadata: Any
    node: Any


def chakra_messages() -> ChakraMessages:
    """Build the message classes from `FIELDS`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="et_def.proto", package=PACKAGE, syntax="proto3")
    for message, fields in FIELDS:
        description = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            field = description.field.add(name=name, number=number, label=label)
            if kind == "AttributeProto":
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
            if name.endswith("_val"):
                field.oneof_index = 0
        if any(name.endswith("_val") for name, *_ in fields):
            description.oneof_decl.add(name="value")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    types = (pool.FindMessageTypeByName(f"{PACKAGE}.{message}") for message in ("GlobalMetadata", "Node"))
    return ChakraMessages(*(message_factory.GetMessageClass(described) for described in types))


def write_delimited(file: BinaryIO, message: Any) -> None:
    """A message behind its length as a varint."""
    payload = message.SerializeToString()
    length = len(payload)
    while length > 0x7F:
        file.write(bytes([length & 0x7F | 0x80]))
        length >>= 7
    file.write(bytes([length]))
    file.write(payload)


def read_delimited(content: bytes) -> Iterator[bytes]:
    """Split a file into the bytes of its messages. Raises ValueError where it ends within one."""
    position = 0
    while position < len(content):
        length = shift = 0
        while True:
            if position == len(content):
                raise ValueError("the file ends within a length")
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if position + length > len(content):
            raise ValueError("the file ends within a message")
        yield content[position : position + length]
        position += length
