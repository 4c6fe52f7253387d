"""3.2 to 3.4: labels follow the mirror, metrics and losses agree with others', interrupted training goes on, any photograph is masked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_series, definitions, known, run_stages
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index, multiclass_f1_score
from torchvision import tv_tensors
from torchvision.ops import sigmoid_focal_loss

import helpers
from helpers import PARTS

segmentation = helpers.shared_definitions("3.2_segmentation_architectures")
IGNORED = segmentation.IGNORED
LABEL = {part: number for number, part in enumerate(PARTS, start=1)}


def table(series, name):
    return pd.read_csv(series / f"csv/sample/{name}.csv", dtype={"image_id": str, "stage": str})


# ---------------------------------------------------------------- pictures and labels


def test_a_mirrored_left_eye_is_a_right_eye():
    label_map = torch.zeros(6, 8, dtype=torch.uint8)
    label_map[1, 6], label_map[1, 1], label_map[4, 2], label_map[5, 0] = LABEL["l_eye"], LABEL["r_eye"], LABEL["l_lip"], IGNORED
    image = torch.arange(3 * 48, dtype=torch.uint8).view(3, 6, 8)
    mirrored, labels = segmentation.MirrorParts(p=1.0)(tv_tensors.Image(image), tv_tensors.Mask(label_map))
    assert torch.equal(mirrored, image.flip(2))
    assert labels[1, 1] == LABEL["r_eye"], "what was the person's left eye lies on the other side now, and is a right one"
    assert labels[1, 6] == LABEL["l_eye"]
    assert labels[4, 5] == LABEL["l_lip"], "a lower lip has no left and right"
    assert labels[5, 7] == IGNORED
    again = segmentation.MirrorParts(p=1.0)(mirrored, labels)
    assert torch.equal(again[1], label_map)


def test_augmentation_moves_photograph_and_labels_together():
    """A photograph whose colour says its label: after any augmentation of place both still agree."""
    label_map = np.zeros((96, 96), np.uint8)
    label_map[20:70, 30:60] = LABEL["skin"]
    label_map[60:90, 10:40] = LABEL["hair"]
    grey = torch.zeros(256, dtype=torch.long)
    grey[LABEL["skin"]], grey[LABEL["hair"]] = 120, 240
    image = np.stack([grey.numpy()[label_map]] * 3, -1).astype(np.uint8)
    place = segmentation.v2.Compose(
        [step for step in segmentation.part_augmentation(64, 96).transforms if "Color" not in type(step).__name__][:3]
    )
    torch.manual_seed(0)
    for _ in range(8):
        moved, labels = place(tv_tensors.Image(torch.tensor(image).permute(2, 0, 1)), tv_tensors.Mask(torch.tensor(label_map)))
        known_pixels = labels != IGNORED
        expected = grey[labels.long()][known_pixels]
        assert ((moved[0].long()[known_pixels] - expected).abs() < 50).float().mean() > 0.93


def test_store_is_the_photograph_and_its_labels(series):
    folders = helpers.open_dataset("sample", output=series, needs="CelebAMask-HQ")
    image_id = table(series, "segmentation_split")["image_id"].iloc[0]
    photographs = folders.data / "CelebAMask-HQ" / "CelebA-HQ-img"
    images, maps = segmentation.part_store(folders, [image_id], 128, photographs)
    expected = np.asarray(Image.open(photographs / f"{image_id}.jpg").resize((128, 128), Image.BOX), float)
    assert np.abs(images[0] - expected).mean() < 3
    assert (maps[0] == segmentation.read_label_map(folders, image_id)[2::4, 2::4]).mean() > 0.98
    (folders.runs / "label_maps" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png is missing or no label map.*make 3\.1"):
        segmentation.read_label_map(folders, "broken")


def test_a_label_out_of_range_is_named(tmp_path):
    folders = helpers.open_dataset("mine", output=tmp_path, needs=None)
    (folders.runs / "label_maps").mkdir()
    Image.fromarray(np.full((8, 8), len(PARTS) + 1, np.uint8)).save(folders.runs / "label_maps/00001.png")
    with pytest.raises(ValueError, match=r"00001\.png is missing or no label map.*make 3\.1"):
        segmentation.read_label_map(folders, "00001")


def test_weights_of_another_encoder_are_not_taken(tmp_path, capsys):
    donor = segmentation.build_segmenter("FPN", "mobilenet_v2", 19)
    path = tmp_path / "encoder.pth"
    torch.save(donor.encoder.state_dict(), path)
    taken = segmentation.build_segmenter("Unet", "mobilenet_v2", 2, path)
    first = next(iter(donor.encoder.parameters()))
    assert torch.equal(next(iter(taken.encoder.parameters())), first)
    segmentation.build_segmenter("FPN", "resnet18", 19, path)
    assert "does not fit resnet18" in capsys.readouterr().out


# ---------------------------------------------------------------- metrics


def test_f1_of_one_confusion_matrix_is_that_of_others():
    torch.manual_seed(0)
    truth = torch.randint(0, 19, (5000,))
    predicted = torch.where(torch.rand(5000) < 0.6, truth, torch.randint(0, 19, (5000,)))
    confusion = torch.zeros(19, 19, dtype=torch.long).index_put_((truth, predicted), torch.ones(5000, dtype=torch.long), accumulate=True)
    ours = segmentation.f1_scores(confusion)
    torch.testing.assert_close(ours.float(), multiclass_f1_score(predicted, truth, 19, average="none"))
    np.testing.assert_allclose(ours, f1_score(truth, predicted, average=None))
    summary = definitions("3.2", "f1_scores", "summarise")["summarise"](confusion[None])
    parts = list(range(1, 19))
    assert summary["macro"] == pytest.approx(f1_score(truth, predicted, labels=parts, average="macro"))
    assert summary["micro"] == pytest.approx(f1_score(truth, predicted, labels=parts, average="micro"))


def test_macro_counts_a_lost_part_and_per_image_hides_it():
    summarise = definitions("3.2", "f1_scores", "summarise")["summarise"]
    confusions = torch.zeros(2, 19, 19, dtype=torch.long)
    confusions[:, range(19), range(19)] = 100
    confusions[:, LABEL["neck_l"]] = 0
    confusions[0, LABEL["neck_l"], LABEL["neck"]] = 5
    summary = summarise(confusions)
    assert summary["neck_l"] == 0
    assert summary["macro"] < 17.1 / 18
    assert summary["per image"] > 0.96 > summary["macro"]


def test_mask_scores_agree_with_torchmetrics_and_brute_force():
    space = definitions("3.4", "outline", "boundary_f", "score_mask")
    rng = np.random.default_rng(0)
    y, x = np.indices((60, 80))
    for _ in range(5):
        masks = [np.hypot(y - rng.uniform(20, 40), x - rng.uniform(30, 50)) < rng.uniform(10, 25) for _ in range(2)]
        dice, iou, _ = space["score_mask"](*masks)
        predicted, truth = (torch.tensor(mask).flatten().int() for mask in masks)
        assert dice == pytest.approx(binary_f1_score(predicted, truth).item(), abs=1e-6)
        assert iou == pytest.approx(binary_jaccard_index(predicted, truth).item(), abs=1e-6)
        edges = [np.argwhere(space["outline"](mask)) for mask in masks]
        distance = cdist(*edges)
        precision, recall = (distance.min(1) <= 2).mean(), (distance.min(0) <= 2).mean()
        expected = 2 * precision * recall / max(precision + recall, 1e-9)
        assert space["boundary_f"](*masks, tolerance=2) == pytest.approx(expected, abs=0.02)
    nothing = np.zeros((60, 80), bool)
    assert space["score_mask"](nothing, nothing) == (1, 1, 1)
    assert space["score_mask"](nothing, masks[0])[0] == 0


def test_focal_loss_is_that_of_torchvision_for_two_classes():
    """For two classes softmax and sigmoid are one: logits (0, z) against a sigmoid of z."""
    focal_loss = definitions("3.3", "focal_loss", gamma=2.0)["focal_loss"]
    torch.manual_seed(0)
    z, labels = torch.randn(2, 6, 6), torch.randint(0, 2, (2, 6, 6))
    logits = torch.stack([torch.zeros_like(z), z], 1)
    expected = sigmoid_focal_loss(z, labels.float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, labels, 2.0), expected)
    labels[0] = IGNORED
    expected = sigmoid_focal_loss(z[1:], labels[1:].float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, labels, 2.0), expected)


def test_rare_photographs_come_up_more_often():
    repeat_factors = definitions("3.2", "repeat_factors")["repeat_factors"]
    present = np.ones((100, 2), bool)
    present[4:, 1] = False
    factors = repeat_factors(present, 0.25)
    assert factors[:4] == pytest.approx(np.sqrt(0.25 / 0.04))
    assert (factors[4:] == 1).all()


# ---------------------------------------------------------------- things before the face


def test_lent_glasses_arrive_with_their_label_and_nothing_else_changes():
    images = np.stack([np.full((40, 40, 3), grey, np.uint8) for grey in (60, 200)])
    label_maps = np.full((2, 40, 40), LABEL["skin"], np.uint8)
    label_maps[1, 10:14, 5:15] = LABEL["eye_g"]
    lending = {LABEL["eye_g"]: np.array([1]), LABEL["hat"]: np.array([], int)}
    lent = segmentation.PastedParts(images, label_maps, torch.device("cpu"), None, lending, share=1.0)
    places = set()
    for seed in range(8):
        torch.manual_seed(seed)
        image, label_map = lent.pair(0)
        worn = label_map == LABEL["eye_g"]
        places.add(int(worn.any(0).argmax()))
        assert worn.sum() == 40 and set(np.unique(label_map)) == {LABEL["skin"], LABEL["eye_g"]}
        assert image[worn].mean() > 180, "the pixels come along"
        assert (image[20:] == 60).all() and image.dtype == label_map.dtype == np.uint8
    assert places == {5, 25}, "as they are, and mirrored"
    nothing = segmentation.PastedParts(images, label_maps, torch.device("cpu"), None, {LABEL["hat"]: np.array([], int)}, share=1.0)
    assert (nothing.pair(0)[0] == images[0]).all(), "nobody has a hat to lend"


@pytest.mark.parametrize("kind", ["hand", "microphone", "thing", "cloth mask", "rectangles"])
def test_what_is_held_before_the_face_is_cut_out_and_nothing_else(kind):
    space = definitions("3.4", "ellipse", "rod", "hand", "microphone", "thing", "rectangles", "cloth_mask", "skin_of", "surface_of", "hold")
    picture = np.random.default_rng(2).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    face = (np.hypot(*(np.indices((96, 96)) - 48)) < 30).astype(np.uint8)
    other = np.random.default_rng(1).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    hidden = 0
    for seed in range(12):
        drawn, left = space["hold"](kind, picture, face, other, face, np.random.default_rng(seed))
        assert drawn.shape == picture.shape
        assert drawn.dtype == np.uint8
        assert (left <= face).all(), "no pixel becomes face"
        hidden += (left < face).sum()
        same = (drawn == picture).all(-1)
        assert (left[same] != face[same]).sum() < 5, "where the photograph is as it was, so is the truth (but for chance)"
    assert hidden > 12 * 20


# ---------------------------------------------------------------- training


def small_run(folders, accelerator, epochs=4, break_at=None):
    """A tiny network that finds the bright half of a picture; `judge` may break in the middle."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3)).astype(np.uint8)
    batches = segmentation.PartBatches(images, (images[..., 0] > 127).astype(np.uint8), accelerator.device)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    judged = []

    def judge(model):
        if len(judged) == break_at:
            raise KeyboardInterrupt
        judged.append(segmentation.f1_scores(segmentation.part_confusions(model, np.arange(4), batches, accelerator).sum(0)).mean().item())
        return judged[-1]

    settings = dict(epochs=epochs, batch_size=4, learning_rate=1e-2, seed=0)
    loss = torch.nn.functional.cross_entropy
    return segmentation.fit_segmenter(
        "tiny", network, loss, lambda: np.arange(12), batches, judge, accelerator, folders, settings, state_every=0.0
    )


