"""Ways to spoil a file, each from a generator: bytes, JSON and XML. The same generator spoils alike."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

Spoil = Callable[[np.random.Generator, bytes], bytes]
_NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]


def spoil_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """One to three of: bits flipped, a cut, a part inserted, lost, doubled or zeroed, a number made huge."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = _BYTES[rng.integers(len(_BYTES))](rng, content)
    return content


def spoil_png(rng: np.random.Generator, content: bytes) -> bytes:
    """Spoils what is in the chunks, their checksums put right; one time in four the bytes as they are."""
    if rng.random() < 0.25:
        return spoil_bytes(rng, content)
    chunks, place = [], 8
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    chosen = int(rng.choice([0, 0, *range(len(chunks))]))
    name, data = chunks[chosen]
    packed = name == b"IDAT" and rng.random() < 0.7
    data = zlib.compress(spoil_bytes(rng, zlib.decompress(data))) if packed else spoil_bytes(rng, data)
    chunks[chosen] = name, data
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return content[:8] + b"".join(parts)


def spoil_packed_matrix(rng: np.random.Generator, content: bytes) -> bytes:
    """Of a .mat with packed variables: spoils one before it is packed; one time in four the bytes."""
    if rng.random() < 0.25:
        return spoil_bytes(rng, content)
    variables, place = [], 128
    while place < len(content):
        (size,) = struct.unpack_from("<I", content, place + 4)
        variables.append(zlib.decompress(content[place + 8 : place + 8 + size]))
        place += 8 + size
    chosen = int(rng.integers(len(variables)))
    variables[chosen] = spoil_bytes(rng, variables[chosen])
    packed = [zlib.compress(variable) for variable in variables]
    return content[:128] + b"".join(struct.pack("<II", 15, len(part)) + part for part in packed)


