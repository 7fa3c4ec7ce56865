"""All tests compute on one thread.

Several processes on one machine are slower if each of them uses all cores. Also, the products of a
single run are cut for several threads, which may change a result by one rounding.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)
