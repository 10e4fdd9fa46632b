"""Environment variables that can make a program load code that nobody authorized.

The verifier refuses them unless their value is signed; the gate refuses an exec that has one. Pure.
"""

from __future__ import annotations

from typing import Final

CODE_VARIABLES: Final = (
    "LD_*",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "BASH_ENV",
    "BASH_FUNC_*",
    "BASHOPTS",
    "ENV",
    "SHELLOPTS",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONPYCACHEPREFIX",
    "PYTHONSTARTUP",
    "PYTHONINSPECT",
    "PYTHONBREAKPOINT",
    "PYTHONUSERBASE",
    "PERL5LIB",
    "PERL5OPT",
    "PERL5DB",
    "PERLLIB",
    "RUBYLIB",
    "RUBYOPT",
    "GEM_PATH",
    "GEM_HOME",
    "NODE_OPTIONS",
    "NODE_PATH",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "CLASSPATH",
    "LUA_INIT*",
    "LUA_PATH*",
    "LUA_CPATH*",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "AWKPATH",
    "AWKLIBPATH",
    "TCLLIBPATH",
    "DOTNET_STARTUP_HOOKS",
)
"""Names; a `*` at the end stands for any rest."""

_NAMES: Final = frozenset(name for name in CODE_VARIABLES if not name.endswith("*"))
_BEGINNINGS: Final = tuple(name[:-1] for name in CODE_VARIABLES if name.endswith("*"))


def loads_code(variable: str) -> bool:
    """Whether an environment variable can make a program load code that nobody authorized."""
    return variable in _NAMES or variable.startswith(_BEGINNINGS)
