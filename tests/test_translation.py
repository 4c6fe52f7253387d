"""4.1 and 4.2: one step agrees with the plain recipe, the pool is kept, any two folders serve, scores are what they say."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import copy_series, known, run_stages
from cyclegan_step import copy_of, plain_step
from PIL import Image

import helpers

cyclegan = helpers.shared_definitions("4.1_cyclegan")


def test_a_step_agrees_with_the_plain_recipe():
    """Ours takes the two jobs of a generator in one batch; losses of ten steps agree with one pass for each."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    run = cyclegan.new_run(accelerator, 32, 8, 2, "transposed", 10, pool_size=0)
    translators, critics = copy_of(run.translators), copy_of(run.critics)
    plain = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in (translators, critics)]
    assert accelerator.mixed_precision == "no"
    for step in range(10):
        a, b = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1
        ours = cyclegan.train_step(run, a, b, 10.0, 0.5)
        loss, critic_loss = plain_step(translators, critics, plain, a, b)
        assert sum(float(ours[name]) for name in ("fooling", "cycle", "identity")) == pytest.approx(loss, rel=1e-3)
        assert float(ours["critics"]) == pytest.approx(critic_loss, rel=2e-3)


def test_critics_see_each_picture_in_another_view_and_gradients_come_back():
    torch.manual_seed(0)
    critics = cyclegan.Critics(4, cyclegan.critic_views(32))
    picture = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    first, second = (critics(picture, picture)[0] for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()
    assert (picture.grad != 0).float().mean() > 0.5
    plain = cyclegan.Critics(4)
    assert torch.equal(*(plain(picture, picture)[0] for _ in range(2)))
    seen = cyclegan.critic_views(32)(torch.rand(3, 32, 32))
    assert seen.shape == (3, 32, 32) and seen.min() >= 0 and seen.max() <= 1


def test_pool_keeps_old_pictures_and_is_part_of_the_state():
    torch.manual_seed(0)
    pool = cyclegan.Pool(3, 1)
    out = [pool(torch.full((1, 3, 1, 1), float(number)))[0, 0, 0, 0].item() for number in range(40)]
    assert out[:3] == [0, 1, 2]
    assert any(value < number for number, value in enumerate(out)), "some come from earlier"
    other = cyclegan.Pool(3, 1)
    other.load_state_dict(pool.state_dict())
    torch.manual_seed(5)
    first = [pool(torch.full((1, 3, 1, 1), 100.0 + n))[0, 0, 0, 0].item() for n in range(9)]
    torch.manual_seed(5)
    assert first == [other(torch.full((1, 3, 1, 1), 100.0 + n))[0, 0, 0, 0].item() for n in range(9)]


def test_the_epoch_with_the_lowest_kid_goes_on(tmp_path):
    accelerator = Accelerator(cpu=True)
    accelerator.init_trackers("test")
    torch.manual_seed(0)
    run = cyclegan.new_run(accelerator, 32, 4, 1, "resize", 8)
    rng = np.random.default_rng(0)
    stores = {f"{part}{domain}": rng.integers(0, 255, (2, 36, 36, 3), dtype=np.uint8) for part in ("train", "test") for domain in "AB"}
    settings = dict(epochs=4, batch_size=1, rate=2e-4, seed=0, cycle_weight=10.0, identity_weight=0.5)
    checkpoint = helpers.Checkpoint(accelerator, tmp_path / "checkpoint", settings, run.kept)
    seen, kid = [], iter([3.0, 1.0, 2.0, 1.5])

    def judge(network):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return dict.fromkeys(("kid_to_a", "kid_to_b"), next(kid))

    cyclegan.train(run, cyclegan.Domains(stores, 32, accelerator.device), checkpoint, settings, tmp_path, judge)
    first = next(name for name in seen[1] if name.endswith("weight"))
    assert torch.equal(run.best.state_dict()[first], seen[1][first])
    assert not torch.equal(run.best.state_dict()[first], seen[3][first])
    torch.manual_seed(1)
    again = cyclegan.new_run(accelerator, 32, 4, 1, "resize", 8)
    helpers.Checkpoint(accelerator, tmp_path / "checkpoint", settings, again.kept).resume()
    assert torch.equal(again.best.state_dict()[first], seen[1][first]), "it is part of the state"


def test_statistics_are_taken_in_float32(monkeypatch):
    seen, plain = [], torch.nn.InstanceNorm2d.forward
    monkeypatch.setattr(torch.nn.InstanceNorm2d, "forward", lambda self, images: seen.append(images.dtype) or plain(self, images))
    with torch.autocast("cpu", torch.bfloat16):
        cyclegan.Generator(8, 2, "resize")(torch.zeros(1, 3, 32, 32))
    assert set(seen) == {torch.float32}


def test_flat_pictures_give_finite_gradients_in_half_precision():
    generator = cyclegan.Generator(8, 2, "resize")
    with torch.autocast("cpu", torch.bfloat16):
        out = generator(torch.full((1, 3, 32, 32), -1.0))
    out.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in generator.parameters())


