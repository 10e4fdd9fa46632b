"""Proposals: what is proposed, what is left out and why, what a package upgrade changes, and files that are no proposals."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.audit.entries import Exec, Recorded
from egs_kernel.baseline import proposal as pr
from egs_kernel.baseline.dpkg import Packages, md5_of
from egs_kernel.baseline.observed import Seen, observed
from egs_kernel.baseline.propose import PER_FILE, Files, propose
from egs_kernel.errors import UsageError
from egs_kernel.model import FileIdentity, Reason
from tests.samples import exec_event

TRUE = Path("/bin/true").resolve()
SHELL = Path("/bin/sh").resolve()


class Host:
    """A folder with programs and dpkg's records of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dpkg = folder / "dpkg"
        (self.dpkg / "info").mkdir(parents=True)
        self._status: dict[str, str] = {}

    def program(self, name: str, source: Path = TRUE, more: bytes = b"") -> Path:
        path = self.folder / name
        path.write_bytes(source.read_bytes() + more)
        path.chmod(0o755)
        return path

    def script(self, name: str, first: str, body: str = "exit 0\n") -> Path:
        path = self.folder / name
        path.write_text(f"{first}\n{body}")
        path.chmod(0o755)
        return path

    def package(self, name: str, version: str, *files: Path) -> None:
        self._status[name] = version
        (self.dpkg / "status").write_text(
            "\n".join(
                f"Package: {package}\nStatus: install ok installed\nVersion: {number}\nDescription: words\n more\n"
                for package, number in self._status.items()
            )
        )
        (self.dpkg / "info" / f"{name}:amd64.list").write_text("".join(f"{file}\n" for file in files))
        sums = "".join(f"{md5_of(file)}  {str(file)[1:]}\n" for file in files)
        (self.dpkg / "info" / f"{name}:amd64.md5sums").write_text(sums)

    def propose(self, seen: dict[Seen, int], **more: Any) -> pr.Proposal:
        return propose(
            seen,
            Files(Packages.load(self.dpkg)),
            scope="test",
            host="here",
            time="2026-11-23T12:00:00Z",
            **more,
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def seen(path: Path | str, *argv: str, program: Path | None = None, uid: int = 0, whole: bool = True) -> Seen:
    """An exec of a path, of which the gate saw this program."""
    status = Path(program or path).stat()
    seconds, nanoseconds = divmod(status.st_ctime_ns, 10**9)
    file = FileIdentity(1, status.st_ino, 2, status.st_size, seconds, nanoseconds)
    return Seen(str(path), file, uid, (argv or (str(path),)) if whole else None)


def reasons(proposal: pr.Proposal) -> list[str]:
    return [item.why for item in proposal.left_out]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- what is proposed --------------------------------------------------------------------------------


def test_programs_are_grouped_by_package_and_none_is_proposed_twice(host: Host) -> None:
    one, two, own = (host.program(name) for name in ("one", "two", "own"))
    host.package("tools", "1.2-3", one, two)
    found = host.propose(
        {seen(one): 3, seen(one, "one", "other", "arguments"): 2, seen(two, uid=7): 1, seen(own): 4}
    )
    none, tools = found.package
    assert (none.name, none.version, tools.name, tools.version) == (pr.NO_PACKAGE, None, "tools", "1.2-3")
    assert [(p.path, p.seen, p.uid, p.argv) for p in tools.program] == [
        (str(one), 5, 0, None),
        (str(two), 1, 7, None),
    ]
    assert [program.sha256 for program in none.program] == [sha256(own)]
    assert found.left_out == ()


def test_who_runs_it_is_bound_when_it_is_always_the_same(host: Host) -> None:
    one = host.program("one")
    ((_, both),) = host.propose({seen(one, uid=1): 1, seen(one, uid=2): 1}).programs()
    assert both.uid is None


def test_an_interpreter_is_proposed_with_its_arguments_and_its_script(host: Host) -> None:
    python = host.program("python3")
    script = host.script("job.py", "print(1)")
    ((_, inline), (_, program)) = host.propose(
        {
            seen(python, "python3", "-u", str(script), "more"): 2,
            seen(python, "python3", "-c", "print(2)"): 1,
        }
    ).programs()
    assert inline.argv == ("python3", "-c", "print(2)")
    assert program.argv == ("python3", "-u", str(script), "more")
    assert program.script == (pr.Script(path=str(script), sha256=sha256(script)),)
    assert inline.script == ()


def test_a_script_is_its_interpreter_with_the_script(host: Host) -> None:
    script = host.script("job", f"#!{SHELL} -e")
    argv = (str(SHELL), "-e", str(script), "x")
    ((_, program),) = host.propose({seen(script, *argv, program=SHELL): 1}).programs()
    assert (program.path, program.argv) == (str(SHELL), argv)
    assert program.script == (pr.Script(path=str(script), sha256=sha256(script)),)


def test_a_package_brings_its_native_programs_unseen(host: Host, tmp_path: Path) -> None:
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    tool, script = host.program("usr/bin/tool"), host.script("usr/bin/script", "#!/bin/sh")
    host.package("tools", "1", tool, script)
    packages = Packages.load(host.dpkg)
    assert list(packages.programs("tools")) == []  # not in a folder of programs
    inside = Packages(packages.versions, {"/usr/bin/true": "tools"}, {})
    assert [str(path) for path in inside.programs("tools")] == ["/usr/bin/true"]
    with pytest.raises(UsageError, match="not installed"):
        list(packages.programs("other"))


# -- what is left out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("python3", "job.py"), "absolute path"),
        (("python3", "-m", "http.server"), "absolute path"),
        (("python3",), "from its input"),
        (("python3", "-i"), "from its input"),
        (("python3", "/not/there.py"), "not there any more"),
        (("python3", "-c", "*", "*"), "reads as any"),
        (("python3", "-c", "a\x07b"), "cannot hold them"),
        (("python3", "-c", "x" * 5000), "cannot hold them"),
        (("python3", "-c", "\udcff"), "cannot hold them"),
    ],
    ids=str,
)
def test_what_an_artifact_could_not_bind_is_left_out(host: Host, argv: tuple[str, ...], why: str) -> None:
    python = host.program("python3")
    found = host.propose({seen(python, *argv): 1})
    assert found.package == ()
    (said,) = reasons(found)
    assert why in said
    assert pr.parse(pr.render(found).encode(), "x").left_out[0].why == said


