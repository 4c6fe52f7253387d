"""Publishing: an executed notebook's outputs come to the notebook whose code is the same."""

import base64

import cv2
import nbformat
import numpy as np
import outputs
import pytest
from nbformat import v4

from faces import parts


def notebook(code: str, cell_outputs=()) -> nbformat.NotebookNode:
    parameters = v4.new_code_cell("epochs = 9", metadata={"tags": ["parameters"]})
    return v4.new_notebook(cells=[parameters, v4.new_code_cell(code, outputs=[*cell_outputs])])


def executed(code: str) -> nbformat.NotebookNode:
    printed = [v4.new_output("stream", name="stdout", text=f"epoch {n}\n") for n in (1, 2)]
    shown = v4.new_output("execute_result", {"text/plain": "1"}, execution_count=77)
    path = v4.new_output("stream", name="stdout", text="runs/outputs/runs/sample/x\n")
    made = notebook(code, [*printed, shown, path])
    given = v4.new_code_cell("epochs = 2", metadata={"tags": ["injected-parameters"]})
    made.cells.insert(1, given)
    return made


def test_outputs_are_published_with_their_settings():
    record = {"seconds": 130, "cores": 1}
    done = outputs.with_outputs(notebook("f(1)  # a remark"), executed("f(1)"), record)
    assert "in 2 minutes on 1 processor core: `epochs = 2`" in done.cells[1].source
    printed, shown, path = done.cells[2].outputs
    assert printed.text == "epoch 1\nepoch 2\n", "lines that follow each other are one output"
    assert path.text == "runs/sample/x\n"
    assert done.cells[2].execution_count == shown.execution_count == 2
    again = outputs.with_outputs(done, executed("f(1)"), record)
    assert len(again.cells) == 3, "one note on the settings, not two"


def figure(colours: int) -> str:
    """Noise of so many colours, as a PNG in base64."""
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 255, (colours, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 8)
    index = (smooth.argsort(None).argsort() * colours // smooth.size).reshape(smooth.shape)
    return base64.b64encode(cv2.imencode(".png", palette[index])[1]).decode()


def test_figures_become_smaller_and_stay_figures():
    photograph = np.random.default_rng(0).normal(128, 20, (90, 120, 3)).clip(0, 255)
    png = base64.b64encode(cv2.imencode(".png", photograph.astype(np.uint8))[1]).decode()
    (kind,) = outputs.smaller(png)
    assert kind == "image/jpeg"
    (kind,) = outputs.smaller(png, only_png=True)
    assert kind == "image/png", "the README shows it under this name"
    for figures in (outputs.smaller(png), outputs.smaller(figure(3))):
        ((kind, data),) = figures.items()
        assert len(data) < len(png)
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1)
        assert image.shape == (90, 120, 3)
    assert list(outputs.smaller(figure(3))) == ["image/png"], "few colours, as in a chart"


@pytest.mark.parametrize("only_png", [True, False])
def test_figures_keep_the_colours_of_rare_parts(only_png):
    """Seventy pixels of a part's colour among many others stay nearest to that colour."""
    ramp = np.linspace(0, 255, 240)
    image = np.stack([*np.meshgrid(ramp, ramp), np.full((240, 240), 120.0)], 2).astype(np.uint8)
    for index, colour in enumerate(parts.COLOURS):
        image[12 * index : 12 * index + 6, :12] = colour
    png = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 0])[1]
    (small,) = outputs.smaller(base64.b64encode(png).decode(), only_png).values()
    kept = cv2.imdecode(np.frombuffer(base64.b64decode(small), np.uint8), 1)[..., ::-1]
    colours = parts.COLOURS.astype(int)
    patches = [kept[12 * index : 12 * index + 6, :12] for index in range(len(colours))]
    means = [patch.reshape(-1, 3).mean(0) for patch in patches]
    nearest = [int(np.abs(colours - mean).max(1).argmin()) for mean in means]
    assert nearest == list(range(len(colours)))


def test_outputs_of_other_code_are_not_published():
    with pytest.raises(ValueError, match="its code has changed"):
        outputs.with_outputs(notebook("f(2)"), executed("f(1)"), {"seconds": 1, "cores": 1})
