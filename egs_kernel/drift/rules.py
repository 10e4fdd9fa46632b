"""`/etc/egs/drift.toml`: what is done about a finding where no artifact says it, and what is expected. Parsed strictly. Pure."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from egs_kernel.config import parse_duration
from egs_kernel.errors import UsageError
from egs_kernel.findings import HOST_FINDINGS, Finding, Response
from egs_kernel.model import Mode, Reason

if TYPE_CHECKING:
    from egs_kernel.artifact.drift import DriftConstraint

LIMIT: Final = 256 * 1024
"""Bytes of the file."""
_WORDS: Final = {response.word: response for response in Response}
_SHORTEST: Final = 1

DEFAULTS: Final = {
    Finding.ARTIFACT_REVOKED: Response.TERMINATE,
    Finding.KEY_REVOKED: Response.TERMINATE,
    Finding.OVERDUE: Response.TERMINATE,
}
"""What somebody decided ends a program by default. What the monitor concludes is only told: that is for people to trust first."""

MAKES_CODE: Final = (
    *(
        "node",
        "nodejs",
        "deno",
        "bun",
        "java",
        "javac",
        "jshell",
        "dotnet",
        "mono",
        "pypy",
        "pypy3",
        "luajit",
        "julia",
    ),
    *("qemu-*", "chrome", "chromium", "firefox", "firefox-esr", "wasmtime", "php*", "erl*", "beam.smp"),
)
"""Names of programs that make executable memory as they run: compilers at run time."""

SYSCTLS: Final = (
    "kernel.kptr_restrict",
    "kernel.modules_disabled",
    "kernel.perf_event_paranoid",
    "kernel.randomize_va_space",
    "kernel.seccomp.actions_logged",
    "kernel.unprivileged_bpf_disabled",
    "kernel.yama.ptrace_scope",
    "kernel.core_pattern",
    "kernel.modprobe",
    "fs.protected_hardlinks",
    "fs.protected_symlinks",
    "fs.suid_dumpable",
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "user.max_user_namespaces",
    "vm.mmap_min_addr",
)
"""What a change of says that the host is another one; those that this kernel has."""

Word = Literal["alert", "quarantine", "suspend", "terminate"]


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is no drift on this host, whatever the artifact says.

    `anonymous_code`: names of programs that make executable memory (a `*` at the end stands for any rest). `code`: folders of
    root's whose files may be code of any program, beside egs.toml's library_roots.
    """

    anonymous_code: tuple[str, ...] = MAKES_CODE
    code: tuple[str, ...] = ()


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor goes by. `interval` is seconds between two sweeps; `dry_run`: it only tells what it would do."""

    interval: int = 30
    dry_run: bool = False
    responses: dict[Finding, Response] = msgspec.field(default_factory=dict)
    at_least: dict[Finding, Response] = msgspec.field(default_factory=dict)
    expected: Expected = Expected()
    sysctls: tuple[str, ...] = SYSCTLS


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    interval: str = "30s"
    dry_run: bool = False
    responses: dict[str, Word] = msgspec.field(default_factory=dict)
    at_least: dict[str, Word] = msgspec.field(default_factory=dict)
    expected: Expected = Expected()
    sysctls: tuple[str, ...] = SYSCTLS


class Decided(msgspec.Struct, frozen=True):
    """What is to be done about a finding, and what says so."""

    response: Response
    rule: str


def parse_rules(content: bytes, name: str = "drift.toml") -> Rules:
    """Parse TOML bytes.

    Raises:
        UsageError: with the field that is wrong.
    """
    try:
        file = msgspec.convert(tomllib.loads(content.decode()), _File, strict=True)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, str(error)) from error
    for path in file.expected.code:
        if not path.startswith("/"):
            raise _invalid(name, f"expected: {path!r} is no absolute path")
    return Rules(
        interval=max(_SHORTEST, parse_duration(file.interval, f"{name}: interval")),
        dry_run=file.dry_run,
        responses=_responses(name, "responses", file.responses),
        at_least=_responses(name, "at_least", file.at_least),
        expected=file.expected,
        sysctls=file.sysctls,
    )


def _responses(name: str, table: str, words: dict[str, Word]) -> dict[Finding, Response]:
    known = {finding.value: finding for finding in Finding}
    for word, response in words.items():
        if word not in known:
            raise _invalid(name, f"{table}: there is no finding {word!r}")
        if known[word] in HOST_FINDINGS and response != "alert":
            raise _invalid(name, f"{table}: {word} is found of the host: nobody is there to {response}")
    return {known[word]: _WORDS[response] for word, response in words.items()}


def _invalid(name: str, problem: str) -> UsageError:
    return UsageError(
        Reason.CONFIG_INVALID, f"{name}: {problem}", "Correct it, then run: egs drift dry-run --rules FILE"
    )


def decide(rules: Rules, finding: Finding, signed: DriftConstraint | None, mode: Mode) -> Decided:
    """What is done about a finding. What is signed goes before the host's rules, but never below `at_least`.

    Args:
        rules: of this host.
        finding: what was found.
        signed: the artifact's word `drift`; None: it has none, or it is not known.
        mode: of the scope. Who only observes does nothing to anybody.
    """
    response, rule = rules.responses.get(finding), "drift.toml"
    if response is None:
        response, rule = DEFAULTS.get(finding, Response.ALERT), "default"
    by_artifact = None if signed is None else signed.response(finding)
    if by_artifact is not None:
        response, rule = by_artifact, "artifact"
    least = rules.at_least.get(finding, Response.ALERT)
    if least > response:
        response, rule = least, "drift.toml at_least"
    if finding in HOST_FINDINGS:
        return Decided(Response.ALERT, "of the host")
    if response is Response.ALERT:
        return Decided(response, rule)
    if mode is Mode.OBSERVE:
        return Decided(Response.ALERT, f"observe mode, else {response.word} by {rule}")
    if rules.dry_run:
        return Decided(Response.ALERT, f"dry run, else {response.word} by {rule}")
    return Decided(response, rule)


def makes_code(rules: Rules, program: str) -> bool:
    """Whether a program, by its path, is expected to make executable memory."""
    name = program.rpartition("/")[2]
    return any(
        name.startswith(known[:-1]) if known.endswith("*") else name == known
        for known in rules.expected.anonymous_code
    )
