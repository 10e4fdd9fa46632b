"""Who may import whom: read from the sources, function-level and type-checking imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import egs_kernel

PACKAGE = Path(egs_kernel.__file__).parent

# From bottom to top: a module imports its own layer and those above it in this list, never those below.
LAYERS = (
    {"model", "findings"},
    {"errors", "sslib"},
    {"paths", "ownership", "filesystems", "processes", "peers", "config", "durable", "locks"},
    {"artifact", "trust", "identity"},
    {"policy"},
    {"checks"},
    {"verify"},
    {"maintenance"},
    {"audit"},
    {"drift"},
    {"measure", "posture", "hostkey", "packages", "baseline", "constraints"},
    {"gate"},
    {"launch", "apply"},
    {"metrics"},
    {"web"},
    {"console", "witness", "authority"},
    {"daemon", "monitor"},
    {"cli"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

# What a launch pays for, whatever it launches.
LAUNCH_PATH = {
    "cli/__init__.py": {"sys"},
    "launch.py": {"_signal", "_socket", "posix", "sys"},
}

SOURCES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
)


def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names of the modules (or of what is taken from them) that a source imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parse(source: Path) -> ast.Module:
    return ast.parse((PACKAGE / source).read_text(encoding="utf-8"))


def layer_of(source: Path) -> int:
    return LAYER_OF[source.with_suffix("").parts[0]]


def upward(source: Path, tree: ast.AST) -> list[str]:
    """The imports of a source that point to a higher layer."""
    ours = [name.split(".") for name in imports_of(tree) if name.split(".")[0] == "egs_kernel"]
    layers = {".".join(parts): LAYER_OF.get(parts[1], -1) for parts in ours if len(parts) > 1}
    return [name for name, layer in layers.items() if layer > layer_of(source)]


def test_every_module_has_a_layer() -> None:
    assert {source.with_suffix("").parts[0] for source in SOURCES} <= set(LAYER_OF)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_imports_point_downwards(source: Path) -> None:
    assert upward(source, parse(source)) == []


def test_an_import_that_points_upwards_is_seen() -> None:
    for text in (
        "import egs_kernel.daemon.server",
        "from egs_kernel import daemon",
        "def f():\n from egs_kernel.cli import main",
    ):
        assert upward(Path("verify.py"), ast.parse(text)), text


def test_only_the_loader_imports_bcc() -> None:
    users = {
        str(source) for source in SOURCES for name in imports_of(parse(source)) if name.split(".")[0] == "bcc"
    }
    assert users <= {"gate/loader.py"}


def test_securesystemslib_is_imported_without_the_clients_of_key_services() -> None:
    """14 MB in the daemon, otherwise, where they are installed, as they are here."""

    def at_run_time(tree: ast.Module) -> set[str]:
        class Skip(ast.NodeTransformer):
            def visit_If(self, node: ast.If) -> ast.AST | None:
                return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

        return imports_of(Skip().visit(tree))

    def takes_it(source: Path) -> bool:
        return any(name.split(".")[0] == "securesystemslib" for name in at_run_time(parse(source)))

    assert {str(source) for source in SOURCES if takes_it(source)} == {"sslib.py"}
    code = "import sys, egs_kernel.verify; print(*(name for name in sys.modules if name in {'hvac', 'pkcs11', 'boto3'}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
    code = "import hvac, pkcs11, egs_kernel.sslib, sys; print('hvac' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True"]


def test_only_the_verifier_makes_grants() -> None:
    """And the gate's self-test, for a scope that exists while the gate is loaded and not armed yet."""

    def makes_grants(source: Path) -> bool:
        calls = (node.func for node in ast.walk(parse(source)) if isinstance(node, ast.Call))
        return any(ast.unparse(function) in {"Grant", "model.Grant"} for function in calls)

    assert {str(source) for source in SOURCES if makes_grants(source)} == {"verify.py", "gate/specimen.py"}


@pytest.mark.parametrize(("name", "allowed"), LAUNCH_PATH.items(), ids=str)
def test_a_launch_imports_little(name: str, allowed: set[str]) -> None:
    def is_for_types_only(node: ast.stmt) -> bool:
        return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"

    statements = [node for node in parse(Path(name)).body if not is_for_types_only(node)]
    top = [node for node in statements if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert {name.split(".")[0] for name in imports_of(ast.Module(top, []))} <= allowed


PURE = "model errors artifact.canonical artifact.envelope artifact.statement artifact.interpreters checks.intent verify"


def test_the_verifier_touches_neither_clock_nor_network_nor_processes() -> None:
    """By its sources: nothing of it imports what would let it, and it asks no clock."""
    forbidden = {"os", "time", "socket", "subprocess", "threading", "asyncio", "random", "secrets"}
    for module in PURE.split():
        tree = parse(Path(*module.split(".")).with_suffix(".py"))
        imported = imports_of(tree)
        assert not {name.split(".")[0] for name in imported} & forbidden, module
        assert "pathlib.Path" not in imported, module
        calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not calls & {"now", "utcnow", "today"}, module


def test_the_commands_that_read_artifacts_load_no_daemon_and_no_gate() -> None:
    code = "import sys, egs_kernel.cli.verify; print([n for n in sys.modules if n.startswith('egs_kernel.')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "egs_kernel.verify" in result.stdout
    assert not any(
        name in result.stdout for name in ("egs_kernel.daemon", "egs_kernel.gate", "egs_kernel.audit")
    )
