"""The askers of scripts/bench authority: a process of its own, many connections, requests at a fixed rate or as fast as answered."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import msgspec

from tests.authorities import body_of


class Plan(msgspec.Struct, frozen=True):
    """What to ask: so long (seconds), by so many connections, so many a second (0: as fast as they are answered)."""

    socket: str
    seconds: float
    connections: int
    rate: float


class Asked(msgspec.Struct, frozen=True):
    """What came of it: milliseconds of each answer from when it was due, how many were refused, and how long it took."""

    milliseconds: list[float]
    refused: int
    seconds: float


def message(body: bytes, key: str) -> bytes:
    """One HTTP request."""
    head = (
        "POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return head[9:12]


async def ask(plan: Plan) -> Asked:
    """Ask."""
    body = json.dumps(body_of("/bin/true", cwd="/tmp", purpose="the benchmark")).encode()
    due: asyncio.Queue[float | None] = asyncio.Queue()
    times: list[float] = []
    refused = 0
    start = time.perf_counter()

    async def connection(number: int) -> None:
        nonlocal refused
        reader, writer = await asyncio.open_unix_connection(plan.socket)
        count = 0
        while True:
            if plan.rate:
                at = await due.get()
                if at is None:
                    break
            else:
                at = time.perf_counter()
                if at - start > plan.seconds:
                    break
            count += 1
            writer.write(message(body, f"{os.getpid()}-{number}-{count}"))
            refused += await _answer(reader) != b"200"
            times.append((time.perf_counter() - at) * 1000)
        writer.close()

    tasks = [asyncio.create_task(connection(number)) for number in range(plan.connections)]
    if plan.rate:
        for number in range(int(plan.seconds * plan.rate)):
            at = start + number / plan.rate
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            due.put_nowait(at)
        for _ in tasks:
            due.put_nowait(None)
    await asyncio.gather(*tasks)
    return Asked(times, refused, time.perf_counter() - start)


def main() -> None:
    """Ask as the plan on the standard input says; what came of it goes to the standard output."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(ask(plan))))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
