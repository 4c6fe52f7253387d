"""4.1 and 4.2: a step agrees with the plain recipe, runs resume, scores say what they say."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from conftest import copy_series, run_stages, small
from cyclegan_step import copy_of, new_run, plain_step
from PIL import Image
from scipy.linalg import sqrtm

import helpers
from faces import crops, cyclegan, parts, portraits


def test_a_step_agrees_with_the_plain_recipe():
    """Ours takes the two tasks of a generator in one batch; ten steps have the same losses."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    run = new_run(accelerator, 32, 8, 2, "transposed", 20)
    networks = copy_of(run.translators), copy_of(run.discriminators)
    adam = dict(lr=2e-4, betas=(0.5, 0.999))
    plain = [torch.optim.Adam(network.parameters(), **adam) for network in networks]
    assert accelerator.mixed_precision == "no"
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        a, b = torch.rand(2, 1, 3, 32, 32, generator=generator) * 2 - 1
        ours = cyclegan.train_step(run, a, b, 10.0, 0.5)
        loss, discriminator_loss = plain_step(*networks, plain, a, b)
        total = sum(float(ours[name]) for name in ("adversarial", "cycle", "identity"))
        assert total == pytest.approx(loss, rel=1e-3)
        assert float(ours["discriminator"]) == pytest.approx(discriminator_loss, rel=2e-3)


class LinearDiscriminators(torch.nn.Module):
    """Scores (N, 1, 1, 1) that are linear in the image, so their gradient is known."""

    def __init__(self, slopes):
        super().__init__()
        self.slopes = torch.nn.Parameter(slopes)

    def forward(self, a, b):
        pairs = zip((a, b), self.slopes, strict=True)
        return [(x * slope).sum((1, 2, 3)).view(-1, 1, 1, 1) for x, slope in pairs]


def test_the_gradient_penalty_is_half_the_squared_slope_at_real_images():
    torch.manual_seed(0)
    discriminators = LinearDiscriminators(torch.randn(2, 3, 8, 8))
    images = [torch.randn(5, 3, 8, 8) for _ in range(4)]
    plain, accuracy = cyclegan.discriminator_loss(discriminators, *images)
    loss, same = cyclegan.discriminator_loss(discriminators, *images, 4.0)
    expected = 0.5 * 4 * discriminators.slopes.pow(2).sum((1, 2, 3)).mean()
    torch.testing.assert_close(loss - plain, expected, rtol=1e-3, atol=1e-3)
    assert accuracy == same
    (loss - plain).backward()
    torch.testing.assert_close(
        discriminators.slopes.grad, 2 * discriminators.slopes.data, rtol=1e-3, atol=1e-3
    )
    assert not any(one.requires_grad for one in images), "what was given is left alone"


def test_the_learning_rate_is_constant_then_falls_to_zero():
    run = new_run(Accelerator(cpu=True), 32, 4, 1, "resize", 8)
    a, rates = torch.zeros(1, 3, 32, 32), []
    for _ in range(8):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in run.optimizers])
        cyclegan.train_step(run, a, a)
    expected = np.array([1, 1, 1, 1, 1, 0.75, 0.5, 0.25]) * 2e-4
    np.testing.assert_allclose(rates, np.stack([expected, expected], 1))


def test_items_are_unpaired_and_an_epoch_is_as_long_as_the_larger_set():
    a, b = (np.arange(n, dtype=np.uint8)[:, None, None, None] for n in (3, 7))
    torch.manual_seed(0)
    pairs = cyclegan.UnpairedImages(a, b)
    items = [[int(image) for image in pairs[index]] for index in range(len(pairs))]
    assert [first for first, _ in items] == [0, 1, 2, 0, 1, 2, 0]
    assert {int(pairs[0][1]) for _ in range(100)} == set(range(7)), "any image of B"
    assert len(cyclegan.unpaired_loader(a, b, 2)) == 3
    assert len(cyclegan.unpaired_loader(a, b, 100)) == 1, "a small set still has a batch"
    assert len(cyclegan.unpaired_loader(a, b, 2, steps=9)) == 9
    with pytest.raises(ValueError, match="2 processes share each batch: set BATCH_SIZE to 2"):
        cyclegan.unpaired_loader(a, b, 1, processes=2)


