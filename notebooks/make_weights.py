"""Trains the models that come with the project, and writes notebooks/weights/ with their cards.

make weights DATA=folder-with-celeba-and-CelebAMask-HQ

The notebooks train them, by profiles/weights.yaml, in runs/celeba/; what is up to date there is
not trained again. The portrait model learns from faces of CelebA and the bronze busts of the
sample. OCCLUDERS=file: outlines by hand of what covers faces in that copy of CelebAMask-HQ, as
benchmarks/occluders.json; the face mask then learns from photographed occluders too.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import yaml
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import helpers
from faces import arcface, recognition

CARDS = yaml.safe_load((HERE / "weights" / "cards.yaml").read_text(encoding="utf-8"))
# stage -> its parameter for the ImageNet weights
ENCODER = {"2.2": "start", "3.2": "encoder_weights", "3.4": "encoder_weights"}
GROUPS = {"Male": ("men", "women"), "Young": ("young", "older")}
GROUPS |= {"Pale_Skin": ("pale skin", "skin not marked as pale")}


def mean_of(values: pd.Series) -> str:
    """The mean and half of its 95 % interval, by the normal approximation."""
    half = 1.96 * values.std() / np.sqrt(max(1, len(values)))
    return f"{values.mean():.2f} ± {half:.2f}"


def share_of(values: pd.Series) -> str:
    """The share of True in %, with Wilson's 95 % interval."""
    low, high = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return f"{100 * values.mean():.1f} ({100 * low:.0f} to {100 * high:.0f})"


def by_group(scores: pd.Series, folders: SimpleNamespace, summary=mean_of) -> list[tuple]:
    """Rows (images, count, summary) of image_id -> score: of all, and by sex, age and skin."""
    known = helpers.read_manifest("attributes", folders).set_index("image_id")
    known = known.reindex(scores.index)
    rows = [("all", len(scores), summary(scores))]
    for column, names in GROUPS.items():
        for value, name in zip((1, 0), names, strict=True):
            some = scores[known[column] == value]
            rows.append((name, len(some), summary(some)))
    return rows


def table_of(rows: list[tuple], *titles: str) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def landmark_scores(folders) -> str:
    report = helpers.read_manifest("landmark_report", folders).set_index("image_id")
    test = report.query("landmark_split == 'test'")["nme"]
    return table_of(by_group(test, folders), "test images of", "count", "NME, %")


def pair_test(folders: SimpleNamespace) -> tuple[np.ndarray, float]:
    """LFW's protocol with people who are not in training: accuracy of each fold.

    A fold holds a tenth of the people, and as many pairs of two as there are of one person; its
    threshold is the best one for the others (Huang et al., LFW, 2007, section 3). Also returns
    the cosine above which 1 % of the pairs of two people lie.
    """
    faces, _ = recognition.labelled_faces(folders)
    network = arcface.ArcFaceRecogniser.from_pretrained(folders.runs / "recognition_arcface")
    shape = network.alignment, network.face_size, folders.photographs, folders
    cache = recognition.face_cache(faces, *shape, network.crop_fraction, padding=1.0)
    rows = np.flatnonzero(faces["split"] == "unseen")
    unit = recognition.embed_crops(network.eval(), cache, rows=rows).numpy()
    person = faces["identity"].to_numpy()[rows]
    fold = np.unique(person, return_inverse=True)[1] % 10
    one, two = np.triu_indices(len(rows), 1)
    kept = fold[one] == fold[two]
    one, two = one[kept], two[kept]
    cosine, same = (unit[one] * unit[two]).sum(1), person[one] == person[two]
    rng, chosen = np.random.default_rng(0), []
    for number in range(10):
        pairs = [
            np.flatnonzero((fold[one] == number) & (same == kind)) for kind in (True, False)
        ]
        count = min(map(len, pairs))
        chosen += [rng.choice(some, count, replace=False) for some in pairs]
    chosen = np.concatenate(chosen)
    cosine, same, fold = cosine[chosen], same[chosen], fold[one][chosen]
    limits = np.linspace(-0.2, 1, 601)

    def best(some: np.ndarray) -> float:
        return limits[((cosine[some] > limits[:, None]) == same[some]).mean(1).argmax()]

    accuracy = [
        ((cosine > best(fold != number)) == same)[fold == number].mean()
        for number in np.unique(fold)
    ]
    return np.array(accuracy), float(np.quantile(cosine[~same], 0.99))


def recognition_scores(folders) -> str:
    report = helpers.read_manifest("val_report_arcface_loss", folders).set_index("image_id")
    rows = by_group(report["is_recognized"], folders, share_of)
    known = table_of(rows, "validation images of", "count", "top-1, % (95 % interval)")
    accuracy, threshold = pair_test(folders)
    mean, deviation = 100 * accuracy.mean(), 100 * accuracy.std(ddof=1)
    return (
        f"{known}\n\nPairs of people who are not in training, as in LFW: {mean:.1f} % are told "
        f"right, standard deviation {deviation:.1f} over {len(accuracy)} folds. A cosine above "
        f"{threshold:.2f} comes from two people in 1 % of their pairs."
    )