def test_distances_know_the_same_from_the_other():
    rng = np.random.default_rng(0)
    one, same, other = (torch.tensor(rng.normal(shift, 1, (60, 16)), dtype=torch.float32) for shift in (0, 0, 1.5))
    kid_same, spread, fid_same = cyclegan.distances(one, same)
    kid_other, _, fid_other = cyclegan.distances(one, other)
    assert abs(kid_same) < 3 * spread
    assert kid_other > 10 * abs(kid_same)
    assert fid_other > 3 * fid_same
    mean, cov = (one.mean(0) - other.mean(0)).square().sum(), [np.cov(x.numpy().T) for x in (one, other)]
    from scipy.linalg import sqrtm

    assert fid_other == pytest.approx(float(mean) + np.trace(cov[0] + cov[1] - 2 * sqrtm(cov[0] @ cov[1]).real), rel=1e-3)


@pytest.mark.parametrize("stage", ["cyclegan", "portrait"])
def test_scores_hold_both_ways_and_both_marks(series, stage):
    table = pd.read_csv(series / f"csv/sample/{stage}_scores.csv")
    for way in ("A->B", "B->A"):
        rows = table[table["direction"] == way].set_index("pictures")
        assert {"translated", "untranslated", "real"} <= set(rows.index)
        assert np.isfinite(rows[["kid", "kid_spread", "fid"]]).all(axis=None)
        assert rows.loc["translated", "cycle_l1"] > 0
    if stage == "portrait":
        assert {"short run, all faces", "short run, filtered"} <= set(table["pictures"])


def test_portraits_are_made_and_only_the_face_is_changed(series):
    made = sorted((series / "runs/sample/portraits").glob("*.png"))
    assert made
    before = helpers.read_photograph(next((series / "data/sample/selfie2portrait/testA").glob(f"{made[0].stem}.*")))
    after = helpers.read_photograph(made[0])
    assert before.shape == after.shape
    change = np.abs(before.astype(int) - after).mean(2)
    height, width = change.shape
    assert change[height // 4 : -height // 4, width // 4 : -width // 4].mean() > 5
    assert np.concatenate([change[[0, -1]].ravel(), change[:, [0, -1]].ravel()]).mean() < 1, "it fades out before the photograph ends"


def pictures(folder, count, seed, size=(80, 60)):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_any_two_folders_serve_and_broken_pictures_are_set_aside(series, tmp_path):
    """Different sizes, no train and test folders, one truncated picture: it is named, the rest is translated."""
    one, two = pictures(tmp_path / "one", 6, 0), pictures(tmp_path / "two", 5, 1, (50, 90))
    (one / "3.png").write_bytes((one / "3.png").read_bytes()[:900])
    settings = known(("4.1",)) | {"epochs": 1, "folder_a": one, "folder_b": two}
    copy_series(series, tmp_path / "out")
    run_stages(tmp_path / "out", "4.1", **settings)
    rejected = pd.read_csv(tmp_path / "out/csv/sample/rejected.csv").query("image_id == 'one/3.png'")
    assert len(rejected) == 1
    assert "decoded" in rejected["reason"].iloc[0]
    assert (tmp_path / "out/runs/sample/cyclegan_one2two/translators.pt").exists()


def test_folders_that_cannot_serve_are_refused(tmp_path):
    one = pictures(tmp_path / "one", 5, 0)
    few = pictures(tmp_path / "few", 2, 0)
    (tmp_path / "empty").mkdir()
    for a, b, message in (
        (one, one, "same folder"),
        (one, tmp_path / "empty", "no picture in .*empty"),
        (one, tmp_path / "nowhere", "no folder .*nowhere"),
        (one, few, "few holds 2 pictures"),
        (one, None, "belong together"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            cyclegan.two_domains(tmp_path, a, b)


def test_pasting_back_leaves_the_rest(tmp_path):
    photograph = np.full((100, 120, 3), 50, np.uint8)
    matrix = helpers.square_matrix(np.array([40.0, 30, 40, 40]), 64)
    pasted = helpers.paste_back(photograph, np.full((64, 64, 3), 200, np.uint8), matrix)
    assert (pasted[50, 60] == 200).all()
    outside = np.ones((100, 120), bool)
    outside[29:72, 39:82] = False
    assert (pasted[outside] == 50).all()
    assert 50 < pasted[50, 42, 0] < 200, "a soft edge"


def test_shared_definitions_are_those_of_the_notebook():
    assert isinstance(cyclegan, SimpleNamespace)
    assert "class Generator" in cyclegan.source
    assert not hasattr(cyclegan, "epochs"), "parameters are the later notebook's own"
