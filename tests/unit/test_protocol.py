from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel import launch
from egs_kernel.daemon import protocol
from egs_kernel.errors import Refused
from egs_kernel.model import Reason

contents = st.lists(st.binary(min_size=1, max_size=200), max_size=5)


@given(contents, st.lists(st.integers(min_value=1, max_value=64), max_size=60))
def test_frames_come_out_whole_whatever_the_pieces(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(protocol.frame, sent))
    reader = protocol.FrameReader()
    received = []
    for size in [*cuts, len(stream) + 1]:
        piece, stream = stream[:size], stream[size:]
        reader.feed(piece)
        while (content := reader.next_frame()) is not None:
            received.append(content)
    assert received == sent
    assert reader.pending == 0


@pytest.mark.parametrize("length", [0, protocol.MAX_FRAME + 1, 2**32 - 1])
def test_a_length_that_no_frame_has(length: int) -> None:
    reader = protocol.FrameReader()
    reader.feed(length.to_bytes(4, "big"))
    with pytest.raises(Refused) as refused:
        reader.next_frame()
    assert refused.value.reason is Reason.PROTOCOL_ERROR


def test_the_largest_frame() -> None:
    reader = protocol.FrameReader()
    reader.feed(protocol.frame(b"x" * protocol.MAX_FRAME))
    assert reader.next_frame() == b"x" * protocol.MAX_FRAME
    for content in (b"", b"x" * (protocol.MAX_FRAME + 1)):
        with pytest.raises(Refused):
            protocol.frame(content)


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_worse(content: bytes) -> None:
    for decode in (protocol.decode_request, protocol.decode_answer):
        with contextlib.suppress(Refused):
            decode(content)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"op": "nonsense"},
        {"op": "status", "extra": 1},
        {"op": "launch", "program": "/bin/true"},
        {"op": "launch", "program": "/bin/true", "argv": "true"},
        {"op": "launch", "program": "/bin/true", "argv": ["true"], "artifact": "not base64!"},
        {"op": "revoke", "id": 7},
        {"op": "status", "op ": "status"},
    ],
)
def test_requests_that_do_not_fit(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        protocol.decode_request(json.dumps(value).encode())
    assert refused.value.reason is Reason.PROTOCOL_ERROR


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(Refused):
        protocol.decode_request(b"[" * 500_000)


@pytest.mark.parametrize(
    "request_",
    [
        protocol.LaunchRequest(program="/bin/true", argv=("true", "é"), artifact=b"\0\xff"),
        protocol.StatusRequest(),
        protocol.AddArtifactRequest(artifact=b"{}"),
        protocol.RevokeRequest(id="ab" * 32),
        protocol.ReadyRequest(),
    ],
)
def test_requests_survive_the_wire(request_: protocol.Request) -> None:
    reader = protocol.FrameReader()
    reader.feed(protocol.encode(request_))
    content = reader.next_frame()
    assert content is not None
    assert protocol.decode_request(content) == request_


# The launcher speaks the protocol without this module: what it writes and expects must be the same.

arguments = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(arguments, st.lists(arguments, min_size=1, max_size=5), st.none() | st.binary(max_size=100))
def test_the_launchers_request_is_a_request(program: str, argv: list[str], artifact: bytes | None) -> None:
    reader = protocol.FrameReader()
    reader.feed(launch.request(program, argv, artifact))
    content = reader.next_frame()
    assert content is not None
    expected = protocol.LaunchRequest(program=program, argv=tuple(argv), artifact=artifact)
    assert protocol.decode_request(content) == expected


def test_the_launcher_knows_the_answers() -> None:
    assert msgspec.json.encode(protocol.Go()) == launch._GO
    assert protocol.decode_request(launch._READY) == protocol.ReadyRequest()
    assert launch.MAX_FRAME == protocol.MAX_FRAME