def test_augmentation_of_discriminators_is_random_and_passes_gradients():
    torch.manual_seed(0)
    view = cyclegan.discriminator_augmentation(32)
    discriminators = cyclegan.Discriminators(4, view)
    image = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    first, second = (discriminators(image, image)[0] for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()
    assert (image.grad != 0).float().mean() > 0.5
    plain = cyclegan.Discriminators(4)
    assert torch.equal(*(plain(image, image)[0] for _ in range(2)))
    augmented = view(torch.rand(3, 32, 32))
    assert augmented.shape == (3, 32, 32) and augmented.min() >= 0 and augmented.max() <= 1


def test_a_frozen_network_scores_too_and_only_its_heads_learn():
    torch.manual_seed(0)
    pair = cyclegan.Discriminators(4, None, "pretrained")
    run = cyclegan.Run(Accelerator(cpu=True), (cyclegan.Translators(4, 1), pair), 32, 8)
    before = copy_of(pair).state_dict()
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert pair(a, b)[0].shape == (2, 4, 2, 2), "PatchGAN's map and three more"
    losses, out = cyclegan.generator_losses(run.translators, pair, a, b, 10.0, 0.5)
    scores = pair(out["fake_a"], out["fake_b"])
    errors = [(score - 1).pow(2).mean((0, 2, 3)) for score in scores]
    expected = sum(error[0] + error[1:].mean() for error in errors)
    torch.testing.assert_close(losses["adversarial"], expected, rtol=1e-3, atol=0)
    cyclegan.train_step(run, a, b, gradient_penalty=10.0)
    after = pair.state_dict()
    moved = {name for name in before if not after[name].equal(before[name])}
    assert any(".heads." in name for name in moved)
    assert not any(".stages." in name for name in moved)
    assert all(p.requires_grad != (".stages." in name) for name, p in pair.named_parameters())
    pair.train()
    assert not any(stage.training for x in "ab" for stage in pair.further[x].stages)


def test_what_the_discriminators_see_too_must_be_there(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign\.pth is not a file of torchvision's sq"):
        cyclegan.frozen_stages(tmp_path / "foreign.pth")

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match="set discriminator_features to 'pretrained'"):
        cyclegan.frozen_stages("imagenet")


def test_pool_keeps_earlier_images_and_is_part_of_the_state():
    def through(pool, numbers):
        batches = (torch.full((1, 3, 1, 1), float(number)) for number in numbers)
        return [pool(batch)[0, 0, 0, 0].item() for batch in batches]

    torch.manual_seed(0)
    pool, other = cyclegan.ImagePool(3, 1), cyclegan.ImagePool(3, 1)
    out = through(pool, range(40))
    assert out[:3] == [0, 1, 2]
    assert any(value < number for number, value in enumerate(out)), "some come from earlier"
    other.load_state_dict(pool.state_dict())
    torch.manual_seed(5)
    first = through(pool, range(100, 109))
    torch.manual_seed(5)
    assert first == through(other, range(100, 109))


def small_run(tmp_path, kids, chooses=True, features=""):
    """A run of four epochs whose evaluator gives `kids` in turn; what it was shown."""
    split = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(cpu=True, dataloader_config=split)
    accelerator.init_trackers("test")
    rng = np.random.default_rng(0)
    sets = rng.integers(0, 255, (2, 3, 36, 36, 3), dtype=np.uint8)
    loader = cyclegan.unpaired_loader(*sets, 1)
    torch.manual_seed(0)
    view = cyclegan.discriminator_augmentation(32)
    networks = cyclegan.Translators(4, 1), cyclegan.Discriminators(4, view, features)
    run = cyclegan.Run(accelerator, networks, 32, 4 * len(loader), pool_size=4)
    checkpoint = helpers.Checkpoint(accelerator, tmp_path / "checkpoint", {}, run.kept)
    shown, kid = [], iter(kids)

    def evaluate(network):
        shown.append({name: value.clone() for name, value in network.state_dict().items()})
        value = next(kid)
        return {"kid": value, "kid_to_a": value, "kid_to_b": 10 - value}

    sheet = np.zeros((8, 8, 3), np.uint8)
    evaluator = SimpleNamespace(kid=evaluate, sheet=lambda network: sheet, chooses=chooses)
    arguments = run, accelerator.prepare(loader), checkpoint, evaluator, tmp_path
    return run, shown, lambda: cyclegan.train(*arguments, 4, noise=0.05)


def test_each_generator_is_kept_at_its_lowest_kid(tmp_path):
    """Of the second half: `to_a` has its lowest in the second epoch, `to_b` in the third."""
    run, shown, train = small_run(tmp_path, [3.0, 1.0, 2.0, 1.5])
    history = train()
    assert history["kid_to_a"].tolist() == [3.0, 1.0, 2.0, 1.5]
    names = {part: next(n for n in shown[0] if n.startswith(part)) for part in ("to_a", "to_b")}
    for part, best in (("to_a", 1), ("to_b", 2)):
        kept = run.best.state_dict()[names[part]]
        same = [torch.equal(kept, epoch[names[part]]) for epoch in shown]
        assert same == [epoch == best for epoch in range(4)], part
    again, _, resume = small_run(tmp_path, [])
    pd.testing.assert_frame_equal(resume(), history)
    for name, value in again.best.state_dict().items():
        assert torch.equal(value, run.best.state_dict()[name]), "part of the state"


@pytest.mark.parametrize("features", ["", "pretrained"])
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path, features):
    run, _, train = small_run(tmp_path / "whole", [4.0, 3.0, 2.0, 1.0], features=features)
    history = train()

    def stop(after):
        yield from (4.0, 3.0)[:after]
        raise KeyboardInterrupt

    _, _, broken = small_run(tmp_path / "stopped", stop(2), features=features)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        broken()
    resumed, _, resume = small_run(tmp_path / "stopped", [2.0, 1.0], features=features)
    torch.manual_seed(123)  # the state that is loaded has random numbers of its own
    again = resume()
    columns = [name for name in history if name != "seconds"]
    pd.testing.assert_frame_equal(again[columns], history[columns], rtol=1e-5)
    for name, value in run.kept.state_dict().items():
        assert torch.allclose(value, resumed.kept.state_dict()[name], atol=1e-5), name


