"""Stamps the name of the repository into badges, set-up cells and the README.

python notebooks/badges.py owner/name
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    if len(sys.argv) != 2 or not re.fullmatch(r"[\w.-]+/[\w.-]+", sys.argv[1]):
        sys.exit("The repository is owner/name, for instance: make badges REPO=ada/faces")
    name = sys.argv[1]
    changed = 0
    for path in [HERE.parent / "README.md", *sorted(HERE.glob("[0-9].[0-9]_*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        stamped = re.sub(
            r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(/blob/)",
            rf"\g<1>{name}\g<2>",
            text,
        )
        stamped = re.sub(
            r'(FACES_REPOSITORY\\?", \\?"https://github\.com/)[\w.-]+/[\w.-]+',
            rf"\g<1>{name}",
            stamped,
        )
        stamped = re.sub(
            r"(git clone https://github\.com/)[\w.-]+/[\w.-]+ && cd [\w.-]+",
            rf"\g<1>{name} && cd {name.split('/')[1]}",
            stamped,
        )
        if stamped != text:
            Path(path).write_text(stamped, encoding="utf-8")
            changed += 1
    print(f"{name} stamped into {changed} files")


if __name__ == "__main__":
    main()
