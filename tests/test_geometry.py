"""What 1.2, 1.3 and 1.5 export: heatmaps, crops and alignment, each against a reference."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import SimilarityTransform

from faces import alignment, crops, heatmaps


def smooth_image(seed, height, width):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


# ---- matrices


def test_similarity_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(20, 5, 2)) * 30, rng.normal(size=(20, 5, 2)) * 30
    matrices = alignment.fit_similarity(source, target)
    for a, b, matrix in zip(source, target, matrices, strict=True):
        reference = SimilarityTransform.from_estimate(a, b)
        np.testing.assert_allclose(matrix, reference.params[:2], atol=1e-8)


def test_similarity_takes_one_face_or_one_template_for_all():
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(4, 5, 2)) * 30
    together = alignment.fit_similarity(faces, alignment.TEMPLATE)
    alone = [alignment.fit_similarity(face, alignment.TEMPLATE) for face in faces]
    np.testing.assert_allclose(together, alone)
    to_faces = alignment.fit_similarity(alignment.TEMPLATE, faces)
    assert to_faces.shape == (4, 2, 3)


def test_similarity_of_points_that_coincide_is_finite():
    assert np.isfinite(alignment.fit_similarity(np.ones((5, 2)), alignment.TEMPLATE)).all()


def test_three_point_fit_is_exact_and_survives_a_line():
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(4, 3, 2)) * 20, rng.normal(size=(3, 2)) * 20
    source[3] = [[0, 0], [1, 1], [2, 2]]
    matrix = alignment.fit_affine(source, target)
    assert np.isnan(matrix[3]).all()
    moved = crops.apply_affine(matrix[:3], source[:3])
    np.testing.assert_allclose(moved, np.broadcast_to(target, moved.shape), atol=1e-8)


def test_affine_and_its_inverse():
    rng = np.random.default_rng(1)
    matrix, points = rng.normal(size=(7, 2, 3)), rng.normal(size=(7, 5, 2))
    moved = crops.apply_affine(matrix, points)
    back = crops.apply_affine(crops.invert_affine(matrix), moved)
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_square_matrix_maps_the_box_centre_to_the_crop_centre():
    matrix = crops.square_matrix(np.array([10.0, 20, 100, 50]), 64)
    moved = crops.apply_affine(matrix, np.array([[59.5, 44.5]]))
    np.testing.assert_allclose(moved, [[31.5, 31.5]])
    boxes = np.random.default_rng(0).uniform(20, 90, (50, 4))  # of fractions; squares are whole
    centres = boxes[:, None, :2] + (boxes[:, None, 2:] - 1) / 2
    matrices = crops.square_matrix(boxes, 64, 0.8)
    off = (crops.apply_affine(matrices, centres) - 31.5) / matrices[:, :1, :1]
    assert np.abs(off).max() <= 0.5 + 1e-9


def test_padded_matrix_keeps_the_view_in_the_middle():
    crop = crops.square_matrix(np.array([[10.0, 20, 100, 100]]), 256)
    padded, size = crops.padded_matrix(crop, 256, 128, 1.5)
    assert size == 192
    points = np.array([[[30.0, 40], [80, 90]]])
    in_view = crops.apply_affine(padded, points) - (size - 128) / 2
    expected = (crops.apply_affine(crop, points) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(in_view, expected, atol=1e-9)


def test_a_crop_fraction_enlarges_about_the_centre():
    crop = crops.square_matrix(np.array([0.0, 0, 112, 112]), 112)
    closer, size = crops.padded_matrix(crop, 112, 112, 1.0, crop_fraction=0.5)
    assert size == 112
    moved = crops.apply_affine(closer, np.array([[55.5, 55.5], [56.5, 55.5]]))
    np.testing.assert_allclose(moved, [[55.5, 55.5], [57.5, 55.5]])


# ---- warping


@pytest.mark.parametrize("box", [(11, 7, 40, 40), (3, 20, 70, 50), (-9, 5, 60, 60)])
def test_cutting_out_agrees_with_the_warp(box, monkeypatch):
    image = smooth_image(4, 90, 80)
    matrix = crops.square_matrix(np.array(box, float), 64)
    quick = crops.warp(image, matrix, 64).astype(int)
    monkeypatch.setattr(crops, "_whole_square", lambda *_: None)
    difference = np.abs(quick - crops.warp(image, matrix, 64))[2:-2, 2:-2]
    assert difference.mean() < 0.6
    assert difference.max() <= 4


def test_warp_identity_and_shrink():
    image = np.random.default_rng(2).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert (crops.warp(image, np.eye(2, 3), 96) == image).all()
    matrix = crops.square_matrix(np.array([0, 0, 96, 96]), 24)
    reference = cv2.resize(image, (24, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(crops.warp(image, matrix, 24) - reference).max() <= 1


def test_borders_are_repeated_or_as_asked():
    image = np.full((40, 40, 3), 200, np.uint8)
    matrix = crops.square_matrix(np.array([-20, -20, 40, 40]), 32)
    assert (crops.warp(image, matrix, 32) == 200).all()
    assert crops.warp(image, matrix, 32, cv2.BORDER_CONSTANT)[0, 0].max() == 0


# ---- the image cache


def save_photographs(folder, count, size=(60, 40)):
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8)
    names = [f"{index}.png" for index in range(count)]
    for name in names:
        Image.fromarray(pixels).save(folder / name)
    return names


def test_cache_is_made_once_and_anew_when_a_photograph_changes(tmp_path):
    names, cache = save_photographs(tmp_path, 3), tmp_path / "image_cache" / "crops.npy"
    given = tmp_path, names, np.repeat(np.eye(2, 3)[None], 3, 0), 32, cache
    faces, failures = crops.cached_crops(*given)
    first = cache.stat().st_mtime_ns
    assert not failures
    assert faces.shape == (3, 32, 32, 3)
    crops.cached_crops(*given)
    assert cache.stat().st_mtime_ns == first
    (tmp_path / names[1]).write_bytes(b"broken")
    for _ in range(2):  # written, then read
        faces, failures = crops.cached_crops(*given)
        assert list(failures) == [names[1]]
        assert faces[1].max() == 0
        assert faces[2].max() > 0


def test_cache_is_made_anew_when_the_code_says_so(tmp_path, monkeypatch):
    names, cache = save_photographs(tmp_path, 1), tmp_path / "crops.npy"
    given = tmp_path, names, np.eye(2, 3)[None], 16, cache
    crops.cached_crops(*given)
    first = cache.stat().st_mtime_ns
    monkeypatch.setattr(crops, "CACHE_VERSION", crops.CACHE_VERSION + 1)
    crops.cached_crops(*given)
    assert cache.stat().st_mtime_ns > first


def test_every_crop_is_that_of_its_photograph(tmp_path):
    """More photographs than one thread takes at once, each of a grey of its own."""
    names = [f"{index}.png" for index in range(40)]
    for index, name in enumerate(names):
        Image.fromarray(np.full((20, 20, 3), 5 * index, np.uint8)).save(tmp_path / name)
    matrices = np.repeat(np.eye(2, 3)[None], 40, 0)
    faces, _ = crops.cached_crops(tmp_path, names, matrices, 8, tmp_path / "crops.npy")
    assert (faces == 5 * np.arange(40, dtype=np.uint8)[:, None, None, None]).all()


def test_changes_of_the_array_do_not_reach_the_file(tmp_path):
    names, cache = save_photographs(tmp_path, 1), tmp_path / "crops.npy"
    given = tmp_path, names, np.eye(2, 3)[None], 16, cache
    faces, _ = crops.cached_crops(*given)
    torch.from_numpy(faces).zero_()  # without a warning: the array is writable
    assert crops.cached_crops(*given)[0].max() > 0


def test_an_interrupted_cache_is_not_mistaken_for_an_older_one(tmp_path, monkeypatch):
    """Killed between the pixels and their key: the next call for the older crops makes them."""
    names, cache = save_photographs(tmp_path, 1), tmp_path / "crops.npy"
    one, two = np.eye(2, 3)[None], np.array([[[1.0, 0, -20], [0, 1, -5]]])
    first = crops.cached_crops(tmp_path, names, one, 16, cache)[0].copy()
    write = crops.helpers.write_atomically

    def killed(path, work):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return write(path, work)

    monkeypatch.setattr(crops.helpers, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        crops.cached_crops(tmp_path, names, two, 16, cache)
    monkeypatch.undo()
    again = crops.cached_crops(tmp_path, names, one, 16, cache)[0]
    np.testing.assert_array_equal(again, first)


# ---- heatmaps


def test_cells_and_pixels():
    assert heatmaps.to_cells(1.5, 4) == 0
    pixels = torch.rand(10, 2) * 100
    torch.testing.assert_close(heatmaps.to_pixels(heatmaps.to_cells(pixels, 4), 4), pixels)


@pytest.mark.parametrize(
    ("method", "limit"),
    [("argmax", 0.75), ("quarter", 0.4), ("newton", 1e-3), ("dark", 0.01), ("soft", 0.02)],
)
def test_decoders_give_the_points_back(method, limit):
    points = torch.rand(50, 5, 2, generator=torch.Generator().manual_seed(0)) * 40 + 10
    read, confidence = heatmaps.decode(heatmaps.draw(points, 64, 1.5), method)
    assert (read - points).norm(dim=-1).max() < limit
    assert confidence.min() > 0.95


def test_darks_smoothing_helps_against_noise():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 5, 2, generator=generator) * 40 + 10
    maps = heatmaps.draw(points, 64, 1.5)
    maps = (maps + 0.05 * torch.randn(maps.shape, generator=generator)).clamp_min(0)
    newton, dark = (
        (heatmaps.decode(maps, method)[0] - points).norm(dim=-1).mean()
        for method in ("newton", "dark")
    )
    assert dark < 0.8 * newton


def test_heatmaps_need_not_be_square():
    maps = torch.zeros(1, 2, 12, 30)
    maps[0, 0, 7, 25] = maps[0, 1, 11, 2] = 1
    for method in heatmaps.DECODERS:
        assert heatmaps.decode(maps, method)[0].tolist() == [[[25, 7], [2, 11]]]


@pytest.mark.parametrize("method", heatmaps.DECODERS)
def test_decoders_survive_edges_and_empty_maps(method):
    maps = torch.zeros(1, 3, 16, 16)
    maps[0, 0, 0, 0] = maps[0, 1, 15, 15] = 1
    read, confidence = heatmaps.decode(maps, method)
    assert torch.isfinite(read).all()
    assert torch.isfinite(confidence).all()
    torch.testing.assert_close(read[0, 1], torch.tensor([15.0, 15.0]), atol=1.0, rtol=0)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="argmax, quarter, newton, dark, soft"):
        heatmaps.decode(torch.zeros(1, 1, 16, 16), "best")


def test_nme_by_hand():
    target = np.array([[[0.0, 0], [40, 0], [20, 20], [5, 40], [35, 40]]])
    predicted = target + np.array([[0, 0], [0, 0], [3, 4], [0, 2], [0, 0]])
    expected = [[0, 0, 12.5, 5, 0]]
    assert heatmaps.nme(predicted, target).tolist() == expected
    assert (
        heatmaps.nme(torch.from_numpy(predicted), torch.from_numpy(target)).tolist() == expected
    )