def test_translators_are_saved_and_loaded_as_a_folder(tmp_path):
    model = cyclegan.Translators(4, 1, "transposed", residual=True).eval()
    helpers.save_model(model, tmp_path / "model")
    loaded = helpers.load_model(cyclegan.Translators.from_pretrained, tmp_path / "model", "4.1")
    expected = {"channels": 4, "blocks": 1, "upsampling": "transposed", "residual": True}
    assert loaded.settings == expected
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.to_b(image), loaded.to_b(image))


def test_a_residual_generator_begins_as_a_copy():
    generator = cyclegan.Generator(4, 1, residual=True)
    torch.nn.init.zeros_(generator[-1].weight)
    torch.nn.init.zeros_(generator[-1].bias)
    image = torch.rand(1, 3, 32, 32) * 1.8 - 0.9
    with torch.inference_mode():
        torch.testing.assert_close(generator(image), image)
        generator.residual = False
        assert not generator(image).any(), "the paper's knows nothing of its input then"


def test_a_portrait_in_full_detail_follows_the_lines_of_its_windows():
    """By sums over windows, as in the guided filter, at a pixel inside; flat stays flat."""
    rng = np.random.default_rng(0)
    small, portrait = rng.random((2, 3, 20, 20))
    light = np.tensordot([0.2989, 0.587, 0.114], small, 1)
    lines = np.zeros((2, 3, 20, 20))
    for y, x in np.ndindex(16, 16):
        window = np.s_[y : y + 5, x : x + 5]
        inputs = light[window].ravel()
        for channel in range(3):
            colours = portrait[channel][window].ravel()
            slope = np.cov(inputs, colours, bias=True)[0, 1]
            slope += 1e-2 * colours.mean() / (inputs.mean() + 0.02)
            slope /= inputs.var() + 1e-2
            level = colours.mean() - slope * inputs.mean()
            lines[:, channel, y + 2, x + 2] = slope, level
    slope, level = lines[:, :, 8:13, 8:13].mean((2, 3))
    tensors = [torch.tensor(array[None]).float() for array in (portrait, small)]
    found = portraits.in_full_detail(*tensors, tensors[1])[0, :, 10, 10]
    expected = np.clip(slope * light[10, 10] + level, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    grey = torch.full((1, 3, 20, 20), 0.4)
    flat = portraits.in_full_detail(grey / 2, grey, torch.full((1, 3, 50, 50), 0.4))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.2), atol=1e-5, rtol=0)