def part_scores(folders) -> str:
    scores = helpers.read_manifest("segmentation_scores", folders)
    test = scores.query("model == 'best recipe' and split == 'test'")
    rows = [(row.part, f"{row.f1:.3f}") for row in test.itertuples()]
    return table_of(rows, "part, or mean", "F1 on test photographs")


def mask_scores(folders) -> str:
    scores = helpers.read_manifest("occlusion_scores", folders)
    test = scores[scores["model"] == "Unet, all, longer"]
    rows = [
        (r.test_set, r.count, f"{r.dice:.3f}", f"{r.boundary_f:.3f}") for r in test.itertuples()
    ]
    return table_of(rows, "test set", "count", "Dice", "boundary F")


def portrait_scores(folders) -> str:
    scores = helpers.read_manifest("portrait_scores", folders).query("direction == 'A->B'")
    rows = [(r.images, r.count, f"{r.kid:.3f} ± {r.kid_std:.3f}") for r in scores.itertuples()]
    return table_of(rows, "images", "count", f"KID to portraits, {scores['features'].iloc[0]}")


SCORES = dict(
    landmarks=landmark_scores,
    recognition=recognition_scores,
    parts=part_scores,
    face_mask=mask_scores,
    portrait=portrait_scores,
)


def write_folder(name: str, card: dict, folders: SimpleNamespace, target: Path) -> None:
    """One model: its configuration, its weights in float16, and its card."""
    source = folders.runs / card["folder"]

    def write(temporary: Path) -> None:
        temporary.mkdir()
        for path in source.glob("*.json"):
            shutil.copy(path, temporary)
        weights = load_file(source / "model.safetensors")
        halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        save_file(halves, temporary / "model.safetensors", {"format": "pt"})
        size = (temporary / "model.safetensors").stat().st_size / 1e6
        text = CARDS["template"].format(
            **card, scores=SCORES[name](folders), megabytes=f"{size:.1f}", **CARDS["same"]
        )
        (temporary / "README.md").write_text(text, encoding="utf-8")

    helpers.write_atomically(target / name, write)
    print(helpers.display_path(target / name))


def run(stages: list[str], settings: dict) -> None:
    """Runs notebooks of CelebA with the profile of the weights."""
    pairs = [f"{name}={value}" for name, value in settings.items() if value]
    command = [sys.executable, HERE / "run.py", *stages, "--dataset", "celeba"]
    subprocess.run([*command, "--profile", "weights", "--set", *pairs], check=True)


def some_faces(folders: SimpleNamespace, count: int = 500) -> Path:
    """A folder with links to photographs of the people in training, for the portraits."""
    names = helpers.read_manifest("train", folders)["image_id"]
    folder = folders.runs / "faces_for_portraits"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names.sample(min(count, len(names)), random_state=0):
        (folder / name).symlink_to(folders.photographs.resolve() / name)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with celeba/ and CelebAMask-HQ/")
    parser.add_argument("--output", default="", help="folder that gets csv/ and runs/")
    parser.add_argument("--encoder-weights", default="imagenet", help="of 2.2, 3.2 and 3.4")
    parser.add_argument("--features", default="inception", help="for KID, as in 4.2")
    parser.add_argument("--occluders", default="", help="file of outlines by hand, for 3.4")
    parser.add_argument("--target", default=str(helpers.WEIGHTS), help="gets the models")
    parser.add_argument("--only", nargs="*", default=list(SCORES), help="models to make")
    options = parser.parse_args()
    cards = {name: CARDS["models"][name] for name in options.only}
    if not options.occluders:
        cards = {name: card | card.get("without_outlines", {}) for name, card in cards.items()}
    same = {"data": options.data, "output": options.output}
    stages = [card["stage"] for card in cards.values()]
    for stage in stages:
        if stage != "4.2":
            first = {ENCODER[stage]: options.encoder_weights} if stage in ENCODER else {}
            if stage == "3.4" and options.occluders:
                first["occluders"] = Path(options.occluders).resolve()
                first["occluder_sources"] = "all"
            run([stage], same | first)
    folders = helpers.open_dataset("celeba", options.data, options.output)
    if "4.2" in stages:
        busts = helpers.open_dataset("sample", needs="selfie2portrait").data / "selfie2portrait"
        pair = {"folder_a": some_faces(folders), "folder_b": busts / "trainB"}
        run(["4.2"], {**same, **pair, "features": options.features})
    for name, card in cards.items():
        write_folder(name, card, folders, Path(options.target))


if __name__ == "__main__":
    main()