def test_arguments_that_were_not_recorded_whole(host: Host) -> None:
    assert "recorded whole" in reasons(host.propose({seen(host.program("bash"), whole=False): 1}))[0]


def test_the_loader_and_what_reads_its_code_from_a_file(host: Host) -> None:
    loader = host.program("ld-linux-x86-64.so.2")
    awk = host.program("awk")
    found = host.propose(
        {
            seen(loader, "ld.so", "/bin/true"): 1,
            seen(awk, "awk", "{print}"): 1,
            seen(awk, "awk", "-f", "relative.awk"): 1,
        }
    )
    assert [program.argv for _, program in found.programs()] == [("awk", "{print}")]
    assert any("loader" in why for why in reasons(found))
    assert any("relative.awk" in why for why in reasons(found))


def test_what_changed_since_or_is_not_there(host: Host) -> None:
    one, two = host.program("one"), host.program("two")
    before = {seen(one): 1, seen(two): 1, Seen("relative", seen(one).file, 0, ("relative",)): 1}
    one.write_bytes(b"\x7fELF other")
    two.unlink()
    found = host.propose(before)
    assert found.package == ()
    assert sorted(why.split(":")[0].split(" cannot")[0].split(",")[0] for why in reasons(found)) == [
        str(two),
        "it has changed since it was observed",
        "it was executed by a relative path",
    ]


def test_what_is_not_as_its_package_installed_it(host: Host) -> None:
    one = host.program("one")
    host.package("tools", "1", one)
    one.write_bytes(one.read_bytes() + b"patched")
    assert "dpkg --verify tools" in reasons(host.propose({seen(one): 1}))[0]


def test_more_command_lines_than_can_stand(host: Host) -> None:
    shell = host.program("bash")
    found = host.propose({seen(shell, "bash", "-c", str(number)): 1 for number in range(PER_FILE + 1)})
    assert found.package == ()
    assert len(found.left_out) == PER_FILE + 1
    assert "egs run" in found.left_out[0].why
    enough = host.propose({seen(shell, "bash", "-c", str(number)): 1 for number in range(PER_FILE)})
    assert sum(1 for _ in enough.programs()) == PER_FILE


# -- an upgrade --------------------------------------------------------------------------------------


def test_an_upgrade_of_a_package_proposes_the_difference(host: Host) -> None:
    one, two, own = (host.program(name) for name in ("one", "two", "own"))
    host.package("tools", "1", one, two)
    before = host.propose({seen(one): 3, seen(two): 1, seen(own): 1})
    host.program("one", more=b"upgraded")
    two.unlink()
    host.package("tools", "2", one)
    after = host.propose({}, before=before)
    added, removed = (change for change in pr.difference(before, after) if change.program.path != str(own))
    assert (added.kind, added.package, added.was, added.now) == ("changed", "tools", "1", "2")
    assert (added.program.sha256, added.program.seen) == (sha256(one), 3)
    assert (removed.kind, removed.program.path) == ("removed", str(two))
    assert [program.path for _, program in pr.only(after, [added.program]).programs()] == [str(one)]
    assert pr.difference(after, after) == ()


