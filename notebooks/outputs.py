"""Copies the executed notebooks of the sample over the committed ones, with smaller figures.

The last figure of the cell tagged "gallery" goes to notebooks/pictures/, where the README and
the notebook's first cell show it. python notebooks/outputs.py
"""

import base64
import io

import nbformat
from PIL import Image
from run import HERE, NEEDS, notebook_of, ROOT


def smaller(png: str) -> str:
    """A figure (base64 PNG) with a palette of 256 colours, rare ones too, where smaller."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    slim = io.BytesIO()
    dithered = image.quantize(256, kmeans=1, dither=Image.Dither.FLOYDSTEINBERG)
    dithered.save(slim, "PNG", optimize=True)
    return min(base64.b64encode(slim.getvalue()).decode(), png, key=len)


def profile_note(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The cell that papermill adds, as a line of text under the parameters."""
    lines = [line for line in cell.source.splitlines() if line and line[0] not in "#"]
    lines = [line for line in lines if not line.startswith(("output", "data "))]
    text = "The outputs below were made with `profiles/outputs.yaml`"
    text += f": `{'`, `'.join(lines)}`." if lines else "."
    note = nbformat.v4.new_markdown_cell(text, id="profile", metadata={"tags": ["profile"]})
    return note


def clean(notebook: nbformat.NotebookNode) -> None:
    """Removes times and paths, writes papermill's parameters as text, shrinks figures."""
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cells.append(profile_note(cell))
        elif "profile" not in tags:
            cell.metadata = {"tags": tags} if tags else {}
            cells.append(cell)
    notebook.cells = cells
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info")}
    for number, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])


def figures_of(cell: nbformat.NotebookNode) -> list[str]:
    return [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]


def main() -> None:
    (HERE / "pictures").mkdir(exist_ok=True)
    for stage in NEEDS:
        path = notebook_of(stage)
        executed = ROOT / "runs" / "sample" / "notebooks" / path.name
        notebook = nbformat.read(executed, as_version=4)
        clean(notebook)
        for cell in notebook.cells:
            if "gallery" in cell.metadata.get("tags", []):
                picture = HERE / "pictures" / f"{stage}.png"
                picture.write_bytes(base64.b64decode(figures_of(cell)[-1]))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
