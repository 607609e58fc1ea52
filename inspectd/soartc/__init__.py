"""SOARTC: the two-stage reference comparison, as SPEC.md specifies it.

`part_bank`, `stage1`, `stage2`, `scalar_map` and `attention` are the public names by which anyone
can check the implementation; `soart3` is the formula they rest on.
"""

from inspectd.soartc.compare import attention, scalar_map, stage2
from inspectd.soartc.features import soart3, stage1
from inspectd.soartc.parts import PARTS, part_bank

__all__ = ["PARTS", "attention", "part_bank", "scalar_map", "soart3", "stage1", "stage2"]
