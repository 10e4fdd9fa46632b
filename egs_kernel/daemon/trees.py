"""Executions that are limited as a whole: their cgroups, the time by which they must have ended, and what is left of them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from egs_kernel.audit.entries import Refusal
from egs_kernel.constraints import resources
from egs_kernel.daemon.watch import FILE
from egs_kernel.errors import Refused
from egs_kernel.gate.cgroups import cgroup_id, cgroup_mount, processes_below
from egs_kernel.gate.seal import boot_now
from egs_kernel.gate.trees import (
    Note,
    is_populated,
    kill_tree,
    make_tree,
    refused_counts,
    remove_tree,
    trees_below,
    write_control,
    write_note,
)
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egs_kernel import verify
    from egs_kernel.config import Config
    from egs_kernel.daemon.watch import Listener, Watcher

CPU: Final = "cpu.max"
_SECOND: Final = 1_000_000_000
_RETRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Tree:
    """One of them. `path` is the cgroup's, `id` the kernel's number of it, `slowed` its cpu.max once the program runs."""

    folder: Path
    path: str
    id: int
    note: Note
    slowed: str = ""
    timer: asyncio.TimerHandle | None = None
    watch: tuple[int, Listener] | None = None


class Trees:
    """All of them. Everything here belongs to the event loop's thread, but for what `make` does."""

    def __init__(self, *, refused: Callable[[Sequence[Refusal]], None], watcher: Watcher) -> None:
        self._refused = refused
        self._watcher = watcher
        self._trees: set[Tree] = set()

    def recall(self, config: Config) -> None:
        """Take over those of the last daemon: what is over goes, what is overdue ends."""
        mount = cgroup_mount()
        for scope in config.scopes:
            if scope.cgroup is None:
                continue
            for folder, note in trees_below(mount / scope.cgroup.lstrip("/")):
                path = f"{scope.cgroup.rstrip('/')}/{folder.name}"
                self.adopt(Tree(folder, path, cgroup_id(folder), note))

    def adopt(self, tree: Tree) -> None:
        """See to its end from now on. Somebody is in it by now."""
        self._trees.add(tree)

        def changed(_name: str) -> None:
            self._look(tree)

        number = self._watcher.add(tree.folder / "cgroup.events", FILE, changed)
        tree.watch = None if number is None else (number, changed)
        if tree.note.until:
            self._wait(tree)
        self._look(tree)

    def of(self, execution: int) -> Tree | None:
        """That of an execution; None: it has none of its own."""
        return next((tree for tree in self._trees if tree.note.execution == execution), None)

    def tighten(self, tree: Tree) -> None:
        """Its launcher is ready: from now on it has no more processor time than its program may have.

        Raises:
            Refused: the kernel does not do that.
        """
        if tree.slowed:
            write_control(tree.folder / CPU, tree.slowed)

    def executed(self, tree: Tree, execution: int) -> None:
        """Its program runs."""
        tree.note = msgspec.structs.replace(tree.note, execution=execution)
        try:
            write_note(tree.folder, tree.note)
        except Refused as error:  # it has ended already
            _log.debug("%s", error.message)

    def _look(self, tree: Tree) -> None:
        if tree in self._trees and not is_populated(tree.folder):
            self._end(tree)

    def _end(self, tree: Tree) -> None:
        """Nobody is in it any more."""
        counts = refused_counts(tree.folder) if tree.folder.exists() else {}
        if not remove_tree(tree.folder):
            return  # somebody came into it; its events tell when that is over
        self._trees.discard(tree)
        if tree.timer is not None:
            tree.timer.cancel()
        if tree.watch is not None:
            self._watcher.remove(*tree.watch)
        entries = [self._refusal(tree, what, count) for what, count in counts.items() if count]
        if entries:
            self._refused(entries)

    def _wait(self, tree: Tree) -> None:
        left = (tree.note.until - boot_now()) / _SECOND
        tree.timer = asyncio.get_running_loop().call_later(max(0.0, left), self._expire, tree)

    def _expire(self, tree: Tree) -> None:
        if boot_now() < tree.note.until:
            self._wait(tree)  # the loop's clock is another one
            return
        inside = list(processes_below(tree.folder))
        try:
            kill_tree(tree.folder)
        except OSError as error:
            if is_populated(tree.folder):
                _log.error("%s is overdue and cannot be ended: %s", tree.path, error.strerror)
                loop = asyncio.get_running_loop()
                tree.timer = loop.call_later(_RETRY_SECONDS, self._expire, tree)
            return
        if inside:
            self._refused([self._refusal(tree, "wallSeconds", 1, inside[0])])

    def _refusal(self, tree: Tree, what: str, count: int, pid: int | None = None) -> Refusal:
        note = tree.note
        return Refusal(
            execution=note.execution,
            scope=note.scope,
            word="resources",
            what=what,
            count=count,
            artifact_id=note.artifact_id,
            pid=pid,
        )


@dataclass(frozen=True)
class Growing:
    """What an execution's cgroup is to be; made when the launch is in the record."""

    parent: str
    note: Note
    controls: dict[str, str]

    def make(self) -> Tree:
        """Make it. Blocks.

        Raises:
            Refused: the kernel does not do that.
        """
        folder = make_tree(cgroup_mount(), self.parent, self.note, self.controls)
        slowed = self.controls.get(CPU, "")
        if slowed:  # the kernel takes it; but the launcher has seconds, and would not be ready in time
            write_control(folder / CPU, f"max {resources.CPU_PERIOD}")
        path = f"{self.parent.rstrip('/')}/{folder.name}"
        return Tree(folder, path, cgroup_id(folder), self.note, slowed)


def growing(config: Config, authorization: verify.Authorization, launch: str) -> Growing | None:
    """What an execution needs of its own; None: nothing.

    Raises:
        Refused: its scope has no cgroup for that.
    """
    constraint = None if authorization.constraints is None else authorization.constraints.resources
    if constraint is None or not constraint.limits_tree:
        return None
    parent = next((known.cgroup for known in config.scopes if known.name == authorization.scope), None)
    if parent is None:
        raise Refused(
            Reason.CONSTRAINT_UNENFORCEABLE,
            f"scope {authorization.scope} has no cgroup, below which an execution could have its own",
            f"Have it issued for a scope with a cgroup, or without {', '.join(constraint.needs[1:])}.",
        )
    wall = constraint.wall_seconds
    note = Note(
        launch=launch,
        scope=authorization.scope,
        artifact_id=authorization.artifact_id,
        until=0 if wall is None else boot_now() + wall * _SECOND,
    )
    return Growing(parent, note, resources.controls(constraint))
