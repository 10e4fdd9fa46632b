"""Runs pytest in the machine with the arguments of /srv/arguments; each outcome is a line of JSON on descriptor 3, at once.

`{"machine": …}` first, `{"tests": N}` after the collection, `{"test": id, "outcome": …, "seconds": …}` for each, and
`{"end": exit status}` last. What was skipped has `reason`, what failed has `detail`, and what a test recorded with
`record_property` is in `measured`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import pytest

CHANNEL: Final = 3
TEST_SECONDS: Final = 900
ARGUMENTS: Final = Path("/srv/arguments")
MOST_DETAIL: Final = 12_000
"""Characters of a failure that are sent; the rest is on the console."""


def tell(**line: Any) -> None:
    """Write one line."""
    data = (json.dumps(line) + "\n").encode()
    while data:
        data = data[os.write(CHANNEL, data) :]


class Outcomes:
    """What came of each test, of its three phases."""

    def __init__(self) -> None:
        self._outcome = "passed"
        self._seconds = 0.0
        self._said: dict[str, Any] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._outcome, self._seconds, self._said = "passed", 0.0, {}
        tell(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase is over."""
        self._seconds += report.duration
        if report.user_properties:
            self._said["measured"] = dict(report.user_properties)
        if report.failed:
            self._outcome = "failed"
            self._said["detail"] = f"{report.when}: {report.longreprtext}"[-MOST_DETAIL:]
        elif report.skipped and self._outcome == "passed":
            self._outcome = "xfailed" if hasattr(report, "wasxfail") else "skipped"
            self._said["reason"] = _why(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over."""
        tell(test=nodeid, outcome=self._outcome, seconds=round(self._seconds, 2), **self._said)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is a failure of its own."""
        if report.failed:
            tell(test=report.nodeid, outcome="failed", seconds=0, detail=report.longreprtext[-MOST_DETAIL:])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """No time limit of a test holds here: emulation is about ten times slower."""
        for item in items:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS), append=False)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say how many tests there will be."""
        tell(tests=len(session.items))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """The last word."""
        tell(end=int(exitstatus))


def _why(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail)
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


def introduce() -> None:
    """Say what machine this is."""
    try:
        doctor = json.loads(Path("/run/doctor.json").read_text())
    except ValueError:
        doctor = None
    tell(
        machine={
            "release": os.uname().release,
            "command_line": Path("/proc/cmdline").read_text().strip(),
            "lsm": Path("/sys/kernel/security/lsm").read_text(),
            "doctor": doctor,
        }
    )


def main() -> None:
    """From the checkout, as `python -m pytest` there."""
    os.set_inheritable(CHANNEL, False)
    sys.path.insert(0, str(Path.cwd()))
    introduce()
    pytest.main(ARGUMENTS.read_text().splitlines(), plugins=[Outcomes()])


if __name__ == "__main__":
    main()
