"""The page of `make demo`: a photograph in, what every stage of the pipeline says out.

python notebooks/demo.py

It opens at once, with the models that come with the project, runs on 127.0.0.1, and keeps no
photograph on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import cv2
import gradio as gr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import helpers
from faces import crops, parts
from faces.pipeline import detector_file, FacePipeline, Result

LARGEST = 20_000_000  # bytes of a photograph
PORT, NEXT = 7860, 100  # of the page, and how many more are tried
COLUMNS = ["face", "person", "cosine", "confidence"]
GREEN = np.array([0, 255, 90], np.uint8)
PART_NAMES = (
    "skin, nose, glasses, left eye, right eye, left brow, right brow, left ear, right ear, "
    "mouth, upper lip, lower lip, hair, hat, earring, necklace, neck, cloth"
).split(", ")
INTRODUCTION = """# Faces, end to end
Drop a photograph, or take one, and see what each network says of it. Nothing leaves this
machine, and no photograph is kept."""


def image_of(figure: plt.Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8; closes it."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return image


def with_points(result: Result) -> np.ndarray:
    """The photograph with boxes and landmarks."""
    image = result.photograph.copy()
    for face in result.faces:
        thick = max(1, round(face.box[2] / 80))
        x, y, width, height = face.box.round().astype(int).tolist()
        cv2.rectangle(image, (x, y), (x + width, y + height), (255, 220, 0), thick)
        for point in face.points.round().astype(int).tolist():
            cv2.circle(image, point, 2 * thick, (0, 255, 90), -1)
    return image


def laid_over(result: Result, field: str, opacity: float) -> np.ndarray:
    """The photograph with the label maps, or the masks, of its faces laid over it."""
    image = result.photograph.astype(np.float32)
    for face in result.faces:
        labels = face.label_map if field == "parts" else face.mask
        if labels is None:
            continue
        colours = parts.colourise(labels) if field == "parts" else GREEN * labels[..., None]
        matrix, shape = face.matrix.copy(), image.shape[1::-1]
        matrix *= len(labels) / 256
        matrix[:, 2] += 0.5 * len(labels) / 256 - 0.5
        inverse = crops.invert_affine(matrix)
        shown = (labels > 0).astype(np.uint8)
        nearest = dict(flags=cv2.INTER_NEAREST)
        layer = cv2.warpAffine(colours.astype(np.uint8), inverse, shape, **nearest)
        weight = opacity * cv2.warpAffine(shown, inverse, shape, **nearest)[..., None]
        image = weight * layer + (1 - weight) * image
    return image.round().astype(np.uint8)


def legend() -> str:
    """The colours of the parts, as HTML."""
    entries = []
    for name, colour in zip(PART_NAMES, parts.COLOURS[1:].tolist(), strict=True):
        box = f"background:rgb{tuple(colour)};padding:0 .6em;margin-right:.3em"
        sample = f'<span style="{box}"></span>'
        style = "white-space:nowrap;margin-right:1em"
        entries.append(f'<span style="{style}">{sample}{name}</span>')
    return " ".join(entries)


def rows_of(result: Result) -> pd.DataFrame:
    """The table of faces."""
    rows = []
    for number, face in enumerate(result.faces, 1):
        name, cosine = "nobody is enrolled", None
        if face.matches:
            name = result.gallery.name_of(face) or "unknown"
            cosine = round(face.matches[0][1], 2)
        rows.append([number, name, cosine, round(face.confidence, 2)])
    return pd.DataFrame(rows, columns=COLUMNS)


def sentence_of(result: Result) -> str:
    """What was found, in one sentence, and the time of each stage."""
    count = len(result.faces)
    found = {0: "No face found", 1: "One face"}.get(count, f"{count} faces")
    people = [row for row in rows_of(result).itertuples() if row.cosine is not None]
    names = ", ".join(f"{row.person} ({row.cosine:.2f})" for row in people)
    found += f": {names}." if names else "."
    times = ", ".join(f"{stage} {spent:.0f}" for stage, spent in result.milliseconds.items())
    return f"{found} Milliseconds: {times}."


def packed(result: Result, folder: str) -> str:
    """A zip file with the figure, the numbers and the label maps."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("faces.json", json.dumps(result.to_dict(), indent=1))
        images = {"points": with_points(result), "figure": image_of(result.plot())}
        for name, image in images.items():
            archive.writestr(f"{name}.png", png(image))
        for number, face in enumerate(result.faces, 1):
            for name, labels in (("parts", face.label_map), ("mask", face.mask)):
                if labels is not None:
                    archive.writestr(f"face_{number}_{name}.png", png(labels.astype(np.uint8)))
    return str(path)


def png(image: np.ndarray) -> bytes:
    """An image, RGB or of labels, as a PNG file."""
    image = image[..., ::-1] if image.ndim == 3 else image
    return cv2.imencode(".png", image)[1].tobytes()