def spoil_zip(rng: np.random.Generator, content: bytes) -> bytes:
    """Spoils a member, or its name, of an archive that is whole; one time in four the bytes."""
    if rng.random() < 0.25:
        return spoil_bytes(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = int(rng.integers(len(members)))
    if rng.random() < 0.2:
        name = _NAMES[rng.integers(len(_NAMES))]
        members[chosen] = name, members[chosen][1]
    else:
        members[chosen] = members[chosen][0], spoil_bytes(rng, members[chosen][1])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", int(rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


_NAMES = ("../up", "/absolute", "a/../../b", "C:\\x", "x" * 300, "x/", ".", "..", "a\nb", "\u202e", "a/b.npy")


def _flip(rng, content):
    changed = bytearray(content)
    for place in rng.integers(0, max(len(content), 1), rng.integers(1, 17)):
        if changed:
            changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(rng, content):
    return content[: rng.integers(0, len(content) + 1)]


def _insert(rng, content):
    place = rng.integers(0, len(content) + 1)
    return content[:place] + rng.bytes(int(rng.integers(1, 64))) + content[place:]


def _lose(rng, content):
    first, last = sorted(rng.integers(0, len(content) + 1, 2))
    return content[:first] + content[min(last, first + 200) :]


def _double(rng, content):
    first, last = sorted(rng.integers(0, len(content) + 1, 2))
    return content[:last] + content[first:]


def _zero(rng, content):
    first, last = sorted(rng.integers(0, len(content) + 1, 2))
    last = min(last, first + 64)
    return content[:first] + bytes(last - first) + content[last:]


def _huge(rng, content):
    # Sizes stand in the first few hundred bytes, as a rule.
    place = int(rng.integers(0, min(len(content), 400) + 1))
    return content[:place] + _NUMBERS[rng.integers(len(_NUMBERS))] + content[place + 4 :]


def _all_of_it(rng, content):
    return [b"", b"\0", bytes(1000), rng.bytes(1000), content[::-1], b"PK\x03\x04" + content][rng.integers(6)]


_BYTES = (_flip, _flip, _flip, _cut, _insert, _lose, _double, _zero, _huge, _huge, _all_of_it)


def spoil_json(rng: np.random.Generator, content: bytes) -> bytes:
    """One to four values replaced, left out or given twice; one time in four bytes are spoiled instead."""
    if rng.random() < 0.25:
        return spoil_bytes(rng, content)
    raw: list[str] = []
    value = json.loads(content)
    for _ in range(rng.integers(1, 5)):
        value = _change(rng, value, raw, stop=0.03)
    text = json.dumps(value)
    for number, replacement in enumerate(raw):
        text = text.replace(f'"raw {number}"', replacement)
    return text.encode()


def spoil_json_lines(rng: np.random.Generator, content: bytes) -> bytes:
    """One line spoiled as `spoil_json` does."""
    lines = content.splitlines()
    place = int(rng.integers(len(lines)))
    lines[place] = spoil_json(rng, lines[place])
    return b"\n".join(lines) + b"\n"


def _change(rng, value, raw: list[str], *, stop: float):
    """A copy in which something, at any depth, is another thing."""
    if not isinstance(value, dict | list) or not value or rng.random() < stop:
        return _odd(rng, raw)
    stop = min(3 * stop, 0.15)
    if isinstance(value, list):
        place = int(rng.integers(len(value)))
        return [*value[:place], _change(rng, value[place], raw, stop=stop), *value[place + 1 :]]
    key = list(value)[rng.integers(len(value))]
    how = rng.random()
    if how < 0.05:
        return {name: item for name, item in value.items() if name != key}
    if how < 0.12:
        # The same key twice: the text of the second is written into the value of the first.
        raw.append(f"{json.dumps(value[key])}, {json.dumps(key)}: {json.dumps(_plain_odd(rng))}")
        return value | {key: f"raw {len(raw) - 1}"}
    return value | {key: _change(rng, value[key], raw, stop=stop)}


def _odd(rng, raw: list[str]):
    if rng.random() < 0.9:
        return _plain_odd(rng)
    depth = int(rng.choice([30, 100, 500, 900, 930, 950, 960, 970, 980, 990, 3000, 100_000]))
    huge = str(10 ** int(rng.choice([18, 19, 30, 308, 310, 4200])))
    choices = [
        "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, huge, "9" * 5000, f"-{huge}.5",
        "1e400", '"' + "x" * 100_000 + '"', "[" + "1," * 10_000 + "1]", "nul", "'single'", "01",
    ]  # fmt: skip
    raw.append(choices[rng.integers(len(choices))])
    return f"raw {len(raw) - 1}"


def _plain_odd(rng):
    choices = (
        None, True, False, 0, -1, 1, 7, 16, 0.5, 1e-308, 1e308, -1e308, 3e38, 2**31, 2**63, 2**64, -(2**63),
        float("nan"), float("inf"), float("-inf"), "", " ", "text", "7", "1e5", "\ud800", "a\nb", "\0",
        "\u202e", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x", "x" * 300, "</script>", "$x_{$",
        "%s{0}", [], {}, [[]], [None], ["a"], [1, 2], [1, 2, 3, 4], [float("nan")] * 4, [1e308] * 4,
        [0, 0, 1e30, 1e30], {"a": 1}, [{}], [[1, 2], [3]], [[[1]]],
    )  # fmt: skip
    return choices[rng.integers(len(choices))]


_XML_PARTS = (
    b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>',
    b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', b'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x">',
    b"<a>" * 100_000, b"<a>" * 20_000 + b"</a>" * 20_000, b"<object>" * 500, b"</annotation>",
    b"<annotation>", b"<![CDATA[<object>]]>", b"&c;", b"&lt;", b"&#0;", b"&#xD800;", b"&#x202e;",
    b"<?php x ?>", b"<!-- -- -->", b"nan", b"1e999", b"9" * 5000, b"-1", b"\xff\xfe", b"\0", b"<name></name>",
    b"<bndbox/>", b"<object/>",
    b"<size><width>99999999999</width><height>-4</height></size>", b"x" * 100_000, b'<a b="1" b="2"/>',
    b"<filename>" + b"y" * 300 + b".jpg</filename>", b"<filename>../../../../etc/passwd</filename>",
)  # fmt: skip
_ENCODINGS = (
    b"rot13", b"utf-7", b"utf-16", b"idna", b"hex", b"ascii", b"cp037", b"zlib", b"nonsense", b"euc-jp",
)  # fmt: skip


def spoil_xml(rng: np.random.Generator, content: bytes) -> bytes:
    """Parts put anywhere, or in place of a text; or another encoding; one time in four bytes are spoiled."""
    how = rng.random()
    if how < 0.25:
        return spoil_bytes(rng, content)
    if how < 0.35:
        encoding = _ENCODINGS[rng.integers(len(_ENCODINGS))]
        return b'<?xml version="1.0" encoding="' + encoding + b'"?>' + content
    part = _XML_PARTS[rng.integers(len(_XML_PARTS))]
    if how < 0.45:
        return part + content
    places = [place + 1 for place, byte in enumerate(content) if byte == ord(">")]
    place = places[rng.integers(len(places))]
    after = content[place:]
    if how < 0.8 and b"<" in after:
        after = after[after.index(b"<") :]
    return content[:place] + part + after