def test_a_portrait_keeps_the_details_of_a_large_face():
    """The generator sees 32 px; a line one pixel wide in the photograph stays a line."""
    model = portraits.PortraitModel(4, 1, residual=True, size=32).eval()
    torch.nn.init.zeros_(model.generator[-1].weight)
    torch.nn.init.constant_(model.generator[-1].bias, 0.5)
    image = torch.rand(1, 3, 200, 200) * 0.5 + 0.2
    with torch.inference_mode():
        assert model(image).shape == image.shape
        assert model(image).mean() > image.mean() + 0.05, "the change reaches it"
    photograph = np.full((300, 300, 3), 120, np.uint8)
    photograph[:, 150] = 20
    points = portraits.middle_points(photograph)
    line = portraits.translate_faces(model, photograph, points)[120:180, 148:153].mean((0, 2))
    assert (line > photograph[150, 148:153, 0]).all()
    assert line[2] < line[[0, 4]].min() - 40


def test_statistics_are_taken_in_float32(monkeypatch):
    seen, plain = [], torch.nn.InstanceNorm2d.forward

    def forward(self, images):
        seen.append(images.dtype)
        return plain(self, images)

    monkeypatch.setattr(torch.nn.InstanceNorm2d, "forward", forward)
    with torch.autocast("cpu", torch.bfloat16):
        cyclegan.Generator(8, 2, "resize")(torch.zeros(1, 3, 32, 32))
    assert set(seen) == {torch.float32}


def test_flat_images_give_finite_gradients_in_half_precision():
    generator = cyclegan.Generator(8, 2, "resize")
    with torch.autocast("cpu", torch.bfloat16):
        out = generator(torch.full((1, 3, 32, 32), -1.0))
    out.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in generator.parameters())


def test_distances_know_the_same_from_the_other():
    rng = np.random.default_rng(0)
    one, same, other = (
        torch.tensor(rng.normal(shift, 1, (300, 16)), dtype=torch.float32)
        for shift in (0, 0, 1.5)
    )
    state = torch.get_rng_state()
    kid_same, std, fid_same = cyclegan.distances(one, same)
    kid_other, _, fid_other = cyclegan.distances(one, other)
    assert torch.equal(state, torch.get_rng_state()), "the training's random numbers go on"
    assert abs(kid_same) < 3 * std
    assert kid_other > 10 * abs(kid_same)
    assert fid_other > 3 * fid_same
    mean = float((one.mean(0) - other.mean(0)).square().sum())
    first, second = (np.cov(x.numpy().T) for x in (one, other))
    expected = mean + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert fid_other == pytest.approx(expected, rel=1e-3)
    assert np.isnan(cyclegan.distances(one[:299], same)[2]), "too few images for FID"


@pytest.mark.parametrize(
    ("count", "held"), [(0, 0), (5, 0), (6, 2), (30, 6), (150, 30), (3400, 100)]
)
def test_a_fifth_of_the_training_images_is_held_out(count, held):
    chosen = cyclegan.held_out(count)
    assert (len(chosen), chosen.sum()) == (count, held)


