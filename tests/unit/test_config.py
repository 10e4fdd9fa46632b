"""egs.toml: what it says is understood, or refused with the field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.config import (
    CONFIG_LIMIT,
    AuthorityConfig,
    Config,
    ScopeConfig,
    load_config,
    moment_after,
    parse_config,
    parse_duration,
)
from egs_kernel.errors import ExitCode, UsageError
from egs_kernel.model import Mode, Reason

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
daemon_grace = "15s"
host_id = "host-1"
host_labels = ["prod"]

[[scope]]
name = "agents"
cgroup = "/egs.slice/agents"

[[scope]]
name = "tools"
binaries = ["/usr/bin/tool"]
mode = "observe"

[[scope]]
name = "people"
users = ["kim"]
mode = "enforce"
on_missing = "kill"
"""


def scope(text: str, name: str = "a") -> str:
    return f'[[scope]]\nname = "{name}"\n{text}\n'


def refusal(content: str | bytes) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_config(content.encode() if isinstance(content, str) else content)
    assert caught.value.next_step
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_config(b"") == Config()
    assert Config().daemon_grace == 10


def test_everything_it_can_say() -> None:
    config = parse_config(FULL.encode())
    assert (config.daemon_grace, config.host_id, config.host_labels) == (15, "host-1", ("prod",))
    assert [(item.name, item.mode) for item in config.scopes] == [
        ("agents", Mode.ENFORCE),
        ("tools", Mode.OBSERVE),
        ("people", Mode.ENFORCE),
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("x", "egs.toml"),
        (b"\xff", "egs.toml"),
        pytest.param("more = " + "9" * 5000, "digits", id="a number of 5000 digits"),
        pytest.param("more = " + "[" * 5000, "recursion", id="5000 lists in each other"),
        ('grace = "1s"', "grace"),
        ("daemon_grace = 10", "daemon_grace"),
        ('daemon_grace = "10"', "daemon_grace"),
        ('daemon_grace = "0s"', "daemon_grace"),
        ('daemon_grace = "-1s"', "daemon_grace"),
        ('daemon_grace = "1s"\ndaemon_grace = "2s"', "egs.toml"),
        ("[metrics]\nport = 1", "port"),
        ("[metrics]\nlisten = '127.0.0.1:1'", "listen"),
        ("[record]\nwitness_interval = 60", "witness_interval"),
        ('[record]\nwitness_interval = "often"', "witness_interval"),
        ("[record]\nname = 'x'", "name"),
        ("[[witness]]\nurl = 'http://w'", "key"),
        ("[[witness]]\nurl = 'w.example.com'\nkey = 'k'", "http"),
        ("[[witness]]\nurl = 'file:///etc/passwd'\nkey = 'k'", "http"),
        ("[[witness]]\nurl = 'http://a'\nkey = 'k'\n" * 2, "one key"),
        ("".join(f"[[witness]]\nurl = 'http://a'\nkey = 'k{n}'\n" for n in range(17)), "at most 16"),
        ("[[scope]]\ncgroup = '/a'", "name"),
        (scope('cgroup = "/a"\ncolour = "red"'), "colour"),
        (scope('cgroup = "/a"', "A"), "'A'"),
        (scope('cgroup = "/a"', "a" * 33), "name"),
        (scope('cgroup = "/a"', "a\\n"), "name"),
        (scope('cgroup = "/a"', "../a"), "name"),
        (scope(""), "exactly one"),
        (scope('cgroup = "/a"\nusers = ["kim"]'), "exactly one"),
        (scope("users = []"), "exactly one"),
        (scope('cgroup = "a"'), "cgroup"),
        (scope('cgroup = ""'), "cgroup"),
        (scope('cgroup = "/"'), "cgroup"),
        (scope('cgroup = "/a/"'), "cgroup"),
        (scope('cgroup = "/a//b"'), "cgroup"),
        (scope('cgroup = "/a/../b"'), "cgroup"),
        (scope('binaries = ["tool"]'), "absolute"),
        (scope('cgroup = "/a"\nmode = "advise"'), "mode"),
        (scope('cgroup = "/a"\non_missing = "allow"'), "on_missing"),
        (scope('cgroup = "/a"') + scope('cgroup = "/b"'), "two scopes"),
        (scope('cgroup = "/a"') + scope('cgroup = "/a"', "b"), "inside"),
        (scope('cgroup = "/a"') + scope('cgroup = "/a/b"', "b"), "inside"),
        (scope('cgroup = "/a/b"') + scope('cgroup = "/a-c"', "c") + scope('cgroup = "/a"', "b"), "inside"),
        ("".join(scope(f'cgroup = "/a{n}"', f"a{n}") for n in range(65)), "at most 64"),
    ],
    ids=str,
)
def test_what_is_refused(content: str | bytes, named: str) -> None:
    error = refusal(content)
    assert named in error.message
    assert error.reason in (Reason.CONFIG_INVALID, Reason.USAGE)


