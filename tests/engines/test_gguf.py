from __future__ import annotations

import struct

import pytest

from engines.gguf import GgufError, read_head


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def head(*pairs, version=3):
    body = b"".join(string(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + body


LENGTH = ("llama.context_length", 4, struct.pack("<I", 2048))
OTHERS = [
    ("general.name", 8, string("x")),
    ("a.flag", 7, b"\1"),
    ("a.list", 9, struct.pack("<IQ", 4, 2) + b"\0" * 8),
    ("a.names", 9, struct.pack("<IQ", 8, 2) + string("p") + string("qq")),
]


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        return path

    return write


def test_the_context_is_found_behind_other_values(file):
    assert read_head(file(head(*OTHERS, LENGTH))).context_tokens == 2048


def test_a_file_that_does_not_say(file):
    assert read_head(file(head(*OTHERS))).context_tokens is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\3\4 something", "starts with b'PK"),
        (head(LENGTH, version=1), "version 1"),
        (head(LENGTH)[:-2], "cut short"),
        (b"", "starts with b''"),
        (head(("a", 99, b"")), "cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "cut short"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(file, data, reason):
    with pytest.raises(GgufError, match=reason):
        read_head(file(data))


def test_no_file(tmp_path):
    with pytest.raises(GgufError, match="there is no file"):
        read_head(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="can't be read"):
        read_head(tmp_path)
