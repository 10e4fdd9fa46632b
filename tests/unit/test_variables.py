"""The table by which the gate knows environment variables that make programs load code."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from egs_kernel.artifact.variables import CODE_VARIABLES, loads_code
from egs_kernel.gate import abi
from egs_kernel.gate.variables import bucket, variables_table

TABLE = variables_table()


def refused(string: str) -> bool:
    """As is_code_variable() in bpf/decide.bpf.c."""
    raw = string.encode() + b"\0" * 8
    start = bucket(raw) * abi.VARIABLES_PER_BUCKET
    word = int.from_bytes(raw[:8], "little")
    entries = TABLE.variables[start : start + abi.VARIABLES_PER_BUCKET]
    return any(word & entry.mask == entry.value for entry in entries)


def test_each_is_known() -> None:
    for name in CODE_VARIABLES:
        assert refused(f"{name.rstrip('*')}=x")
        assert loads_code(name.rstrip("*"))


@given(st.text("ABDEGLNPRSTUV_ONHCI45", max_size=20))
@example("LD_PRELOAD")
@example("LD")
@example("ENV")
@example("ENVY")
@example("PYTHONUNBUFFERED")
@example("")
def test_what_the_verifier_refuses_the_gate_refuses(name: str) -> None:
    string = f"{name}=value"
    if loads_code(name):
        assert refused(string)
    elif len(name) < 8:
        assert not refused(string)


def test_common_variables_pass() -> None:
    common = (
        "PATH HOME USER LOGNAME SHELL PWD OLDPWD TERM LANG LC_ALL LS_COLORS TZ TMPDIR EDITOR PAGER DISPLAY"
    )
    assert not [name for name in common.split() if refused(f"{name}=x")]
    assert not refused("PYTHONUNBUFFERED=1")
    assert not refused("NODE_ENV=production")


def test_too_many_names_that_begin_alike() -> None:
    with pytest.raises(ValueError, match="too many"):
        variables_table(f"ABC{number}" for number in range(abi.VARIABLES_PER_BUCKET + 1))
