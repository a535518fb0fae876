"""Reading an array of numbers from a MATLAB file, whatever the file holds.

scipy's reader, in C, believes the sizes that a file states: one wrong byte can end the process or never let it return.
This one knows only what is needed here (format level 5, little-endian) and checks every size.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL_5 = b"\x00\x01IM"  # bytes 124 to 127: the version and the byte order; the text before them is free
NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
MATRIX, COMPRESSED = 14, 15  # further types of elements
STRUCT, NUMERIC, COMPLEX = 2, range(6, 16), 0x800  # what an array's flags say of it
ELEMENTS_MAX = 1000  # of an array; each takes memory here, whatever its size
INFLATED_MAX = 1 << 24  # bytes; a small file can state any size

Element = tuple[int, bytes]  # type and content


def read_field(data: bytes, variable: str, field: str) -> npt.NDArray[Any]:
    """The array of real numbers in a field of a struct (1, 1), both of which the file has by these names.

    Raises:
        ValueError: if there is none, or the file is of another kind or damaged.
    """
    if data[124:128] != LEVEL_5:
        raise ValueError("not a little-endian MATLAB file of level 5, as MATLAB's save -v7 writes")
    for kind, content in _elements(data[128:]):
        if kind == COMPRESSED:
            kind, content = next(_elements(_inflate(content)), (0, b""))
        if kind != MATRIX:
            continue
        flags, shape, name, parts = _array(content)
        if name == variable.encode():
            return _numbers(_member(flags, shape, parts, field))
    raise ValueError(f"there is no {variable} in it")


def _elements(data: bytes) -> Iterator[Element]:
    """The elements that follow each other in `data`: 8 bytes of type and size, then the content, padded to 8 bytes."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ValueError("it is cut short")
        kind, size = struct.unpack_from("<II", data, at)
        start = at + 8
        if kind >> 16:  # up to 4 bytes of content, in place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError("an element's size is wrong")
        if start + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]
        at = start + size
        if kind != COMPRESSED:
            at += -at % 8


def _inflate(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(content, INFLATED_MAX)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof:
        raise ValueError("its compressed data is cut short or too large")
    return data


def _array(content: bytes) -> tuple[int, tuple[int, ...], bytes, list[Element]]:
    """Flags, shape and name of an array, and the elements that hold its values."""
    elements = list(islice(_elements(content), ELEMENTS_MAX))
    if len(elements) < 3 or len(elements[0][1]) != 8:
        raise ValueError("an array has no head")
    (_, flags), (_, shape), (_, name), *parts = elements
    return int.from_bytes(flags[:4], "little"), tuple(np.frombuffer(shape, "<i4").tolist()), name, parts


def _member(flags: int, shape: tuple[int, ...], parts: list[Element], field: str) -> bytes:
    """The content of a field of a struct."""
    if flags & 0xFF != STRUCT or shape != (1, 1) or len(parts) < 2:
        raise ValueError("it is no struct of one element")
    (_, length), (_, names), *values = parts
    width = int.from_bytes(length, "little")
    known = [names[at : at + width].rstrip(b"\0") for at in range(0, len(names), max(width, 1))]
    if field.encode() not in known or len(known) != len(values):
        raise ValueError(f"the struct has no field {field}")
    kind, content = values[known.index(field.encode())]
    if kind != MATRIX:
        raise ValueError(f"{field} is no array")
    return content


def _numbers(content: bytes) -> npt.NDArray[Any]:
    flags, shape, _, parts = _array(content)
    if flags & 0xFF not in NUMERIC or flags & COMPLEX or len(parts) != 1 or parts[0][0] not in NUMBERS:
        raise ValueError("its values are no real numbers")
    kind, values = parts[0]  # of a type as small as the values allow, whatever the array's own is
    return np.frombuffer(values, NUMBERS[kind]).reshape(shape, order="F")
