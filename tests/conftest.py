"""One thread for the whole session.

Results do not depend on it, run time on shared machines does.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)
