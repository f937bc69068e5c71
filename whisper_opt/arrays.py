"""Names for the array types that cross seams."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["F32", "Bool", "Int", "NDArray"]

F32 = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
NDArray = npt.NDArray[Any]
