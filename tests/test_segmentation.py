"""3.2: labels follow the mirror, metrics agree with others, interrupted training goes on."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import copy_series, run_stages, small
from PIL import Image
from sklearn.metrics import f1_score
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_f1_score
from torchvision import tv_tensors
from torchvision.transforms import v2

import helpers
from faces import parts, segmentation
from faces.parts import IGNORED, NUMBER
from helpers import PARTS


def table(series, name):
    path = series / f"csv/sample/{name}.csv"
    return pd.read_csv(path, dtype={"image_id": str, "stage": str})


def pair(image, label_map):
    """Arrays (H, W, 3) and (H, W) as the transforms take them."""
    image = torch.as_tensor(image).permute(2, 0, 1)
    return tv_tensors.Image(image), tv_tensors.Mask(torch.as_tensor(label_map))


# ------------------------------------------------------------------------- images and labels


def test_a_mirrored_left_eye_is_a_right_eye():
    label_map = torch.zeros(6, 8, dtype=torch.uint8)
    label_map[1, 6], label_map[1, 1] = NUMBER["l_eye"], NUMBER["r_eye"]
    label_map[4, 2], label_map[5, 0] = NUMBER["l_lip"], IGNORED
    image = torch.arange(3 * 48, dtype=torch.uint8).view(3, 6, 8)
    mirror = segmentation.MirrorParts(p=1.0)
    mirrored, labels = mirror(tv_tensors.Image(image), tv_tensors.Mask(label_map))
    assert torch.equal(mirrored, image.flip(2))
    assert labels[1, 1] == NUMBER["r_eye"], "it lies on the other side, so it is a right eye"
    assert labels[1, 6] == NUMBER["l_eye"]
    assert labels[4, 5] == NUMBER["l_lip"], "a lower lip has no left and right"
    assert labels[5, 7] == IGNORED
    assert torch.equal(mirror(mirrored, labels)[1], label_map)


def test_augmentation_moves_image_and_labels_together():
    """An image whose grey level tells the label: after rotation and cropping both agree."""
    label_map = np.zeros((96, 96), np.uint8)
    label_map[20:70, 30:60], label_map[60:90, 10:40] = NUMBER["skin"], NUMBER["hair"]
    grey = torch.zeros(256, dtype=torch.long)
    grey[NUMBER["skin"]], grey[NUMBER["hair"]] = 120, 240
    image = np.stack([grey.numpy()[label_map]] * 3, -1).astype(np.uint8)
    geometry = v2.Compose(segmentation.part_augmentation(64, 96).transforms[:3])
    torch.manual_seed(0)
    for _ in range(8):
        moved, labels = geometry(*pair(image, label_map))
        assert labels.shape == (64, 64)
        inside = labels != IGNORED
        difference = (moved[0].long() - grey[labels.long()]).abs()[inside]
        assert (difference < 50).float().mean() > 0.93


def test_each_sample_of_a_batch_is_augmented_by_a_draw_of_its_own():
    images = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8).repeat(4, 1, 1, 1)
    label_maps = torch.randint(0, 19, (1, 32, 32), dtype=torch.uint8).repeat(4, 1, 1)
    plain, labels = segmentation.augment(images, label_maps)
    assert labels.dtype == torch.int64 and labels.shape == (4, 32, 32)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    pictures = segmentation.as_pictures(plain)
    np.testing.assert_allclose(255 * pictures[0], images[0].permute(1, 2, 0), atol=0.01)
    half = segmentation.normalise(images / 255)
    torch.testing.assert_close(half, plain, msg="images in 0..1 are normalised alike")
    torch.manual_seed(0)
    transform = segmentation.part_augmentation(24, 32)
    some, labels = segmentation.augment(images, label_maps, transform)
    assert some.shape == (4, 3, 24, 24)
    assert len({tuple(one.flatten().tolist()) for one in labels}) == 4


def test_cache_is_the_photograph_and_its_labels(series):
    folders = helpers.open_dataset("sample", output=series, needs="CelebAMask-HQ")
    image_id = table(series, "segmentation_split")["image_id"].iloc[0]
    photographs = folders.data / "CelebAMask-HQ" / "CelebA-HQ-img"
    images, maps = segmentation.part_cache(folders, [image_id], 128, photographs)
    photograph = Image.open(photographs / f"{image_id}.jpg")
    expected = np.asarray(photograph.resize((128, 128), Image.BOX), float)
    assert np.abs(images[0] - expected).mean() < 3
    label_map = parts.read_label_map(folders, image_id)
    assert (maps[0] == label_map[2::4, 2::4]).mean() > 0.98
    image, labels = segmentation.PartDataset(images, maps)[0]
    assert image.shape == (3, 128, 128) and image.dtype == labels.dtype == torch.uint8


def test_rare_images_come_up_more_often():
    present = np.ones((100, 2), bool)
    present[4:, 1] = False
    factors = segmentation.repeat_factors(present, 0.25)
    assert factors[:4] == pytest.approx(np.sqrt(0.25 / 0.04))
    assert (factors[4:] == 1).all()


def test_pasted_glasses_come_with_their_label_and_nothing_else_changes():
    images = np.stack([np.full((40, 40, 3), grey, np.uint8) for grey in (60, 200)])
    label_maps = np.full((2, 40, 40), NUMBER["skin"], np.uint8)
    label_maps[1, 10:14, 5:15] = NUMBER["eye_g"]
    dataset = segmentation.PartDataset(images, label_maps)
    sources = {NUMBER["eye_g"]: np.array([1]), NUMBER["hat"]: np.array([], int)}
    pasted, places = segmentation.CopyPaste(dataset, sources, share=1.0), set()
    for seed in range(8):
        torch.manual_seed(seed)
        image, labels = pasted[0]
        glasses = labels == NUMBER["eye_g"]
        places.add(int(glasses.any(0).int().argmax()))
        assert glasses.sum() == 40 and set(labels.unique().tolist()) == {1, 3}
        assert image[:, glasses].float().mean() > 180, "the pixels come along"
        assert (image[:, 20:] == 60).all() and image.dtype == labels.dtype == torch.uint8
    assert places == {5, 25}, "as they are, and mirrored"
    nothing = segmentation.CopyPaste(dataset, {NUMBER["hat"]: np.array([], int)}, share=1.0)
    assert torch.equal(nothing[0][0], dataset[0][0]), "no image has a hat"


# ---------------------------------------------------------------------------------- networks


def test_encoder_weights_of_another_encoder_are_not_used(tmp_path, capsys):
    torch.manual_seed(0)
    other = segmentation.build("FPN", "mobilenet_v2", 19)
    path = tmp_path / "encoder.pth"
    torch.save(other.encoder.state_dict(), path)
    network = segmentation.build("Unet", "mobilenet_v2", 2, str(path))
    for one, two in zip(network.encoder.parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(one, two)
    segmentation.build("FPN", "resnet18", 19, str(path))
    assert "encoder.pth does not fit: resnet18 starts from scratch" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
def test_unreadable_encoder_weights_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        segmentation.build("FPN", "resnet18", 19, str(tmp_path / name))
    (tmp_path / name).write_bytes(b"these are no weights")
    with pytest.raises(ValueError, match=name):
        segmentation.build("FPN", "resnet18", 19, str(tmp_path / name))


def test_a_saved_network_comes_back_with_its_size(tmp_path):
    torch.manual_seed(0)
    network = segmentation.build("FPN", "mobilenet_v2", 19).eval()
    folder = helpers.save_model(network, tmp_path / "model", size=96)
    loaded, size = segmentation.load(folder)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert size == 96 and torch.equal(loaded(images), network(images))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config.*3\.2"):
        segmentation.load(folder)
    with pytest.raises(FileNotFoundError, match=r"not the folder of a model.*make 3\.4"):
        segmentation.load(tmp_path / "nothing", "3.4")


# ----------------------------------------------------------------------------------- metrics


def test_f1_of_a_confusion_matrix_agrees_with_other_libraries():
    torch.manual_seed(0)
    truth = torch.randint(0, 19, (5000,))
    predicted = torch.where(torch.rand(5000) < 0.6, truth, torch.randint(0, 19, (5000,)))
    confusion = torch.bincount(19 * truth + predicted, minlength=361).view(19, 19)
    ours = segmentation.f1_scores(confusion)
    theirs = multiclass_f1_score(predicted, truth, 19, average="none")
    torch.testing.assert_close(ours.float(), theirs)
    np.testing.assert_allclose(ours, f1_score(truth, predicted, average=None))
    summary, labels = segmentation.summarise(confusion[None]), list(range(1, 19))
    for mean in ("macro", "micro"):
        expected = f1_score(truth, predicted, labels=labels, average=mean)
        assert summary[mean] == pytest.approx(expected)


def test_macro_leaves_out_what_is_neither_there_nor_predicted():
    confusions = torch.zeros(1, 19, 19, dtype=torch.long)
    confusions[0, 1, 1], confusions[0, 2, 2], confusions[0, 2, 3] = 100, 50, 50
    summary = segmentation.summarise(confusions)
    assert summary["macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert np.isnan(summary["hat"])


def test_macro_counts_a_lost_part_and_per_image_hides_it():
    confusions = torch.zeros(2, 19, 19, dtype=torch.long)
    confusions[:, range(19), range(19)] = 100
    confusions[:, NUMBER["neck_l"]] = 0
    confusions[0, NUMBER["neck_l"], NUMBER["neck"]] = 5
    summary = segmentation.summarise(confusions)
    assert summary["neck_l"] == 0
    assert summary["macro"] < 17.1 / 18
    assert summary["per image"] > 0.96 > summary["macro"]


class Bright(torch.nn.Module):
    """Label 1 where an image is bright, 0 elsewhere, without doubt."""

    def forward(self, images):
        bright = images.mean(1, keepdim=True)
        return torch.cat([-50 * bright, 50 * bright], 1)


def test_confusions_hold_one_matrix_per_image_at_the_size_of_the_ground_truth(tmp_path):
    folders = helpers.open_dataset("mine", output=tmp_path, needs="")
    accelerator = helpers.set_up("test", folders, device="cpu", precision="no")
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[:, :, 16:] = 255
    label_maps = (images[..., 0] > 127).astype(np.uint8)
    label_maps[2, 0] = IGNORED
    dataset = segmentation.PartDataset(images, label_maps)
    found = segmentation.confusions(Bright(), dataset, np.array([2, 0]), accelerator)
    assert found.tolist() == [[[496, 0], [0, 496]], [[512, 0], [0, 512]]]

    def larger(row):
        assert row in (2, 0)
        return np.kron(label_maps[0], np.ones((2, 2), np.uint8))

    found = segmentation.confusions(Bright(), dataset, np.array([2, 0]), accelerator, larger)
    assert found.sum((1, 2)).tolist() == [4096, 4096]
    assert found.diagonal(dim1=1, dim2=2).sum() > 0.97 * found.sum()
    picture = segmentation.normalise(torch.from_numpy(images[:1]).permute(0, 3, 1, 2))
    flipped = segmentation.probabilities(Bright(), picture, flip=True, accelerator=accelerator)
    plain = segmentation.probabilities(Bright(), picture, flip=False)
    torch.testing.assert_close(flipped, plain, msg="a prediction without sides is not changed")


# ---------------------------------------------------------------------------------- training


def small_run(folders, accelerator, break_at=None):
    """A tiny network that finds bright pixels; validation number `break_at` is interrupted."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3)).astype(np.uint8)
    dataset = segmentation.PartDataset(images, (images[..., 0] > 127).astype(np.uint8))
    first, second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 2, 1)
    network = torch.nn.Sequential(first, torch.nn.BatchNorm2d(8), torch.nn.ReLU(), second)
    scores = []

    def validate(network):
        if len(scores) == break_at:
            raise KeyboardInterrupt
        found = segmentation.confusions(network, dataset, np.arange(4), accelerator)
        scores.append(segmentation.f1_scores(found.sum(0)).mean().item())
        return scores[-1]

    def loss(logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=IGNORED)

    loader = DataLoader(dataset, batch_size=4, shuffle=True, drop_last=True)
    transform = segmentation.part_augmentation(24, 32)
    settings = dict(epochs=4, learning_rate=1e-2, seed=0)
    run = (loss, loader, transform, validate, accelerator, folders, settings)
    return segmentation.fit("tiny", network, *run)


