"""What a test needs of the kernel's Landlock and of the machine; older ones are tested for saying what they lack."""

from __future__ import annotations

from typing import Final

import pytest

from egs_kernel.constraints.injection import MACHINE, may_inject
from egs_kernel.constraints.rulesets import kernel_abi

ABI: Final = kernel_abi()

HERE: Final = pytest.mark.skipif(not may_inject(), reason=f"the registers of {MACHINE}")
FILES: Final = pytest.mark.skipif(ABI < 5, reason="Landlock 5: files, truncate and device control")
PORTS: Final = pytest.mark.skipif(ABI < 4, reason="Landlock 4: TCP ports")
SCOPES: Final = pytest.mark.skipif(ABI < 6, reason="Landlock 6: signals and abstract sockets")