class Page:
    """What the page's buttons do; the last Result is kept in the visitor's session."""

    def __init__(self, pipeline: FacePipeline, uploads: str) -> None:
        self.pipeline, self.uploads = pipeline, uploads

    def answer(self, source, opacity: float):
        """A photograph -> everything that the page shows; or gr.Error with one sentence."""
        if source is None:
            raise gr.Error("There is no photograph yet: drop one, or take one with the camera.")
        try:
            result = self.pipeline(source)
        except helpers.PhotographError as error:
            raise gr.Error(str(error)) from None
        return result, *self.shown(result, opacity)

    def example(self, opacity: float):
        """What the page shows of a photograph that is in the public domain."""
        return self.answer(helpers.astronaut(), opacity)

    def shown(self, result: Result, opacity: float):
        """The outputs of the page for a Result."""
        portraits = [
            (face.portrait, f"face {number}")
            for number, face in enumerate(result.faces, 1)
            if face.portrait is not None
        ]
        images = image_of(result.plot()), with_points(result), *self.repaint(result, opacity)
        answers = rows_of(result), sentence_of(result), packed(result, self.uploads)
        return result.photograph, *images, portraits, *answers

    def repaint(self, result: Result | None, opacity: float):
        """Parts and mask at another opacity."""
        if result is None:
            return None, None
        return laid_over(result, "parts", opacity), laid_over(result, "mask", opacity)

    def enroll(self, files: list[str] | None, name: str) -> str:
        """Several photographs of one person -> a sentence on who is known now."""
        name = " ".join((name or "").split())
        if not files or not name:
            raise gr.Error("Drop photographs of one person, and write the name beside them.")
        with tempfile.TemporaryDirectory(dir=self.uploads) as album:
            folder = Path(album) / re.sub(r"[^\w .-]", "_", name).strip(".")
            folder.mkdir()
            for path in files:
                Path(path).replace(folder / Path(path).name)
            reasons = self.pipeline.enroll(album)
        left_out = " ".join(f"{reason}." for reason in reasons.values())
        known = ", ".join(self.pipeline.gallery.names) or "nobody"
        return f"Known: {known}. {left_out}"


def build_page(page: Page) -> gr.Blocks:
    """The layout."""
    with gr.Blocks(title="Faces, end to end", delete_cache=(60, 60)) as blocks:
        gr.Markdown(INTRODUCTION)
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=1):
                limit = f"A photograph, {LARGEST // 1_000_000} MB at most"
                dropped = gr.File(label=limit, elem_id="photograph")
                taken = gr.Image(label="Or the camera", sources=["webcam"], type="filepath")
                example = gr.Button("A photograph in the public domain", elem_id="example")
                preview = gr.Image(label="Your photograph", interactive=False)
                opacity = gr.Slider(0, 1, 0.5, label="Opacity of parts and mask")
                sentence = gr.Markdown(elem_id="sentence")
                download = gr.DownloadButton("Download the results", elem_id="download")
            with gr.Column(scale=3):
                shown = dict(format="png", interactive=False)
                with gr.Tab("Everything"):
                    figure = gr.Image(label="Every stage", elem_id="result", **shown)
                    table = gr.Dataframe(label="Faces", interactive=False)
                with gr.Tab("Landmarks"):
                    points = gr.Image(label="Boxes and five points", **shown)
                with gr.Tab("Parts"):
                    colours = gr.Image(label="Eighteen parts", elem_id="parts", **shown)
                    gr.HTML(legend(), elem_id="legend")
                with gr.Tab("Mask"):
                    mask = gr.Image(label="Face that nothing covers", **shown)
                with gr.Tab("Portrait"):
                    portraits = gr.Gallery(label="Each face as a bronze bust", format="png")
                with gr.Tab("People"):
                    gr.Markdown("Enroll somebody, then drop another photograph of them.")
                    several = dict(file_count="multiple", elem_id="album")
                    album = gr.File(label="Photographs of one person", **several)
                    name = gr.Textbox(label="Name", elem_id="name")
                    button = gr.Button("Enroll", elem_id="enroll")
                    people = gr.Markdown(elem_id="people")
        images = [preview, figure, points, colours, mask]
        results = [state, *images, portraits, table, sentence, download]
        for source, event in ((dropped, dropped.upload), (taken, taken.input)):
            event(page.answer, [source, opacity], results)
        example.click(page.example, opacity, results)
        opacity.release(page.repaint, [state, opacity], [colours, mask])
        button.click(page.enroll, [album, name], people)
    return blocks


def problem_of(port: int) -> str:
    """Why no page can be served on a port of this machine; "" where it can."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return "" if port else "there is no such port"
    except OverflowError:
        return "there is no such port"
    except OSError as error:  # taken, or not allowed
        return os.strerror(error.errno)


def open_port(port: int | None) -> int:
    """The port that was asked for, or else the first free one from 7860 up.

    Raises ValueError with one sentence where it cannot be used.
    """
    if port is not None:
        if reason := problem_of(port):
            raise ValueError(f"PORT={port} cannot be used ({reason}): choose another one.")
        return port
    for number in range(PORT, PORT + NEXT):
        if not problem_of(number):
            if number != PORT:
                print(f"Port {PORT} is taken: the page is on {number}.", flush=True)
            return number
    raise ValueError(f"The ports {PORT} to {PORT + NEXT - 1} are taken: choose another, PORT=.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=str(helpers.WEIGHTS), help="folder or hub id")
    parser.add_argument("--recogniser", default="arcface", choices=["arcface", "ce"])
    parser.add_argument("--detector", default="", help="yunet, or its file")
    parser.add_argument("--people", default="", help="folder with a folder for each person")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 up")
    parser.add_argument("--share", action="store_true", help="a public address, by gradio")
    options = parser.parse_args()
    try:
        port = open_port(options.port)
        file = detector_file(options.detector, helpers.ROOT / "runs")
        more = dict(recogniser=options.recogniser, detector=file)
        pipeline = FacePipeline.from_pretrained(options.models, **more)
        for reason in (pipeline.enroll(options.people) if options.people else {}).values():
            print(reason)
    except (FileNotFoundError, ValueError) as error:  # a model is missing or unreadable
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as uploads:  # gone when the page is closed
        os.environ["GRADIO_TEMP_DIR"] = uploads
        address = dict(server_name="127.0.0.1", server_port=port, share=options.share)
        page = build_page(Page(pipeline, uploads))
        page.launch(max_file_size=LARGEST, show_error=True, **address)


if __name__ == "__main__":
    main()
