from __future__ import annotations

import io
import pickle

import pytest

from pymic_vf.host.weights.pickle_cost import is_too_costly


def nested(depth: int) -> tuple:
    value: tuple = (0, 0)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "content",
    [
        {"a": [(1, 2.5, "x"), {"b": (None, True)}], (1, 2): {3}},
        [tuple(range(1000))] * 1000,
        list(range(10**5)),
        nested(12),
        {"lists are not hashed": [[[[[]] * 50] * 50] * 50] * 50},
    ],
)
def test_honest_pickles(protocol: int, content: object):
    file = io.BytesIO(pickle.dumps(content, protocol) + b"behind it")
    assert not is_too_costly(file)
    assert file.read() == b"behind it"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_tuples_that_double(protocol: int):
    assert is_too_costly(io.BytesIO(pickle.dumps(nested(40), protocol)))


def test_a_dear_key_that_comes_often():
    file = b"\x80\x02}" + pickle.dumps(nested(12), 2)[2:-1] + b"q\xff" + b"K\x00s" + 10**4 * b"h\xffK\x00s" + b"."
    assert is_too_costly(io.BytesIO(file))


@pytest.mark.parametrize("data", [b"", b"text", b"\x80\x02.", b"h\x01.", b"(a."])
def test_no_pickle(data: bytes):
    with pytest.raises((ValueError, IndexError, KeyError)):
        is_too_costly(io.BytesIO(data))
