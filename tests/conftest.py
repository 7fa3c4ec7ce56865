"""All tests compute on one thread.

Results do not depend on the number of threads, but several processes on one machine are slower if
each of them uses all cores.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)