def test_interrupted_segmentation_ends_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "STATE_EVERY", 0.0)
    whole, broken = (helpers.open_dataset("mine", "", tmp_path / name, "") for name in "ab")
    accelerator = helpers.set_up("test", whole, device="cpu", precision="no")
    network, history = small_run(whole, accelerator)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    with pytest.raises(KeyboardInterrupt):
        small_run(broken, accelerator, break_at=2)
    resumed, other = small_run(broken, accelerator)
    one, two = (table.drop(columns="seconds") for table in (history, other))
    pd.testing.assert_frame_equal(two, one, rtol=1e-5)
    for one, two in zip(network.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert not (broken.runs / "checkpoints/tiny").exists(), "only the weights are kept"
    again, loaded = small_run(broken, accelerator, break_at=0)
    assert len(loaded) == 4, "a finished run is loaded"
    for one, two in zip(
        network.state_dict().values(), again.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_two_processes_learn_as_one_does(tmp_path):
    """The same batches, halved: the same losses and scores; random rows are shared out."""
    facts = []
    for count in (1, 2):
        output = tmp_path / str(count)
        script = [str(Path(__file__).with_name("two_processes.py")), str(output)]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [*launch, f"--nproc_per_node={count}", *script],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        facts.append(json.loads((output / "facts.json").read_text()))
    one, two = facts
    for key in ("loss", "val_score"):
        np.testing.assert_allclose(one[key], two[key], rtol=1e-4)
    assert one["loss"][-1] < one["loss"][0]
    assert [len(rows) for rows in two["rows"]] == [8, 8]
    assert sorted(np.concatenate(two["rows"])) == list(range(16)), (
        "each row once, in one of them"
    )
    assert len(set(two["random"])) == 2, "they augment by random numbers of their own"


def test_a_nan_loss_stops_the_run(tmp_path):
    folders = helpers.open_dataset("mine", output=tmp_path, needs="")
    accelerator = helpers.set_up("test", folders, device="cpu", precision="no")
    state = folders.runs / "checkpoints/nan"
    checkpoint = helpers.Checkpoint(accelerator, state, {}, torch.nn.Linear(1, 1))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        checkpoint.save([{"epoch": 1, "loss": float("nan")}])


# ------------------------------------------------------------------------------ the notebook


def test_tables_of_the_architectures_are_complete(series):
    scores = table(series, "segmentation_scores")
    models = table(series, "segmentation_models")
    assert set(scores["model"]) == set(models["model"]) >= {"plain recipe", "best recipe"}
    wide = scores.pivot(index=["model", "split"], columns="part", values="f1")
    assert set(wide.columns) == {*PARTS, "macro", "micro", "per image"}
    np.testing.assert_allclose(wide["macro"], wide[PARTS].mean(axis=1), atol=1e-4)
    assert (models["parameters"] > 1e5).all()


def test_the_trained_model_is_loaded_with_its_size(series):
    network, size = segmentation.load(series / "runs/sample/face_parts")
    assert size == 128
    images = segmentation.normalise(torch.rand(3, 3, size, size))
    probability = segmentation.probabilities(network, images)
    assert probability.shape == (3, 19, size, size)
    torch.testing.assert_close(probability.sum(1), torch.ones(3, size, size))


def test_given_part_weights_are_evaluated_and_not_trained(series, tmp_path):
    output = tmp_path / "weights"
    copy_series(series, output)
    before = table(output, "segmentation_scores")
    model = output / "runs/sample/face_parts"
    stamp = (model / "model.safetensors").stat().st_mtime_ns
    run_stages(output, "3.2", weights=model, **small("3.2", without=("epochs",)))
    assert (model / "model.safetensors").stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(table(output, "segmentation_scores"), before)


def test_without_architectures_only_the_long_run_is_trained(series, tmp_path):
    output = tmp_path / "alone"
    copy_series(series, output)
    run_stages(output, "3.2", **{**small("3.2"), "architectures": "[]", "epochs": 1})
    assert set(table(output, "segmentation_scores")["model"]) == {"best recipe"}


def test_a_split_without_test_photographs_is_refused():
    parts_of = ["train", "val", "test", "train"]
    split = pd.DataFrame({"image_id": ["1", "2", "3", "4"], "split": parts_of})
    rows = segmentation.split_rows(split)
    assert {name: list(index) for name, index in rows.items()} == dict(
        train=[0, 3], val=[1], test=[2]
    )
    with pytest.raises(ValueError, match="no photographs left for val and test"):
        segmentation.split_rows(split, without=["2", "3"])


def test_dilated_depthwise_convolutions_have_right_gradients():
    """In bfloat16, 32 x 32 cells: not so for nn.Conv2d of PyTorch 2.14 on some processors."""
    network = segmentation.build("DeepLabV3Plus", "mobilenet_v2", 3)
    dilated = [
        layer
        for layer in network.modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1 and layer.dilation != (1, 1)
    ]
    assert dilated
    plain = smp.create_model("DeepLabV3Plus", "mobilenet_v2", None, classes=3)
    assert plain.state_dict().keys() == network.state_dict().keys()
    torch.manual_seed(0)
    for layer in (dilated[0], copy.deepcopy(dilated[-1])):
        images = torch.randn(2, layer.in_channels, 32, 32)
        images = images.contiguous(memory_format=torch.channels_last).bfloat16()
        slopes = torch.randn_like(images)
        with torch.autocast("cpu", torch.bfloat16):
            cells = layer(images)
        assert cells.dtype == torch.float32
        cells.backward(slopes.float())
        settings = dict(padding=layer.padding, dilation=layer.dilation, groups=layer.groups)
        shape, slopes = layer.weight.shape, slopes.float()
        expected = torch.nn.grad.conv2d_weight(images.float(), shape, slopes, **settings)
        error = (layer.weight.grad - expected).abs().max() / expected.abs().max()
        assert error < 0.02
