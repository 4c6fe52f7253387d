"""What the notebooks teach, as a library: one module per notebook, written by `make export`.

With the folder notebooks/ on the path: `from faces import landmarks`.
"""

import sys
from pathlib import Path

_root = str(Path(__file__).resolve().parents[2])
if _root not in sys.path:
    sys.path.append(_root)  # helpers.py lies there