def test_interrupted_segmentation_ends_with_the_same_numbers(tmp_path):
    (tmp_path / "data/sample/CelebAMask-HQ").mkdir(parents=True)
    whole, broken = (helpers.open_dataset("sample", tmp_path / "data/sample", tmp_path / name, "CelebAMask-HQ") for name in ("a", "b"))
    accelerator = helpers.set_up("test", whole, device="cpu", precision="no", tracker="")
    network, history = small_run(whole, accelerator)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    with pytest.raises(KeyboardInterrupt):
        small_run(broken, accelerator, break_at=2)
    resumed, other = small_run(broken, accelerator)
    pd.testing.assert_frame_equal(other.drop(columns="seconds"), history.drop(columns="seconds"), rtol=1e-5)
    for one, two in zip(network.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert not (broken.runs / "checkpoints/tiny").exists(), "a finished run keeps its weights only"
    _, loaded = small_run(broken, accelerator, break_at=0)
    assert len(loaded) == 4, "a finished run is not trained again"


def test_two_processes_learn_as_one_does(tmp_path):
    """The same global batch, halved: the same losses, the same scores."""
    histories = []
    for count in (1, 2):
        output = tmp_path / str(count)
        script = [str(Path(__file__).with_name("two_processes.py")), str(output)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *script]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        histories.append(pd.DataFrame(json.loads((output / "history.json").read_text())))
    one, two = histories
    assert set(one["processes"]) == {1}
    assert set(two["processes"]) == {2}
    np.testing.assert_allclose(one[["loss", "val_score"]], two[["loss", "val_score"]], rtol=1e-4)
    assert one["loss"].iloc[-1] < one["loss"].iloc[0]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    (tmp_path / "data/sample/CelebAMask-HQ").mkdir(parents=True)
    folders = helpers.open_dataset("sample", tmp_path / "data/sample", tmp_path, "CelebAMask-HQ")
    accelerator = helpers.set_up("test", folders, device="cpu", precision="no", tracker="")
    checkpoint = helpers.Checkpoint(accelerator, folders.runs / "checkpoints/nan", {}, torch.nn.Linear(1, 1))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        checkpoint.save([{"epoch": 1, "loss": float("nan")}])


# ---------------------------------------------------------------- the notebooks


def test_tables_of_the_architectures_are_whole(series):
    scores = table(series, "segmentation_scores")
    models = table(series, "segmentation_models")
    assert set(scores["model"]) == set(models["model"]) >= {"plain recipe", "best recipe"}
    wide = scores.pivot(index=["model", "split"], columns="part", values="f1")
    assert set(wide.columns) == {*PARTS, "macro", "micro", "per image"}
    np.testing.assert_allclose(wide["macro"], wide[PARTS].fillna(0).mean(axis=1), atol=1e-4)
    assert (models["parameters"] > 1e5).all()


def test_given_part_weights_are_judged_and_not_trained(series, tmp_path):
    output = tmp_path / "weights"
    copy_series(series, output)
    before = table(output, "segmentation_scores")
    weights = output / "runs/sample/model_params_face_parts.pt"
    stamp = weights.stat().st_mtime_ns
    settings = {name: value for name, value in known(("3.2",)).items() if name != "epochs"}
    run_stages(output, "3.2", weights=weights, **settings)
    assert weights.stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(table(output, "segmentation_scores"), before)


def test_deeplab_scores_hold_every_loss(series):
    scores = table(series, "deeplabv3_scores")
    assert set(scores["loss"]) >= {"bce", "ce", "focal", "balanced focal"}
    both = scores.dropna()
    harmonic = 2 * both["precision"] * both["recall"] / (both["precision"] + both["recall"]).clip(lower=1e-9)
    np.testing.assert_allclose(both["f1"], harmonic, atol=2e-3)
    assert (series / "runs/sample/model.pth").exists()


def test_exported_programs_need_no_class(series):
    for name, side, classes in (("face_parts", 128, 19), ("face_mask", 64, 2)):
        program = torch.export.load(series / f"runs/sample/{name}.pt2").module()
        probability = program(torch.rand(3, 3, side, side))
        assert probability.shape == (3, classes, side, side)
        torch.testing.assert_close(probability.sum(1), torch.ones(3, side, side))


def test_any_photograph_gets_a_mask_of_its_size(series, tmp_path):
    """Grey, CMYK, with alpha, turned by EXIF, tiny, 16 bits; truncated and empty ones are set aside with the reason."""
    output, own = tmp_path / "out", tmp_path / "own"
    copy_series(series, output)
    own.mkdir()
    source = Image.open(next((series / "data/sample/covered_faces").iterdir()))
    source.convert("L").save(own / "grey.jpg")
    source.convert("CMYK").save(own / "cmyk.jpg")
    source.convert("RGBA").save(own / "alpha.png")
    source.resize((9, 7)).save(own / "tiny.png")
    Image.fromarray(np.asarray(source.convert("L"), np.uint16) * 257).save(own / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    source.save(own / "turned.jpg", exif=turned)
    source.save(own / "cut.jpg")
    (own / "cut.jpg").write_bytes((own / "cut.jpg").read_bytes()[:900])
    (own / "empty.png").write_bytes(b"")
    weights = output / "runs/sample/model_params_face_mask.pt"
    settings = {name: value for name, value in known(("3.4",)).items() if not name.endswith("epochs")}
    run_stages(output, "3.4", weights=weights, own_photographs=own, **settings)
    masks = {Path(path.stem).stem: Image.open(path).size for path in (output / "runs/sample/face_masks").glob("*.png")}
    for name in ("grey", "cmyk", "alpha", "sixteen"):
        assert masks[name] == source.size
    assert masks["turned"] == source.size[::-1]
    assert masks["tiny"] == (9, 7)
    rejected = table(output, "rejected").query("stage == '3.4'").set_index("image_id")["reason"]
    assert set(rejected.index) == {"cut.jpg", "empty.png"}
    assert "cannot be decoded" in rejected["cut.jpg"]


def test_the_clip_becomes_a_gif(series):
    gif = Image.open(series / "runs/sample/face_masks.gif")
    assert gif.n_frames == 20


def test_a_split_without_photographs_to_judge_is_refused(series, tmp_path):
    output = tmp_path / "split"
    copy_series(series, output)
    path = output / "csv/sample/segmentation_split.csv"
    pd.read_csv(path).replace({"split": {"test": "train"}}).to_csv(path, index=False)
    done = run_stages(output, "3.3", check=False, gamma=1.0, **known(("3.3",)))
    assert done.returncode != 0
    assert "no photographs left for test" in done.stdout + done.stderr