def test_too_few_validation_images_choose_no_epoch(tmp_path):
    """KID is lowest in the second epoch, and the fourth is kept."""
    run, shown, train = small_run(tmp_path, [3.0, 1.0, 2.0, 1.5], chooses=False)
    history = train()
    assert history["kept_to_a"].tolist() == history["kept_to_b"].tolist() == [1, 2, 3, 4]
    kept = run.best.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in shown[3].items())


def test_an_evaluator_chooses_by_validation_images_and_else_watches_test_images():
    """Noise against noise of a light that only the validation images have."""
    rng = np.random.default_rng(0)

    def images(count, light):
        return rng.integers(light, light + 50, (count, 8, 8, 3)).astype(np.uint8)

    features = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten())
    features.register_parameter("any", torch.nn.Parameter(torch.zeros(1)))
    same = SimpleNamespace(to_a=features[:0], to_b=features[:0])
    for network in (same.to_a, same.to_b):
        network.register_parameter("any", features.any)
    train = {x: images(30, 0) for x in "AB"}
    for count, chooses in ((20, True), (19, False)):
        validation = {x: images(count, 200) for x in "AB"}
        tests = {x: images(30, 0) for x in "AB"}
        evaluator = cyclegan.Evaluator(train, validation, tests, None, "mean", features)
        assert evaluator.chooses == chooses
        assert (evaluator.kid(same)["kid"] > 0.1) == chooses


def test_the_encoder_that_comes_with_the_project_gives_features():
    network = cyclegan.feature_network("pretrained", None, "cpu")[1]
    images = torch.stack([torch.full((3, 32, 32), -0.5), torch.full((3, 32, 32), 0.5)])
    features = network(images)
    assert features.shape == (2, 1280)
    assert (features[0] - features[1]).abs().max() > 0.1


@pytest.mark.parametrize("stage", ["cyclegan", "portrait"])
def test_scores_hold_both_directions_and_both_references(series, stage):
    table = pd.read_csv(series / f"csv/sample/{stage}_scores.csv")
    for direction in ("A->B", "B->A"):
        rows = table[table["direction"] == direction].set_index("images")
        assert {"translated", "untranslated", "real"} <= set(rows.index)
        assert np.isfinite(rows[["kid", "kid_std"]]).all(axis=None)
        assert rows["fid"].isna().all(), "too few images for FID"
        assert rows.loc["translated", "cycle_l1"] > 0
    if stage == "portrait":
        assert {"short run, all faces", "short run, filtered"} <= set(table["images"])


