"""1.4: published size, views that follow OpenCV, a model that comes back from its folder."""

import cv2
import numpy as np
import pytest
import torch

import helpers
from faces import crops, heatmaps, landmarks


@pytest.mark.parametrize(("stacks", "parameters"), [(2, 6_730_912), (8, 25_594_624)])
def test_hourglass_has_the_published_size(stacks, parameters):
    network = landmarks.StackedHourglass(stacks=stacks)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("stacks", "stride"), [(1, 4), (3, 2)])
def test_hourglass_shapes_for_any_number_of_stacks(stacks, stride):
    outputs = landmarks.StackedHourglass(stacks, 16, 5, stride)(torch.zeros(2, 3, 64, 64))
    assert [tuple(o.shape) for o in outputs] == [(2, 5, 64 // stride, 64 // stride)] * stacks


def blurred(size: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def test_sampling_on_the_device_agrees_with_opencv():
    image, matrix = blurred(80, 3), np.array([[0.8, -0.2, 5.0], [0.2, 0.8, -3.0]])
    ours = landmarks.sample_views(
        torch.from_numpy(image[None]), torch.from_numpy(matrix[None]), 64
    )
    ours = ours[0].permute(1, 2, 0).numpy() * 255
    options = dict(flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    reference = cv2.warpAffine(image, matrix, (64, 64), **options)
    assert np.abs(ours - reference)[4:-4, 4:-4].mean() < 0.6


def test_mirrored_views_mirror():
    torch.manual_seed(0)
    matrices = landmarks.random_views(64, 40, 40, 0, 0, 0, flip=True)
    mirrored = torch.linalg.det(matrices[:, :, :2]) < 0
    assert 10 < mirrored.sum() < 54
    image = torch.arange(40).expand(1, 40, 40)[..., None].repeat(1, 1, 1, 3).to(torch.uint8)
    view = landmarks.sample_views(image, matrices[mirrored][:1], 40)[0, 0]
    expected = torch.arange(39.0, -1, -1).expand(40, 40)
    torch.testing.assert_close((view * 255).round(), expected, atol=0.01, rtol=0)


def test_padding_keeps_the_view_in_the_middle():
    crop = crops.square_matrix(np.array([[10.0, 20, 100, 100]]), 256)
    wider, size = crops.padded_matrix(crop, 256, 128, 1.5)
    view = landmarks.center_views(1, size, 128).numpy()
    points = np.array([[[30.0, 40], [80, 90]]])
    in_view = crops.apply_affine(view, crops.apply_affine(wider, points))
    expected = (crops.apply_affine(crop, points) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(in_view, expected, atol=1e-4)


def test_augmented_points_stay_on_their_pixels():
    """A red dot at the nose: wherever the view puts it, the third point is there."""
    image = np.full((1, 96, 96, 3), 128, np.uint8)
    points = np.array([[[36.0, 40], [60, 40], [48, 52], [40, 62], [56, 62]]], np.float32)
    cv2.circle(image[0], (48, 52), 3, (255, 0, 0), -1)
    torch.manual_seed(0)
    faces = (
        torch.from_numpy(np.repeat(image, 16, 0)),
        torch.from_numpy(np.repeat(points, 16, 0)),
    )
    matrices = landmarks.random_views(16, 96, 64, 15, 0.15, 0.05, flip=True)
    views, moved = landmarks.through(matrices, *faces, 64)
    redness = (views[:, 0] - views[:, 1]).clamp_min(0)
    redness = redness / redness.sum((1, 2), keepdim=True)
    centre = landmarks.mean_position(redness[:, None])[:, 0]
    assert (centre - moved[:, 2]).norm(dim=-1).max() < 0.5
    _, augmented = landmarks.augment(*faces, 64)
    assert (augmented[:, 0, 0] < augmented[:, 1, 0]).all(), "the first eye is the left one"


def test_the_loss_is_smallest_at_the_annotated_points():
    points = torch.rand(4, 5, 2) * 60 + 30
    cells = heatmaps.to_cells(points, 4)
    right, wrong = (heatmaps.draw(c, 32, 1.5).clamp_min(1e-9).log() for c in (cells, cells + 2))
    losses = [landmarks.heatmap_loss([logits], points, 128, 1.5) for logits in (right, wrong)]
    assert losses[0] < 0.1 < losses[1]
    outside = points.clone()
    outside[:, 4] = 200.0
    assert torch.isfinite(landmarks.heatmap_loss([right], outside, 128, 1.5))


def test_the_model_comes_back_from_its_folder(tmp_path):
    torch.manual_seed(0)
    face = [[40.0, 50], [88, 50], [64, 76], [46, 96], [82, 96]]
    model = landmarks.LandmarkModel(1, 16, 4, 128, face).eval()
    folder = helpers.save_model(model, tmp_path / "landmarks")
    again = helpers.load_model(landmarks.LandmarkModel.from_pretrained, folder, "1.4")
    images = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(again.predict(images), model.predict(images))
    maps, scores = again.predict(images)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 5))
    assert scores.shape == (2,)
    assert again.input_size == 128
    np.testing.assert_array_equal(again.mean_face, face)
    with pytest.raises(ValueError, match=r"landmarks cannot be loaded .*make 1\.4"):
        (folder / "model.safetensors").write_bytes(b"no weights")
        helpers.load_model(landmarks.LandmarkModel.from_pretrained, folder, "1.4")


def test_flipped_predictions_agree():
    """The mirrored image gives the mirrored answer, eyes and mouth corners exchanged."""
    torch.manual_seed(0)
    model = landmarks.LandmarkModel(1, 16, 4, 64, np.zeros((5, 2)).tolist()).eval()
    images = torch.rand(2, 3, 64, 64)
    (maps, scores), (mirrored, same) = model.predict(images), model.predict(images.flip(3))
    mirrored = mirrored.flip(3)[:, helpers.FLIPPED_POINTS]
    torch.testing.assert_close(mirrored, maps, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(scores, same)


def test_windows_for_negatives_show_no_whole_face():
    """Beside the face, a part of it, or the face far too small: never as training shows it."""
    to_view = np.repeat(np.array([[[0.5, 0, 3], [0, 0.5, -8]]]), 500, 0)
    windows = landmarks.elsewhere(to_view, 128, np.random.default_rng(0))
    centre = crops.apply_affine(crops.invert_affine(to_view), np.full((500, 1, 2), 63.5))
    moved = np.abs(crops.apply_affine(windows, centre)[:, 0] - 63.5).max(1)
    zoom = 0.5 / windows[:, 0, 0]
    near = (zoom > 0.5) & (zoom < 2.2)
    assert near.sum() > 100
    assert (moved[near] > 0.4 * 128).all()
    sizes = np.array([[300.0, 200], [64, 500]]).repeat(50, 0)
    windows = landmarks.anywhere(sizes, 128, np.random.default_rng(0))
    corners = np.array([[-0.5, -0.5], [127.5, 127.5]])
    corners = crops.apply_affine(crops.invert_affine(windows), np.repeat(corners[None], 100, 0))
    assert (corners > -0.51).all()
    assert (corners < sizes[:, None] - 0.49).all()


def test_the_face_score_is_learned_from_both_kinds():
    logits = torch.zeros(2, 5, 8, 8)
    logits[0, :, 3, 3] = 4.0
    assert landmarks.face_score(logits).tolist() == [4.0, 0.0]
    right = landmarks.face_loss([logits], torch.tensor([1.0, 0.0]))
    assert right < landmarks.face_loss([logits], torch.tensor([0.0, 1.0]))
