"""Publishes what `make outputs` has made in runs/outputs/: outputs of notebooks, tables.

The last figure of the cell tagged "gallery" goes to notebooks/pictures/, where the README and
the notebook's first cell show it; the tables go to csv/sample/.
"""

import ast
import base64
import io
import json
import shutil
import sys

import nbformat
from PIL import Image
from run import HERE, NEEDS, notebook_of, ROOT


def smaller(png: str, only_png: bool = False) -> dict[str, str]:
    """A figure, type -> base64: as JPEG or PNG with a palette of 256 colours, if smaller."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    slim, jpeg = io.BytesIO(), io.BytesIO()
    dithered = image.quantize(256, kmeans=1, dither=Image.Dither.FLOYDSTEINBERG)
    dithered.save(slim, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=88, subsampling=0)
    encoded = lambda file: base64.b64encode(file.getvalue()).decode()  # noqa: E731
    choices = [("image/png", png), ("image/png", encoded(slim)), ("image/jpeg", encoded(jpeg))]
    return dict([min(choices[: 2 if only_png else 3], key=lambda choice: len(choice[1]))])


def behaviour_of(cell: nbformat.NotebookNode) -> str:
    """The code of a cell without comments, layout and docstrings."""
    tree = ast.parse(cell.source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def profile_note(added: list, record: dict) -> nbformat.NotebookNode:
    """The cell of parameters that papermill has added, as a line of text."""
    lines = [line for cell in added for line in cell.source.splitlines()]
    lines = [line for line in lines if line and line[0] not in "#"]
    lines = [line for line in lines if not line.startswith(("output", "data "))]
    minutes = max(1, round(record["seconds"] / 60))
    time = f"{minutes} minute{'s' * (minutes > 1)}"
    cores = f"{record['cores']} processor core{'s' * (record['cores'] > 1)}"
    text = f"The outputs below were made with `profiles/outputs.yaml`, in {time} on {cores}"
    text += f": `{'`, `'.join(lines)}`." if lines else "."
    return nbformat.v4.new_markdown_cell(text, id="profile", metadata={"tags": ["profile"]})


def joined(cell_outputs: list) -> list:
    """Outputs in which printed lines that follow each other are one output, without gaps."""
    whole = []
    for output in cell_outputs:
        if output.output_type == "stream" and whole and whole[-1].get("name") == output.name:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def with_outputs(notebook, executed, record) -> nbformat.NotebookNode:
    """The committed notebook with the outputs of the executed one, whose code must be the same.

    Raises ValueError where it is not. Figures become smaller; times and paths stay behind.
    """
    tags = lambda cell: cell.metadata.get("tags", [])  # noqa: E731
    given = [cell for cell in executed.cells if "injected-parameters" in tags(cell)]
    ran = [c for c in executed.cells if c.cell_type == "code" and c not in given]
    notebook.cells = [cell for cell in notebook.cells if "profile" not in tags(cell)]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if list(map(behaviour_of, code)) != list(map(behaviour_of, ran)):
        raise ValueError("its code has changed since it was executed")
    for number, (cell, done) in enumerate(zip(code, ran, strict=True), 1):
        cell.execution_count, cell.outputs = number, joined(done.outputs)
        for output in cell.outputs:
            if "text" in output:  # as if it had run where it is shown
                output.text = output.text.replace("runs/outputs/", "")
            if "execution_count" in output:
                output.execution_count = number
            if "image/png" in output.get("data", {}):
                png = output.data.pop("image/png")
                output.data |= smaller(png, only_png="gallery" in tags(cell))
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    notebook.cells[place + 1 : place + 1] = [profile_note(given, record)]
    return notebook


def main() -> None:
    made = ROOT / "runs" / "outputs"
    folder = made / "runs" / "sample" / "notebooks"
    (HERE / "pictures").mkdir(exist_ok=True)
    for stage in NEEDS:
        path = notebook_of(stage)
        notebook, executed = (nbformat.read(p, 4) for p in (path, folder / path.name))
        record = json.loads((folder / f"{stage}.json").read_text())
        try:
            notebook = with_outputs(notebook, executed, record)
        except ValueError as error:
            sys.exit(f"{path.name}: {error}: make outputs")
        for cell in notebook.cells:
            if "gallery" in cell.metadata.get("tags", []):
                figures = [o.data for o in cell.outputs if "image/png" in o.get("data", {})]
                picture = base64.b64decode(figures[-1]["image/png"])
                (HERE / "pictures" / f"{stage}.png").write_bytes(picture)
        nbformat.write(notebook, path)
    shutil.copytree(made / "csv" / "sample", ROOT / "csv" / "sample", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
