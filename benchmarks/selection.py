"""Seconds and peak memory of 1.1 without figures, a plain recipe, and reading the files alone.

python benchmarks/selection.py FOLDER   (FOLDER holds Anno/, as CelebA's own folder does)
"""

from __future__ import annotations

import contextlib
import io
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measure import interleaved, line

import helpers
from faces import selection


def read_only(celeba: Path) -> dict[str, pd.DataFrame]:
    """The four files as tables, without any check."""
    names = ("list_bbox_celeba", "list_landmarks_celeba", "list_attr_celeba")
    skipped = {"identity_CelebA": 0, **dict.fromkeys(names, 2)}
    return {
        name: pd.read_csv(
            celeba / "Anno" / f"{name}.txt", sep=r"\s+", header=None, skiprows=skip
        )
        for name, skip in skipped.items()
    }


def select(celeba: Path, output: Path, identities: int = 500, each: int = 20) -> None:
    """What 1.1 does with its default parameters, without its figures and tables."""
    data = output / "data"
    data.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (data / "celeba").symlink_to(celeba.resolve())
    folders = helpers.open_dataset("benchmark", data, output)
    rng = np.random.default_rng(0)
    faces, attributes = selection.read_celeba(folders.celeba)
    identity, poses = faces["identity"], selection.pose(faces)
    reasons = selection.box_faults(faces)
    usable = reasons == ""
    rejected = dict(zip(faces.index[~usable], reasons[~usable], strict=True))
    helpers.reject("1.1", rejected, folders)

    duplicate = selection.near_duplicates(faces, attributes)
    plain = usable & np.logical_and.reduce([*selection.original_criteria(poses).values()])
    ours = selection.stricter_criteria(faces, attributes, poses, duplicate)
    strict = plain & np.logical_and.reduce([*ours.values()])
    is_strict = len(selection.identities_with(each, identity, strict)) >= identities
    passed = (strict if is_strict else plain).copy()
    enough = selection.identities_with(each, identity, passed & ~duplicate)
    passed &= ~duplicate | ~identity.isin(enough).to_numpy()

    qualified = selection.identities_with(each, identity, passed)
    _, groups = selection.groups_of(identity, attributes)
    unseen = selection.choose_unseen("0.125", identity, passed, qualified, identities, rng)
    qualified = np.setdiff1d(qualified, unseen)
    count = min(identities, len(qualified))
    people = selection.draw_keeping_shares(groups, qualified, count, rng)
    table = selection.table_of_images(identity, people, passed)
    chosen = selection.spread_out(table, attributes.to_numpy()[table], each)

    split = pd.Series("", index=faces.index)
    train_rows, val_rows = selection.split_train_val(chosen, 4, 0)
    split.iloc[train_rows], split.iloc[val_rows] = "train", "val"
    is_unseen, is_selected = (identity.isin(p).to_numpy() for p in (unseen, people))
    split[passed & is_unseen] = "unseen"
    free = usable & ~duplicate & ~is_unseen & (split == "").to_numpy()
    spare = rng.permutation(np.flatnonzero(free & is_selected))[:10_000]
    split.iloc[np.sort(spare)] = "spare"
    extra = selection.whole_people(identity, free & ~is_selected, 10_000, rng)
    split[free & ~is_selected & identity.isin(extra).to_numpy()] = "extra"
    splits = {"split": split, "landmark_split": selection.landmark_splits(split, identity)}

    selected = faces.assign(**splits)[split != ""].rename_axis("image_id").reset_index()
    label = np.searchsorted(people, selected["identity"])
    labelled = selected.assign(label=label)[["image_id", "identity", "label", "split"]]
    helpers.write_manifest(selected, "selected", folders)
    chosen_attributes = attributes.loc[selected["image_id"]].astype(int)
    helpers.write_manifest(
        chosen_attributes.reset_index(names="image_id"), "attributes", folders
    )
    for part in ("train", "val"):
        rows = labelled[labelled["split"] == part].drop(columns="split")
        helpers.write_manifest(rows, part, folders)


def plain(celeba: Path, folder: Path, identities: int = 500, each: int = 20) -> None:
    """What a student writes: merged tables, the original criteria, one person at a time.

    It checks nothing and leaves near-duplicates in.
    """
    read = read_only(celeba)
    faces = read["identity_CelebA"].rename(columns={1: "identity"})
    for name in ("list_landmarks", "list_bbox", "list_attr"):
        table = read[f"{name}_celeba"].add_prefix(f"{name}_").rename(columns={f"{name}_0": 0})
        faces = faces.merge(table, on=0)
    left, right, nose = (faces[f"list_landmarks_{column}"] for column in (1, 3, 5))
    apart, to_nose = right - left, nose - left
    faces = faces[(apart > 30) & (to_nose >= 0.3 * apart) & (to_nose <= 0.7 * apart)]
    attributes = [column for column in faces if str(column).startswith("list_attr_")]
    train, val = [], []
    for _, person in faces.groupby("identity"):
        if len(person) < each or len(train) == identities:
            continue
        bits, taken = person[attributes].to_numpy(), [0]
        while len(taken) < each:
            far = [(bits[taken] != row).sum(1).min() for row in bits]
            far = [-1 if index in taken else value for index, value in enumerate(far)]
            taken.append(int(np.argmax(far)))
        train.append(person.iloc[taken[:-4]])
        val.append(person.iloc[taken[-4:]])
    for name, chosen in (("train", train), ("val", val)):
        pd.concat(chosen).to_csv(folder / f"{name}.csv", index=False)


def row(celeba: Path, rounds: int = 3) -> dict:
    """A line of the table; here the limit is reading the same files and nothing else."""
    with tempfile.TemporaryDirectory() as folder:

        def ours():
            with contextlib.redirect_stdout(io.StringIO()):
                select(celeba, Path(folder))

        works = {
            "ours": ours,
            "plain": lambda: plain(celeba, Path(folder)),
            "limit": lambda: read_only(celeba),
        }
        seconds = interleaved(works, rounds)
    count = sum(1 for _ in (celeba / "Anno/identity_CelebA.txt").open())
    return line("1.1 selection", f"{count:,} rows", seconds)


if __name__ == "__main__":
    row(Path(sys.argv[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process {peak:.0f} MB")