def test_a_change_that_no_package_made_is_left_out(host: Host) -> None:
    own, script = host.program("bash"), host.script("job.sh", "true")
    before = host.propose({seen(own, "bash", str(script)): 1})
    script.write_text("rm -rf /\n")
    after = host.propose({}, before=before)
    assert after.package == ()
    assert "no package says that it should" in reasons(after)[0]


# -- the record --------------------------------------------------------------------------------------


def test_what_was_executed_is_folded_by_scope_and_time() -> None:
    def recorded(seq: int, time: str, **changes: Any) -> Recorded:
        return Recorded(seq, time, Exec(event=exec_event(**changes)), "")

    entries = [
        recorded(0, "2026-11-23T10:00:00.000000Z", scope="test"),
        recorded(1, "2026-11-23T11:00:00.000000Z", scope="test"),
        recorded(2, "2026-11-23T11:00:00.000000Z", scope="other"),
        recorded(3, "2026-11-23T11:00:00.000000Z", scope="test", argv_truncated=True),
    ]
    assert sorted(observed(entries, "test").values()) == [1, 2]
    found = observed(entries, "test", "2026-11-23T10:30:00.000000Z")
    assert sorted(found.values()) == [1, 1]
    assert {one.argv is None for one in found} == {True, False}


# -- the file ----------------------------------------------------------------------------------------


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cf"]), min_size=1, max_size=20
)


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, TEXT)
def test_a_proposal_is_read_as_it_was_written(argv: list[str], name: str, why: str) -> None:
    proposal = pr.Proposal(
        format=1,
        scope="test",
        host="here",
        proposed="2026-11-23T12:00:00Z",
        package=(
            pr.Package(
                name=name,
                version="1:2.3-4~5",
                program=(
                    pr.Program(
                        path="/" + name,
                        sha256="ab" * 32,
                        seen=2,
                        uid=0,
                        argv=tuple(argv),
                        script=(pr.Script(path="/" + why, sha256="cd" * 32),),
                    ),
                ),
            ),
        ),
        left_out=(pr.LeftOut(path=name, why=why, seen=1, argv=("\x7f", "\n")),),
    )
    assert pr.parse(pr.render(proposal).encode(), "x") == proposal


HEAD = 'format = 1\nscope = "test"\nhost = "h"\nproposed = "2026-11-23T12:00:00Z"\n'
PROGRAM = f'[[package]]\nname = "p"\n[[package.program]]\npath = "/bin/a"\nsha256 = "{"ab" * 32}"\n'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"format = 2",
        HEAD.replace("format = 1", "format = 2").encode(),
        (HEAD + "more = 1\n").encode(),
        HEAD.replace('"test"', '"Test"').encode(),
        (HEAD + PROGRAM.replace('"/bin/a"', '"bin/a"')).encode(),
        (HEAD + PROGRAM.replace("ab", "xy")).encode(),
        (HEAD + PROGRAM + "argv = []\n").encode(),
        (HEAD + PROGRAM + "uid = -1\n").encode(),
        (HEAD + PROGRAM + PROGRAM).encode(),
        b"a = " + b"[" * 2000,
    ],
    ids=range(12),
)
def test_what_is_no_proposal_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        pr.parse(content, "file.toml")
    assert caught.value.reason is Reason.PROPOSAL_INVALID
    assert "file.toml" in caught.value.message


def test_a_good_one_is_taken() -> None:
    assert [program.path for _, program in pr.parse((HEAD + PROGRAM).encode(), "x").programs()] == ["/bin/a"]


def test_a_host_without_dpkg_has_no_packages(tmp_path: Path) -> None:
    packages = Packages.load(tmp_path)
    assert packages == Packages({}, {}, {})
    assert packages.owner("/bin/true") is None


def test_on_this_host_programs_have_packages() -> None:
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("no dpkg here")
    owner = Packages.load().owner(str(TRUE))
    assert owner is not None
    assert owner.package == "coreutils"
    assert owner.md5 == md5_of(TRUE)
    assert stat.S_ISREG(TRUE.stat().st_mode)


def test_the_example_of_the_document_is_a_proposal() -> None:
    page = (Path(__file__).parents[2] / "docs/baseline.md").read_text()
    found = pr.parse(page.split("```toml\n")[1].split("```")[0].encode(), "docs/baseline.md")
    assert [package.name for package in found.package] == ["coreutils", "python3.11-minimal"]
    assert pr.parse(pr.render(found).encode(), "x") == found
