"""Writes the exported cells of every notebook to notebooks/faces/, one module each.

python notebooks/export.py; it needs nbdev (tests/requirements.txt).
"""

import sys
from pathlib import Path

from nbdev.export import nb_export


def export(notebooks: Path) -> None:
    """Exports the numbered notebooks of a folder to its faces/."""
    for path in sorted(notebooks.glob("[0-9].[0-9]_*.ipynb")):
        if "default_exp" in path.read_text(encoding="utf-8"):
            nb_export(str(path), lib_path=str(notebooks / "faces"))


if __name__ == "__main__":
    export(Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve().parent)