def test_portraits_are_made_and_only_the_face_is_changed(series):
    made = sorted((series / "runs/sample/portraits").glob("*.png"))
    assert made
    folder = series / "data/sample/selfie2portrait/testA"
    before = helpers.read_photograph(folder / made[0].stem)
    after = helpers.read_photograph(made[0])
    assert before.shape == after.shape
    change = np.abs(before.astype(int) - after).mean(2)
    height, width = change.shape
    assert change[height // 4 : -height // 4, width // 4 : -width // 4].mean() > 5
    border = [change[[0, -1]].ravel(), change[:, [0, -1]].ravel()]
    assert np.concatenate(border).mean() < 1, "it fades out before the photograph ends"


def test_the_portrait_model_translates_as_the_notebook_did(series):
    """The folder that 4.2 leaves is all that is needed: size, crop and network are in it."""
    folder = series / "runs/sample/portrait"
    model = helpers.load_model(portraits.PortraitModel.from_pretrained, folder, "4.2")
    translators = helpers.load_model(
        cyclegan.Translators.from_pretrained,
        series / "runs/sample/portrait_training/translators",
        "4.2",
    )
    images = torch.rand(1, 3, model.size, model.size)
    with torch.inference_mode():
        expected = (translators.to_b(images * 2 - 1) + 1) / 2
        torch.testing.assert_close(model(images), expected)


def write_images(folder, count, seed, size=(80, 60)):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        image = Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        image.save(folder / f"{index}.png")
    return folder


def test_any_two_folders_serve_and_broken_images_are_rejected(series, tmp_path):
    """Different sizes, no split, one truncated image: it is named, the rest is translated."""
    one = write_images(tmp_path / "one", 6, 0)
    two = write_images(tmp_path / "two", 5, 1, (50, 90))
    (one / "3.png").write_bytes((one / "3.png").read_bytes()[:900])
    settings = small("4.1") | {"epochs": 1, "folder_a": one, "folder_b": two}
    copy_series(series, tmp_path / "out")
    run_stages(tmp_path / "out", "4.1", **settings)
    rejected = pd.read_csv(tmp_path / "out/csv/sample/rejected.csv")
    rejected = rejected.query("image_id == 'one/3.png'")
    assert len(rejected) == 1
    assert "decoded" in rejected["reason"].iloc[0]
    model = tmp_path / "out/runs/sample/cyclegan_one2two/translators"
    assert (model / "model.safetensors").exists()


def test_folders_that_cannot_serve_are_refused(tmp_path):
    one = write_images(tmp_path / "one", 5, 0)
    few = write_images(tmp_path / "few", 2, 0)
    (tmp_path / "empty").mkdir()
    for a, b, message in (
        (one, one, "same folder"),
        (one, tmp_path / "empty", r"no image in .*empty"),
        (one, tmp_path / "nowhere", r"no folder .*nowhere"),
        (one, few, "few: at least 4 images are needed, it has 2"),
        (one, "", "belong together"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            cyclegan.image_sets(tmp_path, a, b)


def test_a_file_that_holds_no_mobilenet_is_named(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign\.pth is not a file of torchvision's mob"):
        cyclegan.mobilenet_features(tmp_path / "foreign.pth")


def test_each_face_is_cut_from_the_photograph_as_it_was():
    """Two faces that overlap: the second is not a translation of the first one's."""
    model = portraits.PortraitModel(4, 1, residual=True, size=32)
    model.generator.forward = lambda images: -images
    photograph = np.full((200, 260, 3), 190, np.uint8)
    points = np.stack([portraits.middle_points(photograph)[0] + [[x, 0]] for x in (-40, 40)])
    both = portraits.translate_faces(model, photograph, points)
    second = portraits.translate_faces(model, photograph, points[1:])
    assert (both[100, 170:190] == second[100, 170:190]).all()
    assert both[100, 170:190].max() < 100


def test_background_and_clothing_keep_their_pixels():
    label_map = np.zeros((64, 64), np.uint8)
    label_map[:, 20:44] = 1 + parts.PARTS.index("hair")
    label_map[:, 54:] = 1 + parts.PARTS.index("cloth")
    head = portraits.head_weight(label_map)
    assert head[32, 32] == pytest.approx(1)
    assert head[32, 5] == pytest.approx(0)
    assert head[32, 60] == pytest.approx(0)
    photograph = np.full((64, 64, 3), 90, np.uint8)
    white = np.full((64, 64, 3), 255, np.uint8)
    pasted = portraits.paste_back(photograph, white, np.eye(2, 3), head=head)
    assert (pasted[32, 32] == 255).all()
    assert (pasted[:, :14] == 90).all()


def test_pasting_back_leaves_the_rest():
    photograph = np.full((100, 120, 3), 50, np.uint8)
    matrix = crops.square_matrix(np.array([40.0, 30, 40, 40]), 64)
    pasted = portraits.paste_back(photograph, np.full((64, 64, 3), 200, np.uint8), matrix)
    assert (pasted[50, 60] == 200).all()
    outside = np.ones((100, 120), bool)
    outside[29:72, 39:82] = False
    assert (pasted[outside] == 50).all()
    assert 50 < pasted[50, 42, 0] < 200, "a soft edge"


def test_a_face_in_the_middle_gives_the_middle_square():
    photograph = np.zeros((100, 140, 3), np.uint8)
    points = portraits.middle_points(photograph, 1.25)
    matrix = portraits.portrait_matrix(points, 64, 1.25)[0]
    corners = np.array([[-0.5, -0.5], [63.5, 63.5]])
    back = crops.apply_affine(crops.invert_affine(matrix), corners)
    np.testing.assert_allclose(back, [[19.5, -0.5], [119.5, 99.5]], atol=1e-6)