def test_neighbours_whose_names_begin_alike_are_apart() -> None:
    parse_config((scope('cgroup = "/a"') + scope('cgroup = "/ab"', "b")).encode())


@given(st.binary(max_size=100))
def test_any_bytes_are_a_configuration_or_refused(content: bytes) -> None:
    try:
        parse_config(content)
    except UsageError:
        return


@given(st.text(max_size=8))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        assert parse_duration(text, "x") > 0
    except UsageError:
        return


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"url": "http://authority.example.org"}, "does not begin with https://"),
        ({"certificate": "client.pem"}, "'client.pem' is no absolute path"),
        ({"svid": "token"}, "authority.svid: 'token' is no absolute path"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_an_authority_that_cannot_be_asked(changes: dict[str, str], named: str) -> None:
    said = {"url": "https://authority.example.org", "certificate": "/c", "key": "/k", "ca": "/a"}

    def table(**more: str) -> bytes:
        return "\n".join(
            ("[authority]", *(f'{name} = "{value}"' for name, value in (said | more).items()))
        ).encode()

    assert parse_config(table()).authority == AuthorityConfig(**said)
    with pytest.raises(UsageError) as error:
        parse_config(table(**changes))
    assert named in error.value.message


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("30d", 2_592_000)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text, "x") == seconds


@pytest.mark.parametrize(
    "text", ["0s", "01s", "1", "s", "1w", "1.5h", "-1s", "1000000s", "36526d", "999999d"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="no duration"):
        parse_duration(text, "x")


def test_the_end_of_a_duration() -> None:
    assert moment_after(datetime(2026, 11, 24, tzinfo=UTC), "36525d", "x") == datetime(
        2126, 11, 25, tzinfo=UTC
    )
    with pytest.raises(UsageError, match="after the year 9999"):
        moment_after(datetime(9999, 12, 31, tzinfo=UTC), "1d", "x")


def test_files_that_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "egs.toml"
    with pytest.raises(UsageError, match="does not exist") as caught:
        load_config(path)
    assert caught.value.reason is Reason.CONFIG_INVALID
    path.write_text(FULL)
    path.chmod(0o644)
    assert len(load_config(path).scopes) == 3
    path.write_bytes(b"#" * (CONFIG_LIMIT + 1))
    with pytest.raises(UsageError, match="larger"):
        load_config(path)
    path.write_text(FULL)
    path.chmod(0o666)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert caught.value.reason is Reason.PATH_UNSAFE


# -- hold ------------------------------------------------------------------------------------------


def held_scope(more: str) -> ScopeConfig:
    return parse_config(f'[[scope]]\nname = "s"\ncgroup = "/s"\n{more}\n'.encode()).scopes[0]


def test_a_scope_holds_only_when_it_says_so_and_enforces() -> None:
    assert not held_scope("").holds
    assert held_scope('on_missing = "hold"').holds
    assert not held_scope('on_missing = "hold"\nmode = "observe"').holds


def test_how_long_a_scope_holds() -> None:
    assert held_scope('on_missing = "hold"').hold_seconds == 60
    assert held_scope('on_missing = "hold"\nhold_timeout = "24h"').hold_seconds == 24 * 3600


@pytest.mark.parametrize(
    "more",
    [
        'on_missing = "wait"',
        'hold_timeout = "5s"',
        'on_missing = "kill"\nhold_timeout = "5s"',
        'on_missing = "hold"\nhold_timeout = "0s"',
        'on_missing = "hold"\nhold_timeout = "25h"',
        'on_missing = "hold"\nhold_timeout = 5',
    ],
)
def test_a_wrong_way_to_hold(more: str) -> None:
    with pytest.raises(UsageError):
        held_scope(more)
