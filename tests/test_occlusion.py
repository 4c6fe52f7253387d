"""3.3 and 3.4: losses and scores agree with other libraries, any photograph gets a mask."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_series, run_stages, small, takes_a_minute
from PIL import Image
from scipy.spatial.distance import cdist
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index
from torchvision import tv_tensors
from torchvision.ops import sigmoid_focal_loss

import helpers
from faces import focal, occlusion, parts, segmentation
from helpers import PARTS


def table(series, name):
    path = series / f"csv/sample/{name}.csv"
    return pd.read_csv(path, dtype={"image_id": str, "stage": str})


# -------------------------------------------------------------------------------------- losses


def test_focal_loss_of_two_classes_is_torchvisions():
    """For two classes softmax and sigmoid are one: logits (0, z) against a sigmoid of z."""
    torch.manual_seed(0)
    z, labels = torch.randn(2, 6, 6), torch.randint(0, 2, (2, 6, 6))
    logits = torch.stack([torch.zeros_like(z), z], 1)
    options = dict(alpha=-1, gamma=2.0, reduction="mean")
    expected = sigmoid_focal_loss(z, labels.float(), **options)
    torch.testing.assert_close(focal.focal_loss(logits, labels, 2.0), expected)
    labels[0] = parts.IGNORED
    expected = sigmoid_focal_loss(z[1:], labels[1:].float(), **options)
    torch.testing.assert_close(focal.focal_loss(logits, labels, 2.0), expected)


def test_weighted_focal_loss_without_gamma_is_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 6), torch.randint(0, 5, (2, 6, 6))
    weight = torch.tensor(focal.class_weights(np.array([900.0, 50, 9, 3, 0]), 0.99)).float()
    labels[1, 2] = parts.IGNORED
    expected = F.cross_entropy(logits, labels, weight, ignore_index=parts.IGNORED)
    torch.testing.assert_close(focal.focal_loss(logits, labels, 0.0, weight), expected)


def test_binary_loss_counts_every_label_of_the_pixels_that_count():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 3, 3))
    labels[0, 0] = parts.IGNORED
    target = torch.zeros(4, 6)
    target[labels[0, 1:].flatten(), torch.arange(6)] = 1
    z = logits[0, :, 1:].flatten(1)
    expected = -(target * F.logsigmoid(z) + (1 - target) * F.logsigmoid(-z)).sum(0).mean()
    torch.testing.assert_close(focal.binary_loss(logits, labels), expected)


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
def test_deeplab_is_saved_and_loaded_with_its_classes(tmp_path, backbone):
    network = focal.DeepLab(3, backbone).eval()
    assert network.cells(torch.zeros(1, 3, 64, 64)).shape[2:] == (8, 8), "a stride of 8"
    helpers.save_model(network, tmp_path / "deeplabv3")
    loaded = helpers.load_model(focal.DeepLab.from_pretrained, tmp_path / "deeplabv3", "3.3")
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), network(x))
    with pytest.raises(FileNotFoundError, match=r"not the folder of a model.*make 3\.3"):
        helpers.load_model(focal.DeepLab.from_pretrained, tmp_path / "nothing", "3.3")


def test_backbones_start_where_they_can(tmp_path):
    network = focal.DeepLab(3, "mobilenet_v2")
    focal.load_start(network, "pretrained")
    ours = helpers.given_state("parts", "encoder")
    for name, value in network.network.encoder.named_parameters():
        assert torch.equal(value, ours[name]), name
    first = network.network.encoder.features[0][0].weight
    first.data.zero_()
    torch.save(ours, tmp_path / "encoder.pth")
    focal.load_start(network, tmp_path / "encoder.pth")
    assert torch.equal(first, ours["features.0.0.weight"])
    with pytest.raises(ValueError, match="start is 'pretrained', which needs mobilenet_v2"):
        focal.load_start(focal.DeepLab(3, "resnet50"), "pretrained")
    with pytest.raises(FileNotFoundError, match="nothing"):
        focal.load_start(focal.DeepLab(3, "mobilenet_v2"), "nothing")
    with pytest.raises(ValueError, match="backbone is 'vgg'"):
        focal.DeepLab(3, "vgg")


# --------------------------------------------------------------------------------- mask scores


def test_mask_scores_agree_with_torchmetrics_and_brute_force():
    rng = np.random.default_rng(0)
    y, x = np.indices((60, 80))
    for _ in range(5):
        (top, left), radii = rng.uniform([[20] * 2, [30] * 2], [[40] * 2, [50] * 2]), (12, 22)
        masks = [np.hypot(y - a, x - b) < r for a, b, r in zip(top, left, radii, strict=True)]
        dice, iou, _ = occlusion.score_mask(*masks)
        predicted, target = (torch.tensor(mask).flatten().int() for mask in masks)
        assert dice == pytest.approx(binary_f1_score(predicted, target).item(), abs=1e-6)
        assert iou == pytest.approx(binary_jaccard_index(predicted, target).item(), abs=1e-6)
        distance = cdist(*[np.argwhere(occlusion.outline(mask)) for mask in masks])
        precision, recall = (distance.min(1) <= 2).mean(), (distance.min(0) <= 2).mean()
        expected = 2 * precision * recall / max(precision + recall, 1e-9)
        assert occlusion.boundary_f(*masks, tolerance=2) == pytest.approx(expected, abs=0.02)
    nothing = np.zeros((60, 80), bool)
    assert occlusion.score_mask(nothing, nothing) == (1, 1, 1)
    assert occlusion.score_mask(nothing, masks[0])[0] == 0


# ----------------------------------------------------------------------------------- occluders


def noise_and_face(seed):
    image = np.random.default_rng(seed).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    return image, (np.hypot(*(np.indices((96, 96)) - 48)) < 30).astype(np.uint8)


@pytest.mark.parametrize("kind", occlusion.KINDS)
def test_an_occluder_is_cut_out_of_the_face_and_nothing_else(kind):
    (image, face), source, hidden = noise_and_face(2), noise_and_face(1), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        drawn, left = occlusion.occlude(kind, image, face, *source, rng)
        assert drawn.shape == image.shape
        assert drawn.dtype == left.dtype == np.uint8
        assert (left <= face).all(), "no pixel becomes face"
        hidden += (left < face).sum()
        same = (drawn == image).all(-1)
        wrong = (left[same] != face[same]).sum()
        assert wrong < 5, "where the photograph is unchanged, so is the mask (but for chance)"
    assert hidden > 12 * 20


def test_what_was_outlined_by_hand_is_cut_out_of_a_mask(tmp_path):
    file = tmp_path / "occluders.json"
    file.write_text('{"7": [[[0, 0], [255, 0], [255, 511], [0, 511]]], "8": []}')
    masks = np.ones((3, 64, 64), np.uint8)
    cut = occlusion.cut_occluders(masks, ["7", "8", "9"], file)
    assert masks.all(), "the masks that were given stay as they are"
    assert not cut[0, :, :32].any() and cut[0, :, 32:].all() and cut[1:].all()
    for text in ("[1]", '{"7": [[1, 2, 3]]}', "no JSON"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"occluders\.json must hold polygons"):
            occlusion.cut_occluders(masks, ["7", "8", "9"], file)


def test_a_network_is_tested_on_the_corrected_mask(tmp_path):
    file, folders = tmp_path / "occluders.json", SimpleNamespace(runs=tmp_path, name="x")
    file.write_text('{"7": [[[0, 0], [255, 0], [255, 511], [0, 511]]]}')
    (tmp_path / "label_maps").mkdir()
    skin = np.full((512, 512), parts.NUMBER["skin"], np.uint8)
    cv2.imwrite(str(tmp_path / "label_maps/7.png"), skin)
    assert occlusion.read_face(folders, "7").all()
    corrected = occlusion.read_face(folders, "7", file)
    assert corrected.shape == (512, 512) and corrected.dtype == bool
    assert not corrected[:, :256].any() and corrected[:, 256:].all()


def test_what_covers_one_face_covers_another():
    (image, face), (photograph, its_face) = noise_and_face(2), noise_and_face(1)
    covers = np.zeros((96, 96), np.float32)
    covers[40:, 40:60] = 1  # a hand from below
    photograph[40:, 40:60] = (250, 10, 10)
    given, sizes = [array.copy() for array in (image, face, photograph, covers)], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        pasted, left = occlusion.paste_occluder(image, face, photograph, covers, its_face, rng)
        assert pasted.dtype == left.dtype == np.uint8
        assert (left <= face).all(), "no pixel becomes face"
        assert (pasted[left < face].mean(0)[0] > 2 * pasted[left < face].mean(0)[1:]).all()
        sizes.append((face - left).sum())
        wrong = (left < face) & (pasted == image).all(-1)
        assert wrong.sum() < 5, "what is cut out of the mask is covered in the image"
    assert len(set(sizes)) > 6, "its place and size vary"
    assert min(sizes) > 50
    for array, before in zip((image, face, photograph, covers), given, strict=True):
        np.testing.assert_array_equal(array, before)
    nothing = np.zeros_like(face)
    same = occlusion.paste_occluder(image, nothing, photograph, covers, its_face, rng)
    assert same[0] is image and same[1] is nothing


def test_pasted_occluders_repeat_with_torchs_seed_and_leave_the_rest_clean():
    (image, face), (photograph, its_face) = noise_and_face(2), noise_and_face(1)
    covers = np.zeros((96, 96), np.float32)
    covers[30:, 40:60] = 1
    paste = occlusion.PasteOccluders([(photograph, covers, its_face)], p=0.5)
    pair = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(face)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([paste(*pair)[1].sum().item() for _ in range(20)])
    assert runs[0] == runs[1]
    assert 4 < runs[0].count(face.sum()) < 16


@pytest.mark.parametrize("kind", occlusion.KINDS)
def test_an_image_without_a_face_can_be_occluded(kind):
    (image, face), source = noise_and_face(2), noise_and_face(1)
    rng = np.random.default_rng(0)
    drawn, left = occlusion.occlude(kind, image, 0 * face, *source, rng)
    assert drawn.shape == image.shape
    assert not left.any()


def test_occlude_draws_over_its_share_of_the_images_and_repeats_with_the_seed():
    pairs = [noise_and_face(seed) for seed in range(3)]
    images, faces = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    step = occlusion.Occlude(["card"], images, faces, p=0.5, rows=np.array([1, 2]))
    image, mask = torch.from_numpy(images[0]).permute(2, 0, 1), torch.from_numpy(faces[0])
    pair = tv_tensors.Image(image), tv_tensors.Mask(mask)

    def draw():
        torch.manual_seed(0)
        return [step(*pair) for _ in range(40)]

    first, second = draw(), draw()
    changed = [not torch.equal(new, pair[0]) for new, _ in first]
    assert 10 < sum(changed) < 30
    for (a, mask_a), (b, mask_b) in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(mask_a, mask_b)
        assert isinstance(a, tv_tensors.Image)
        assert isinstance(mask_a, tv_tensors.Mask)


# ----------------------------------------------------------------------------------- notebooks


def test_deeplab_scores_hold_every_loss(series):
    scores = table(series, "deeplabv3_scores")
    assert set(scores["loss"]) >= {"start", "bce", "ce", "focal", "balanced focal"}
    both = scores.dropna()
    precision, recall = both["precision"], both["recall"]
    harmonic = 2 * precision * recall / (precision + recall).clip(lower=1e-9)
    np.testing.assert_allclose(both["f1"], harmonic, atol=2e-3)
    network = focal.DeepLab.from_pretrained(series / "runs/sample/deeplabv3").eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1 + len(PARTS), 64, 64)


def test_occlusion_scores_hold_every_test_set(series):
    scores = table(series, "occlusion_scores")
    sets = scores.groupby("model")["test_set"].agg(set)
    for found in sets:
        assert found >= {"clean", "drawn occluders", "microphone"}
    assert {"Unet, geometry + occluders", "DeepLabV3, all", "Unet, all, longer"} <= set(
        sets.index
    )
    network, size = segmentation.load(series / "runs/sample/face_mask", "3.4")
    photograph = np.zeros((50, 70, 3), np.uint8)
    mask = occlusion.mask_of_photograph(network, photograph, (size,))
    assert mask.shape == (50, 70)
    assert ((mask >= 0) & (mask <= 1)).all()


@takes_a_minute
def test_any_photograph_gets_a_mask_of_its_size(series, tmp_path):
    """Grey, CMYK, with alpha, rotated by EXIF, tiny, 16 bits; broken files are rejected."""
    output, own = tmp_path / "out", tmp_path / "own"
    copy_series(series, output)
    own.mkdir()
    source = Image.open(next((series / "data/sample/covered_faces").iterdir()))
    source.convert("L").save(own / "grey.jpg")
    source.convert("CMYK").save(own / "cmyk.jpg")
    source.convert("RGBA").save(own / "alpha.png")
    source.resize((9, 7)).save(own / "tiny.png")
    sixteen = np.asarray(source.convert("L"), np.uint16) * 257
    Image.fromarray(sixteen).save(own / "sixteen.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    source.save(own / "rotated.jpg", exif=rotated)
    source.save(own / "cut.jpg")
    (own / "cut.jpg").write_bytes((own / "cut.jpg").read_bytes()[:900])
    (own / "empty.png").write_bytes(b"")
    before = table(output, "occlusion_scores")
    weights = output / "runs/sample/face_mask"
    settings = small("3.4", without=("epochs", "final_epochs"))
    run_stages(output, "3.4", weights=weights, own_photographs=own, **settings)
    paths = (output / "runs/sample/face_masks").glob("*.png")
    masks = {Path(path.stem).stem: Image.open(path).size for path in paths}
    for name in ("grey", "cmyk", "alpha", "sixteen"):
        assert masks[name] == source.size
    assert masks["rotated"] == source.size[::-1]
    assert masks["tiny"] == (9, 7)
    rejected = table(output, "rejected").query("stage == '3.4'").set_index("image_id")["reason"]
    assert set(rejected.index) == {"cut.jpg", "empty.png"}
    assert "cannot be decoded" in rejected["cut.jpg"]
    pd.testing.assert_frame_equal(table(output, "occlusion_scores"), before)


def test_the_video_becomes_a_gif(series):
    gif = Image.open(series / "runs/sample/face_masks.gif")
    film = cv2.VideoCapture(str(series / "data/sample/turning_head.avi"))
    assert gif.n_frames == film.get(cv2.CAP_PROP_FRAME_COUNT) == 100


def test_a_split_without_test_photographs_is_refused(series, tmp_path):
    output = tmp_path / "split"
    copy_series(series, output)
    path = output / "csv/sample/segmentation_split.csv"
    pd.read_csv(path).replace({"split": {"test": "train"}}).to_csv(path, index=False)
    done = run_stages(output, "3.3", check=False, gamma=1.0, **small("3.3"))
    assert done.returncode != 0
    assert "no photographs left for test" in done.stdout + done.stderr
