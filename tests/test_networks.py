"""The networks and losses of the notebooks against published counts and other libraries."""

import numpy as np
import pytest
import torch
from conftest import definitions


def test_hourglass_has_the_published_size():
    space = definitions("1.4", "Residual", "Hourglass", "StackedHourglass")
    for stacks, parameters in ((2, 6_730_912), (8, 25_594_624)):
        network = space["StackedHourglass"](stacks=stacks)
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_hourglass_shapes_for_any_number_of_stacks():
    space = definitions("1.4", "Residual", "Hourglass", "StackedHourglass")
    for stacks, stride in ((1, 4), (3, 2)):
        outputs = space["StackedHourglass"](stacks, 16, 5, stride)(torch.zeros(2, 3, 64, 64))
        assert [tuple(output.shape) for output in outputs] == [(2, 5, 64 // stride, 64 // stride)] * stacks


@pytest.mark.parametrize("margin", [0.1, 0.3, 0.5])
def test_arcface_agrees_with_pytorch_metric_learning(margin):
    from pytorch_metric_learning.losses import ArcFaceLoss

    space = definitions("2.2", "add_margin", "ArcFace")
    torch.manual_seed(0)
    head = space["ArcFace"](32, 7, 20.0)
    reference = ArcFaceLoss(7, 32, margin=float(np.degrees(margin)), scale=20.0)
    reference.W.data = head.centres.data.T.clone()
    embeddings, labels = torch.randn(64, 32), torch.randint(0, 7, (64,))
    ours = torch.nn.functional.cross_entropy(head(embeddings, labels, margin), labels)
    torch.testing.assert_close(ours, reference(embeddings, labels), rtol=1e-4, atol=1e-4)


def test_arcface_without_labels_has_no_margin():
    space = definitions("2.2", "add_margin", "ArcFace")
    head = space["ArcFace"](16, 4, 10.0)
    embeddings = torch.randn(5, 16)
    expected = 10 * torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(head.centres).T
    torch.testing.assert_close(head(embeddings), expected)


def test_verification_rates_agree_with_counting():
    verify = definitions("2.2", "verify")["verify"]
    rng = np.random.default_rng(0)
    same = rng.random(20000) < 0.2
    scores = rng.normal(size=20000) + 1.5 * same
    table, _ = verify(scores, same, "test")
    for row in table[:3]:
        accepted = scores >= row["threshold"]
        assert accepted[~same].mean() <= row["far"]
        assert abs(accepted[same].mean() - row["tar"]) < 1e-9
    assert np.isnan(verify(scores[:200], same[:200], "few")[0][-1]["tar"]), "200 pairs cannot show a rate of 1e-4"


def test_three_point_fit_is_exact_and_survives_a_line():
    fit = definitions("1.5", "fit_affine")["fit_affine"]
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(4, 3, 2)) * 20, rng.normal(size=(3, 2)) * 20
    source[3] = [[0, 0], [1, 1], [2, 2]]
    matrix = fit(source, target)
    assert np.isnan(matrix[3]).all()
    moved = source[:3] @ np.swapaxes(matrix[:3, :, :2], 1, 2) + matrix[:3, None, :, 2]
    np.testing.assert_allclose(moved, np.broadcast_to(target, moved.shape), atol=1e-8)


def test_spread_out_beats_chance_and_never_repeats():
    spread_out = definitions("1.1", "spread_out")["spread_out"]
    rng = np.random.default_rng(2)
    table = np.full((3, 30), -1)
    for person, count in enumerate((20, 25, 30)):
        table[person, :count] = rng.permutation(1000)[:count]
    bits = rng.random((3, 30, 40)) < 0.3
    chosen = spread_out(table, bits, 20)
    assert (chosen >= 0).all()
    assert all(len(set(row)) == 20 for row in chosen)
