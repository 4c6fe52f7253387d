"""What 2.1 and 2.2 export: faces and labels, the networks, the margin, verification."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import models

import helpers
from faces import arcface, crops, recognition

SPLITS = {10: "train", 20: "train", 30: "train", 40: "extra", 50: "unseen", 60: "spare"}


def write_identities(folders):
    """Manifests of six people with four images each; three of the people are to be named."""
    owners = np.repeat(list(SPLITS), 4)
    splits = np.array([SPLITS[person] for person in owners], dtype=object)
    splits[[3, 7, 11]] = "val"
    images = [f"{index:02d}.jpg" for index in range(len(owners))]
    faces = pd.DataFrame({"image_id": images, "identity": owners, "split": splits})
    numbers = [*helpers.BOX_COLUMNS, *helpers.LANDMARK_COLUMNS, *helpers.MATRIX_COLUMNS]
    faces = faces.assign(landmark_split="unused", residual=0.0, **dict.fromkeys(numbers, 1.0))
    helpers.write_manifest(faces, "selected", folders)
    helpers.write_manifest(faces, "aligned_5", folders)
    named = faces.assign(label=faces["identity"] // 10 - 1)[["image_id", "identity", "label"]]
    for split in ("train", "val"):
        helpers.write_manifest(named[faces["split"] == split], split, folders)
    return faces


@pytest.fixture
def folders(tmp_path):
    return helpers.open_dataset("mine", tmp_path, tmp_path, needs="")


def small_recogniser(kind, identities=(7, 8, 9), **settings):
    """An untrained network whose embeddings of two images differ all the same."""
    torch.manual_seed(0)
    return kind(list(identities), attributes=5, face_size=32, **settings).eval()


def random_crops(count, size=32):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return np.stack([cv2.GaussianBlur(image, (0, 0), 2) for image in noise])


# --------------------------------------------------------------------------- faces and labels


def test_labels_of_named_further_and_unseen_people(folders):
    write_identities(folders)
    faces, people = recognition.labelled_faces(folders)
    assert people == 3
    labels = faces.groupby("identity")["label"].unique().map(list).to_dict()
    assert labels == {10: [0], 20: [1], 30: [2], 40: [3], 50: [-1]}


@pytest.mark.parametrize("fault", ["out of range", "two people, one label", "two labels"])
def test_a_wrong_label_is_named(folders, fault):
    write_identities(folders)
    frame = helpers.read_manifest("train", folders)
    last = frame["label"] == frame["label"].max()
    if fault == "two labels":
        frame.loc[frame.index[last][0], "label"] = 0
    else:
        frame.loc[last, "label"] = 70 if fault == "out of range" else 0
    helpers.write_manifest(frame, "train", folders)
    message = r"train\.csv must give each person one label, from 0 to 2 without gaps: make 1\.1"
    with pytest.raises(ValueError, match=message):
        recognition.labelled_faces(folders)


def test_missing_attributes_are_named(folders):
    faces = write_identities(folders)
    table = faces[["image_id"]].assign(Smiling=1, Hat=0)
    helpers.write_manifest(table, "attributes", folders)
    assert recognition.face_attributes(faces, folders).tolist() == [[1, 0]] * len(faces)
    helpers.write_manifest(table[1:], "attributes", folders)
    with pytest.raises(ValueError, match=r"attributes\.csv lacks images.*make 1\.1"):
        recognition.face_attributes(faces, folders)


def test_the_middle_of_the_cache_is_the_aligned_face(folders, tmp_path):
    photograph = random_crops(1, 200)[0]
    Image.fromarray(photograph).save(tmp_path / "face.png")
    matrix = np.array([[0.9, 0.2, -15.0], [-0.2, 0.9, 5.0]])  # photograph -> 112 px
    row = {"image_id": "face.png", "residual": 0.0}
    row |= dict(zip(helpers.MATRIX_COLUMNS, matrix.ravel(), strict=True))
    helpers.write_manifest(pd.DataFrame([row]), "aligned_2", folders)
    faces = pd.DataFrame({"image_id": ["face.png"]})
    cache = recognition.face_cache(faces, "2", 112, tmp_path, folders, padding=1.5)
    assert cache.shape == (1, 168, 168, 3)
    expected = crops.warp(photograph, matrix, 112).astype(float)
    middle = recognition.as_pictures(recognition.center(torch.from_numpy(cache), 112))[0]
    assert np.abs(255 * middle - expected).mean() < 1
    with pytest.raises(ValueError, match="alignment is '4': choose 'none', '2', '3' or '5'"):
        recognition.face_cache(faces, "4", 112, tmp_path, folders)


def test_an_unreadable_photograph_is_named(folders, tmp_path):
    faces = write_identities(folders)
    with pytest.raises(ValueError, match=r"\d\d\.jpg: no such photograph.*make 1\.3"):
        recognition.face_cache(faces, "5", 32, tmp_path, folders)


# -------------------------------------------------------------------------------- the networks


def test_flip_mirrors_some_images_and_changes_no_other():
    torch.manual_seed(0)
    cached = torch.from_numpy(random_crops(8, 46))
    plain, images = recognition.center(cached, 32), recognition.flip(cached, 32)
    close = lambda one, other: (one - other).abs().amax((1, 2, 3)) < 1e-3  # noqa: E731
    kept, mirrored = close(images, plain), close(images, plain.flip(3))
    assert (kept ^ mirrored).all()
    assert kept.any() and mirrored.any()


def test_each_image_is_augmented_by_its_own_draw():
    torch.manual_seed(0)
    same = torch.from_numpy(random_crops(1, 46)).repeat(6, 1, 1, 1)
    images = recognition.augment(same, 32)
    assert images.shape == (6, 3, 32, 32)
    apart = (images[:, None] - images).abs().mean((2, 3, 4)) + torch.eye(6)
    assert (apart > 0.01).all()
    assert abs(images.mean() - recognition.center(same, 32).mean()) < 0.5


KINDS = [(recognition.Recogniser, {}), (arcface.ArcFaceRecogniser, {"scale": 20.0})]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_saved_recogniser_gives_the_same_embeddings(tmp_path, kind, settings):
    network = small_recogniser(kind, alignment="5", crop_fraction=0.9, **settings)
    folder = helpers.save_model(network, tmp_path / "model")
    loaded = helpers.load_model(kind.from_pretrained, folder, "2.1")
    faces = random_crops(3)
    expected = recognition.embed_crops(network, faces)
    torch.testing.assert_close(recognition.embed_crops(loaded, faces), expected)
    images = recognition.center(torch.from_numpy(faces), 32)
    torch.testing.assert_close(loaded(images), network(images))
    assert loaded.identities == [7, 8, 9]
    assert (loaded.face_size, loaded.alignment, loaded.crop_fraction) == (32, "5", 0.9)
    config = json.loads((folder / "config.json").read_text())
    assert config["alignment"] == "5"
    assert getattr(loaded.head, "scale", 20.0) == 20.0


def test_a_model_of_the_other_loss_is_refused(tmp_path):
    folder = helpers.save_model(small_recogniser(recognition.Recogniser), tmp_path / "model")
    with pytest.raises(ValueError, match=r"model cannot be loaded .*make 2\.2"):
        helpers.load_model(arcface.ArcFaceRecogniser.from_pretrained, folder, "2.2")


def test_embeddings_are_of_length_one_and_blind_to_mirroring():
    network, faces = small_recogniser(recognition.Recogniser), random_crops(4)
    embeddings = recognition.embed_crops(network, faces)
    assert embeddings.shape == (4, 512)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    mirrored = recognition.embed_crops(network, faces[:, :, ::-1].copy())
    torch.testing.assert_close(mirrored, embeddings, atol=1e-5, rtol=1e-4)
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


def test_larger_crops_are_embedded_by_their_middle():
    network, faces = small_recogniser(recognition.Recogniser), random_crops(3, 46)
    middle = recognition.embed_crops(network, faces[:, 7:39, 7:39].copy())
    torch.testing.assert_close(recognition.embed_crops(network, faces), middle)
    some = recognition.embed_crops(network, faces, rows=[2, 0])
    torch.testing.assert_close(some, middle[[2, 0]])


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_other_identities_get_the_backbone_and_neck_only(kind, settings):
    network, faces = small_recogniser(kind, **settings), random_crops(6)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    centres = recognition.class_centres(network, faces[::2], labels[::2])
    other = recognition.for_people(network, [1, 2, 3], centres)
    assert isinstance(other, kind)
    assert other.identities == [1, 2, 3]
    assert other.settings == network.settings
    before, after = (
        recognition.embed_crops(network, faces),
        recognition.embed_crops(other, faces),
    )
    torch.testing.assert_close(after, before)
    logits = other.head(recognition.embed_faces(other, faces[::2]))
    assert logits.argmax(1).tolist() == [0, 1, 2], "each training face is nearest to its centre"


def test_class_centres_are_means_of_unit_embeddings():
    network, faces = small_recogniser(recognition.Recogniser), random_crops(4)
    unit = recognition.embed_crops(network, faces)
    centres = recognition.class_centres(network, faces, torch.tensor([1, 0, 1, 0]))
    torch.testing.assert_close(
        centres, F.normalize(torch.stack([unit[1::2].mean(0), unit[::2].mean(0)]))
    )


def test_closed_set_accuracy_agrees_with_counting():
    logits, target = torch.randn(200, 8), torch.randint(0, 8, (200,))
    order = logits.argsort(1, descending=True)
    top1, top5 = recognition.closed_set(logits, target)
    assert top1 == pytest.approx((order[:, 0] == target).float().mean().item())
    assert top5 == pytest.approx((order[:, :5] == target[:, None]).any(1).float().mean().item())
    assert recognition.closed_set(logits[:, :3], target.clamp_max(2))[1] == 1.0


# ----------------------------------------------------------------------- ArcFace, verification


@pytest.mark.parametrize("margin", [0.1, 0.3, 0.5])
def test_arcface_agrees_with_pytorch_metric_learning(margin):
    from pytorch_metric_learning.losses import ArcFaceLoss

    torch.manual_seed(0)
    head = arcface.ArcFaceHead(32, 7, 20.0)
    reference = ArcFaceLoss(7, 32, margin=float(np.degrees(margin)), scale=20.0)
    reference.W.data = head.centres.data.T.clone()
    embeddings, labels = torch.randn(64, 32), torch.randint(0, 7, (64,))
    ours = F.cross_entropy(head(embeddings, labels, margin), labels)
    torch.testing.assert_close(ours, reference(embeddings, labels), rtol=1e-4, atol=1e-4)


def test_arcface_without_labels_has_no_margin():
    head, embeddings = arcface.ArcFaceHead(16, 4, 10.0), torch.randn(5, 16)
    expected = 10 * F.normalize(embeddings) @ F.normalize(head.centres).T
    torch.testing.assert_close(head(embeddings), expected)


def test_verification_rates_agree_with_counting():
    rng = np.random.default_rng(0)
    same = rng.random(20000) < 0.2
    scores = rng.normal(size=20000) + 1.5 * same
    table, _ = arcface.verify(scores, same, "test")
    for row in table[:3]:
        accepted = scores >= row["threshold"]
        assert accepted[~same].mean() <= row["far"]
        assert abs(accepted[same].mean() - row["tar"]) < 1e-9
    few, _ = arcface.verify(scores[:200], same[:200], "few")
    assert np.isnan(few[-1]["tar"]), "200 pairs cannot show a rate of 1e-4"


def test_a_start_from_the_pretrained_backbone():
    backbone = recognition.make_backbone("mobilenet_v2", "pretrained")
    ours = helpers.given_state("recognition", "backbone")
    assert len(ours) == len(backbone.state_dict())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, ours[name].to(value.dtype)), name
    with pytest.raises(ValueError, match="pretrained does not hold the weights of resnet18"):
        recognition.make_backbone("resnet18", "pretrained")
    with pytest.raises(ValueError, match="start is 'nothing'"):
        recognition.make_backbone("resnet18", "nothing")


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "fc"), ("mobilenet_v2", "classifier.1")]
)
def test_a_start_from_a_file_of_torchvisions_weights(tmp_path, name, last):
    state, file = models.get_model(name).state_dict(), tmp_path / "imagenet.pth"
    torch.save(state, file)
    backbone = recognition.make_backbone(name, str(file)).eval()
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, recognition.WIDTHS[name])
    for key, value in backbone.state_dict().items():
        if key in state and not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key]), key
    del state[next(iter(state))]
    torch.save(state, file)
    with pytest.raises(ValueError, match=f"does not hold the weights of {name}"):
        recognition.make_backbone(name, str(file))


def test_the_interval_of_a_tar_follows_its_people():
    """Separated scores give 1, reversed ones 0; one hard person of four widens the interval."""
    identity = np.repeat(np.arange(4), 5)
    first, second = np.triu_indices(len(identity), 1)
    same, people = identity[first] == identity[second], identity[np.stack([first, second])]
    tar = lambda scores: arcface.bootstrap_tar(scores, same, people, 0.01, draws=50)  # noqa: E731
    assert (tar(same.astype(float)) == 1).all()
    assert (tar(1.0 - same) == 0).all()
    hard = same & (people[0] != 3)
    drawn = tar(hard + 0.5 * ~same)
    assert drawn.min() < 0.5 < drawn.max() <= 1
    expected = arcface.verify(hard + 0.5 * ~same, same, "x")[0][1]["tar"]
    assert abs(np.median(drawn) - expected) < 0.15
