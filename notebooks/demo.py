"""The page of `make demo`: a photograph in, the result of every stage of notebook 5.1 out.

python notebooks/demo.py --dataset sample

It runs on 127.0.0.1, and no photograph stays on disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import gradio as gr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import helpers
from faces.pipeline import detector_file, FacePipeline, Gallery, photograph_from, wide_figure

LARGEST = 10_000_000  # bytes of a photograph
COLUMNS = ["face", "person", "score", "confidence"]
INTRODUCTION = """# Faces, end to end
Drop a photograph, or take one, and see each stage of notebook 5.1. The photograph stays on this
machine and is not kept."""


def answerer(pipeline: FacePipeline, gallery: Gallery) -> Callable:
    """path -> (wide figure, table of faces, sentence); or gr.Error with one sentence."""

    def answer(path: str | None) -> tuple[np.ndarray, pd.DataFrame, str]:
        if not path:
            raise gr.Error("There is no photograph yet: drop one, or take one with the camera.")
        try:
            photograph = photograph_from(path)
        except helpers.PhotographError as error:
            raise gr.Error(str(error)) from None
        faces, milliseconds = pipeline(photograph, gallery)
        figure = wide_figure(photograph, faces, gallery)
        figure.canvas.draw()
        image = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
        plt.close(figure)
        rows = []
        for number, face in enumerate(faces, 1):
            person, score = gallery.name_of(face) or "unknown", face.matches[0][1]
            rows.append([number, person, round(score, 2), round(face.confidence, 2)])
        times = ", ".join(f"{stage} {spent:.0f}" for stage, spent in milliseconds.items())
        found = {0: "No face found.", 1: "One face."}.get(len(faces), f"{len(faces)} faces.")
        return image, pd.DataFrame(rows, columns=COLUMNS), f"{found} Milliseconds: {times}."

    return answer


def gallery_for(pipeline: FacePipeline, path: Path, again: str) -> Gallery:
    """The gallery at `path`; exits with one sentence if it is not of the pipeline's recogniser.

    Embeddings of two recognisers cannot be compared. `again` is the command that makes it anew.
    """
    try:
        gallery = Gallery.load(path)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        sys.exit(f"{helpers.display_path(path)} is not a gallery of this version: {again}")
    if gallery.recogniser != pipeline.recogniser_hash:
        sys.exit(f"{helpers.display_path(path)} was made with another recogniser: {again}")
    return gallery


def build_page(answer: Callable) -> gr.Blocks:
    """The page that shows what `answer` returns."""
    with gr.Blocks(title="Faces, end to end", delete_cache=(60, 60)) as page:
        gr.Markdown(INTRODUCTION)
        limit = f"A photograph, {LARGEST // 1_000_000} MB at most"
        with gr.Row():
            dropped = gr.File(label=limit, elem_id="photograph")
            taken = gr.Image(label="Or the camera", sources=["webcam"], type="filepath")
        sentence = gr.Markdown(elem_id="sentence")
        options = dict(format="png", interactive=False, elem_id="result")
        figure = gr.Image(label="Every stage", **options)
        table = gr.Dataframe(label="Faces", interactive=False)
        results = [figure, table, sentence]
        dropped.upload(answer, dropped, results)
        taken.input(answer, taken, results)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--output", default="", help="folder that holds csv/ and runs/")
    parser.add_argument("--recogniser", default="arcface", choices=["arcface", "ce"])
    parser.add_argument("--detector", default="", help="yunet, or its file")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public address, by gradio")
    options = parser.parse_args()
    runs = Path(options.output or helpers.ROOT) / "runs" / options.dataset
    path = runs / "gallery.npz"
    again = f"make 5.1 DATASET={options.dataset} SET=recogniser={options.recogniser}"
    if not path.exists():
        where = helpers.display_path(path)
        sys.exit(f"{where} is missing. Notebook 5.1 makes it: {again}")
    try:
        detector = detector_file(options.detector, runs)
        pipeline = FacePipeline(runs, options.recogniser, detector)
    except (FileNotFoundError, ValueError) as error:  # a model is missing or unreadable
        sys.exit(str(error))
    gallery = gallery_for(pipeline, path, again)
    with tempfile.TemporaryDirectory() as uploads:  # gone when the page is closed
        os.environ["GRADIO_TEMP_DIR"] = uploads
        address = dict(server_name="127.0.0.1", server_port=options.port, share=options.share)
        page = build_page(answerer(pipeline, gallery))
        page.launch(max_file_size=LARGEST, show_error=True, **address)


if __name__ == "__main__":
    main()
