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


def loads_code(variable: str) -> bool:
    """Whether an environment variable can make a program load code that nobody authorized."""
    return any(_matches(variable, known) for known in CODE_VARIABLES)


def _matches(variable: str, known: str) -> bool:
    return variable.startswith(known[:-1]) if known.endswith("*") else variable == known
