"""The program that draws the people of the sample: exact points and labels, evenly spread."""

import numpy as np
import pytest

draw_people = pytest.importorskip("draw_people", reason="needs notebooks/draw_requirements.txt")
from draw_photographs import make_shot, photograph, plain_shot
from draw_sample import make_people, overlapping_parts

PART = draw_people.PART


@pytest.fixture(scope="module")
def people():
    return make_people(np.random.default_rng(0), 72)


@pytest.fixture(scope="module")
def drawn(people):
    """Photographs of three people: (image, landmarks, parts, lens)."""
    found = []
    for person in people[:3]:
        model = draw_people.Model(person, 3000)
        shot = plain_shot(person, angles=[15, 0, 5], earrings=True, neckline="shirt")
        found.append(photograph(model, shot, (300, 400), 80, (150, 160)))
    return found


def distance_to(mask, point):
    """Pixels from a point to the nearest pixel of a mask."""
    rows, columns = np.nonzero(mask)
    return np.hypot(columns - point[0], rows - point[1]).min()


def test_landmarks_lie_in_their_parts(drawn):
    for _, points, part, _ in drawn:
        for name, point in zip(("r_eye", "l_eye", "nose"), points[:3], strict=True):
            assert distance_to(part == PART[name], point) <= 2, name
        lips = np.isin(part, [PART["u_lip"], PART["l_lip"], PART["mouth"]])
        assert max(distance_to(lips, point) for point in points[3:]) <= 3


def test_every_part_of_a_face_is_there_and_on_its_side(drawn):
    for image, _, part, lens in drawn:
        assert image.shape == (400, 300, 3) and image.dtype == np.uint8
        for name in ("skin", "nose", "u_lip", "l_lip", "neck", "cloth", "hair"):
            assert (part == PART[name]).sum() > 100, name
        for name in ("eye", "brow"):
            left, right = (
                np.nonzero(part == PART[f"{side}_{name}"])[1].mean() for side in "lr"
            )
            assert left > right, f"the person's left {name} is on the right of the image"
        masks = overlapping_parts(part, lens)
        assert not masks["skin"][part == PART["hair"]].any()
        assert masks["skin"][part == PART["nose"]].all(), "skin continues under the nose"


def test_the_same_shot_gives_the_same_bytes(people):
    """Nothing depends on an order or a state: two models of a person draw the same."""
    person = people[5]
    shot = make_shot(np.random.default_rng(1), person, covered=1)
    first, second = (photograph(draw_people.Model(person, 2000), shot) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_tones_ages_and_sexes_are_spread_evenly(people):
    tones, ages = (np.array([getattr(p, name) for p in people]) for name in ("tone", "age"))
    assert np.histogram(tones, 6, (0, 9))[0].min() >= 10
    assert np.histogram(ages, 4, (18, 70))[0].min() >= 15
    assert sum(person.male for person in people) == 36
