from __future__ import annotations

import math
import struct

import pytest

from engines.gguf import GgufError, read_gguf


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
    assert read_gguf(file(head(*OTHERS, LENGTH))).head.context_tokens == 2048


def test_a_file_that_does_not_say(file):
    assert read_gguf(file(head(*OTHERS))).head.context_tokens is None


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
        read_gguf(file(data))


def test_no_file(tmp_path):
    with pytest.raises(GgufError, match="there is no file"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(GgufError, match="can't be read"):
        read_gguf(tmp_path)


def tensors(*shapes):
    """The list of tensors of one byte a number, their data behind it."""
    listed, at = b"", 0
    for shape in shapes:
        listed += string("t") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        listed += struct.pack("<IQ", 0, at)
        at += math.prod(shape)
    return listed, at


def whole(*shapes, pairs=OTHERS):
    listed, size = tensors(*shapes)
    data = bytearray(head(*pairs) + listed)
    data[8:16] = struct.pack("<Q", len(shapes))
    return bytes(data) + bytes(-len(data) % 32 + size)


def test_what_a_file_is(file):
    said = [
        ("general.architecture", 8, string("qwen2")),
        ("qwen2.block_count", 4, struct.pack("<I", 24)),
        ("qwen2.rope.freq_base", 6, struct.pack("<f", 1e6)),
        ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 1)),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("</s>")),
    ]
    data = whole((8, 4), (32,), pairs=[*OTHERS, *said])
    found = read_gguf(file(data))
    assert (found.parameters, found.weight_bytes, found.size, found.parts) == (64, 64, len(data), 1)
    shown = found.head
    assert (shown.name, shown.architecture, shown.vocabulary) == ("x", "qwen2", 2)
    assert (shown.end_id, shown.end_token) == (1, "</s>")
    assert (shown.figure("block_count"), shown.figure("rope.freq_base")) == (24, 1_000_000)
    assert shown.figure("expert_count") == 0


def test_a_part_of_several(file):
    pairs = [("split.count", 2, struct.pack("<H", 3))]
    assert read_gguf(file(whole((4,), pairs=pairs))).parts == 3


@pytest.mark.parametrize("cut", [32, 33, 70])
def test_a_file_without_its_last_tensors(file, cut):
    with pytest.raises(GgufError, match="is cut short"):
        read_gguf(file(whole((8, 4), (32,))[:-cut]))


def test_a_list_of_tensors_that_is_nonsense(file):
    data = bytearray(head(*OTHERS) + string("t") + struct.pack("<I", 1 << 30))
    data[8:16] = struct.pack("<Q", 1)
    with pytest.raises(GgufError, match="cut short"):
        read_gguf(file(bytes(data)))
