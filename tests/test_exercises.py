"""The exercises: three in each notebook, whose solutions run and print what they say."""

import contextlib
import io
import re

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\n\n```python\n(.+?)```\n\n```text\n(.+?)\n```\n\n"
    r"(.+?)\n\n</details>",
    re.DOTALL,
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:3])
def test_solutions_print_what_the_notebook_says(path):
    cells = nbformat.read(path, 4).cells
    texts = [cell.source for cell in cells if cell.source.startswith("## Exercises")]
    assert len(texts) == 1
    assert re.findall(r"^\*\*(\d)\.\*\* \S", texts[0], re.MULTILINE) == ["1", "2", "3"]
    solutions = SOLUTION.findall(texts[0])
    assert len(solutions) == 3
    for code, expected, _ in solutions:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), {})
        assert printed.getvalue().strip() == expected
