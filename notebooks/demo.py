"""The page of `make demo`: a photograph in, every stage of 5.1 out, on 127.0.0.1; no photograph stays on disk.

python notebooks/demo.py --dataset sample
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import gradio as gr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import helpers

LARGEST = 10_000_000  # bytes of a photograph


def answerer(house, gallery, rooms):
    """path -> (wide figure, table of faces, sentence); a file that is no photograph gives gr.Error with one sentence."""

    def answer(path: str | None):
        if not path:
            raise gr.Error("There is no photograph yet: drop one, or take one with the camera.")
        try:
            photograph = rooms.photograph_from(path, LARGEST)
        except helpers.PhotographError as error:
            raise gr.Error(str(error)) from None
        faces, spent = rooms.everything(house, photograph, gallery)
        figure = rooms.wide_figure(photograph, faces, gallery)
        figure.canvas.draw()
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
        plt.close(figure)
        rows = [
            {"face": number, "person": gallery.name_of(face) or "nobody I know", "score": round(face.matches[0][1], 2), "confidence": round(face.confidence, 2)}
            for number, face in enumerate(faces, 1)
        ]  # fmt: skip
        times = ", ".join(f"{room} {milliseconds:.0f}" for room, milliseconds in spent.items())
        found = {0: "No face found.", 1: "One face."}.get(len(faces), f"{len(faces)} faces.")
        return picture, pd.DataFrame(rows, columns=["face", "person", "score", "confidence"]), f"{found} Milliseconds: {times}."

    return answer


def gallery_for(house, rooms, path: Path, again: str):
    """The gallery at `path`; embeddings of another recogniser cannot be compared, so they end the program with one sentence."""
    try:
        gallery = rooms.Gallery.load(path)
    except KeyError:  # of a version that did not note its recogniser
        gallery = None
    if gallery is None or gallery.recogniser != house.recogniser:
        sys.exit(f"{helpers.shown(path)} was made with another recogniser: {again}")
    return gallery


def build_page(answer) -> gr.Blocks:
    with gr.Blocks(title="Faces, end to end", delete_cache=(60, 60)) as page:
        gr.Markdown(
            "# Faces, end to end\nDrop a photograph, or take one: the stages of notebook 5.1, one by one. It stays on this machine and is not kept."
        )
        with gr.Row():
            dropped = gr.File(label=f"A photograph, {LARGEST // 1_000_000} MB at most", elem_id="photograph")
            taken = gr.Image(label="Or the camera", sources=["webcam"], type="filepath")
        sentence = gr.Markdown(elem_id="sentence")
        figure = gr.Image(label="Every stage", format="png", interactive=False, elem_id="result")
        table = gr.Dataframe(label="Faces", interactive=False)
        dropped.upload(answer, dropped, [figure, table, sentence])
        taken.input(answer, taken, [figure, table, sentence])
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--output", default=None, help="the folder that holds csv/ and runs/")
    parser.add_argument("--recogniser", default="arcface", choices=["arcface", "ce"])
    parser.add_argument("--detector", default=None, help="yunet, or its file")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public address, through gradio's servers")
    options = parser.parse_args()
    runs = Path(options.output or helpers.ROOT) / "runs" / options.dataset
    rooms = helpers.shared_definitions("5.1_photo_to_everything")
    if not (runs / "gallery.npz").exists():
        sys.exit(f"{helpers.shown(runs / 'gallery.npz')} is missing. Notebook 5.1 makes it: make 5.1 DATASET={options.dataset}")
    house = rooms.House(runs, options.recogniser, rooms.detector_file(options.detector, runs))
    gallery = gallery_for(house, rooms, runs / "gallery.npz", f"make 5.1 DATASET={options.dataset} SET=recogniser={options.recogniser}")
    with tempfile.TemporaryDirectory() as uploads:  # gone when the page is closed
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(answerer(house, gallery, rooms))
        page.launch(server_name="127.0.0.1", server_port=options.port, share=options.share, max_file_size=LARGEST, show_error=True)


if __name__ == "__main__":
    main()
