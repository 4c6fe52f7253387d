"""Settings and machines: what cannot work is refused, what was missed is caught up with."""

import errno
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import run
import torch
import yaml
from conftest import ROOT, SMALL
from packaging.requirements import Requirement
from torch import nn

import helpers
from faces import arcface, cyclegan, focal, landmarks, recognition, segmentation
from notebooks import files, settings

TRAINING = ("1.4", "2.1", "2.2", "3.2", "3.3", "3.4", "4.1", "4.2")


def defaults(stage):
    return {name: value for name, (value, _) in run.parameters_of(stage).items()}


# ------------------------------------------------------------------------------------ settings

NORMALISED = ("1.4", "2.1", "2.2", "3.2", "3.3", "3.4")
REFUSED = [
    *[(s, {"batch_size": 1}, "2 up is expected, since batch normal") for s in NORMALISED],
    *[(s, {"batch_size": v}, "whole number from") for s in TRAINING for v in (0, -8, "8", 2.5)],
    *[
        (s, {"epochs": v}, "whole number from 1 up")
        for s in TRAINING
        for v in (0, -1, True, None)
    ],
    *[
        (s, {"learning_rate": v}, "a number above 0")
        for s in TRAINING
        for v in (0, -1e-3, "1e-3")
    ],
    *[("2.1", {"learning_rate": float(v)}, "a number above 0") for v in ("nan", "inf")],
    *[(s, {"seed": -1}, "from 0 to 4000000000") for s in (*TRAINING, "0.1", "1.1", "3.1")],
    *[(s, {"precision": v}, "'no', 'bf16' or 'fp16'") for s in TRAINING for v in ("fp32", 16)],
    *[(s, {"device": v}, "is not available here") for s in TRAINING for v in ("gpu", "cuda:7")],
    *[(s, {"tracker": "tensorbord"}, "no tracker 'tensorbord'") for s in TRAINING],
    *[
        ("1.4", {"input_size": v}, "multiple of 64 from 64")
        for v in (0, -128, 32, 100, 126, 130)
    ],
    *[("1.4", {"stride": 2, "input_size": v}, "multiple of 32") for v in (16, 48, 127)],
    *[("1.4", {"stride": v}, "choose 2 or 4") for v in (0, 1, 3, 8)],
    *[("1.4", {"channels": v}, "multiple of 4") for v in (0, 2, 30)],
    ("1.4", {"stacks": 0}, "from 1 up"),
    ("1.4", {"sigma": 9.0}, "a number above 0, at most 3.75"),
    ("1.4", {"sigma": 0}, "a number above 0"),
    ("1.4", {"start": "imagenet"}, "'scratch' or 'pretrained'"),
    ("1.4", {"start": "pretrained", "stacks": 4}, "needs stacks=2, channels=96 and stride=4"),
    *[
        (s, {"alignment": v}, "'none', '2', '3' or '5'")
        for s in ("2.1", "2.2")
        for v in ("4", 5)
    ],
    *[
        (s, {"face_size": v}, "from 32 up")
        for s in ("2.1", "2.2")
        for v in (0, -112, 16, 112.0)
    ],
    *[(s, {"start": "Imagenet"}, "'imagenet'") for s in ("2.1", "2.2", "3.3")],
    ("2.2", {"start": "pretrained", "backbone": "resnet18"}, 'needs backbone="mobilenet_v2"'),
    ("2.1", {"backbone": "resnet50"}, "'resnet18' or 'mobilenet_v2'"),
    ("3.4", {"occluders": "nowhere.json"}, "the path of a file"),
    ("3.4", {"occluder_sources": "some"}, "choose 'none', 'even', 'odd' or 'all'"),
    ("4.1", {"gradient_penalty": -1.0}, "gradient_penalty"),
    ("2.1", {"short_epochs": 0}, "from 1 up"),
    ("2.2", {"margin": 3.0}, "at most 1.5"),
    ("2.2", {"scale": 0}, "a number above 0"),
    *[
        ("3.2", {name: v}, "multiple of 32 from 32 up is expected, since the encoder")
        for name in ("table_size", "best_size", "best_crop")
        for v in (0, -64, 16, 100, 336, 500)
    ],
    *[("3.2", {name: 0}, "from 1 up") for name in ("table_epochs", "plain_epochs")],
    ("3.2", {"table_size": 96}, "too small for PAN"),
    ("3.2", {"architectures": ["pan"], "table_size": 64}, "pan with resnet34 cannot be used"),
    ("3.2", {"architectures": ["Unett"]}, "no architecture 'Unett': choose for instance Unet"),
    ("3.2", {"architectures": "Unet"}, "a list of names"),
    ("3.2", {"encoders": ["resnet43"]}, "no encoder 'resnet43': choose for instance resnet34"),
    ("3.2", {"encoders": ["tu-nothing"]}, "Unknown model"),
    ("3.2", {"encoders": ["vgg11"]}, "with vgg11 cannot be used at 128 px"),
    ("3.2", {"architectures": ["Linknet"], "encoders": ["mit_b0"]}, "not supported"),
    ("3.2", {"encoder_weights": "weights.pth"}, "the path of a file"),
    ("3.2", {"paste_share": 1.5}, "at most 1"),
    *[("3.3", {"size": v}, "multiple of 8 from 32") for v in (0, -256, 24, 100)],
    ("3.3", {"backbone": "resnet18"}, "'resnet50' or 'mobilenet_v2'"),
    ("3.3", {"start": "pretrained"}, 'needs backbone="mobilenet_v2"'),
    ("3.3", {"start": __file__}, 'needs backbone="mobilenet_v2"'),
    ("3.3", {"start": "nothing"}, "or the path of a file"),
    ("3.3", {"beta": 1.0}, "from 0, at most"),
    ("3.3", {"first_epochs": 0}, "from 1 up"),
    *[("3.4", {"size": v}, "multiple of 32 from 32") for v in (0, -256, 16, 250)],
    ("3.4", {"encoder": "resnet43"}, "no encoder 'resnet43'"),
    ("3.4", {"encoder": "densenet121"}, "DeepLabV3 with densenet121 cannot be used"),
    ("3.4", {"final_epochs": 0}, "from 1 up"),
    *[
        (s, {"size": v}, "multiple of 4 from 24 up is expected, since the generator")
        for s in ("4.1", "4.2")
        for v in (0, -4, 20, 30, 257)
    ],
    *[(s, {"upsampling": "nearest"}, "choose 'resize'") for s in ("4.1", "4.2")],
    *[(s, {"features": "vgg.pth"}, "the path of a file") for s in ("4.1", "4.2")],
    *[(s, {"discriminator_features": "vgg"}, "choose ''") for s in ("4.1", "4.2")],
    *[(s, {"classifier_steps": 0}, "from 1 up") for s in ("4.1", "4.2")],
    *[(s, {"cycle_weight": 0}, "above 0") for s in ("4.1", "4.2")],
    *[(s, {"pool_size": -1}, "from 0 up") for s in ("4.1", "4.2")],
    ("4.2", {"keep_sharpest": 0}, "above 0, at most 1"),
    *[("0.1", {"share": v}, "above 0, at most 1") for v in (0, -1, 30)],
    ("1.1", {"val_each": 20}, "leaves none for training"),
    ("1.1", {"further_criteria": "maybe"}, "'auto', 'yes' or 'no'"),
    ("1.5", {"landmarks": "mine"}, "'predicted' or 'annotated'"),
    ("3.1", {"test_count": -1}, "from 0 up"),
    ("5.1", {"recogniser": "facenet"}, "'arcface' or 'ce'"),
    ("5.1", {"false_accepts": 1.5}, "at most 1"),
]


@pytest.mark.parametrize(("stage", "changes", "reason"), REFUSED)
def test_a_setting_that_cannot_work_is_refused_in_one_sentence(stage, changes, reason):
    given = {"backbone": "resnet50"} if stage == "3.3" else {}
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        settings.check_settings(stage, defaults(stage) | given | changes)
    text = str(refused.value)
    assert "\n" not in text and len(text) < 220
    named = {*changes, *(name.removesuffix("s") for name in changes), "cannot be used"}
    assert any(name.lower() in text.lower() for name in named)


@pytest.mark.parametrize("profile", ["none", "quick", "outputs", "celeba", "weights"])
def test_the_settings_of_the_project_are_accepted(profile):
    for stage in run.NEEDS:
        values = defaults(stage) | run.profile_of("celeba", profile).get(stage, {})
        settings.check_settings(stage, values)
    for stage in TRAINING:
        settings.check_settings(stage, defaults(stage) | {"batch_size": 4096})
    tests = {name: value for name, value in SMALL.items() if name != "architectures"}
    for stage in run.NEEDS:
        known = {name: value for name, value in tests.items() if name in defaults(stage)}
        kept = {"architectures": ["FPN", "Segformer"]} if stage == "3.2" else {}
        settings.check_settings(stage, defaults(stage) | known | kept)


@pytest.mark.parametrize("stage", TRAINING)
def test_a_notebook_checks_its_own_settings_first(stage):
    """As in Jupyter: the line that it runs, with what the cell of parameters may hold."""
    cells = nbformat.read(run.notebook_of(stage), 4).cells
    cells = [cell.source for cell in cells if cell.cell_type == "code"]
    after = next(k for k, source in enumerate(cells) if source.startswith("dataset =")) + 1
    line = f'helpers.check_settings("{stage}", globals())'
    first = next(source for source in cells[after:] if "open_dataset(" in source)
    assert first.splitlines()[0] == line
    before = cells[after : cells.index(first)]
    assert all(source.startswith("#| export") for source in before), "definitions alone"
    later = {"share": -1, "margin": 9.0, "cells": 0}  # names that a later cell has given
    scope = {"helpers": helpers, **defaults(stage), **later, "margin": 0.1}
    exec(line, scope)
    with pytest.raises(ValueError, match="epochs=0 is not valid"):
        exec(line, scope | {"epochs": 0})


def test_processes_share_a_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for stage, wrong, right in (("2.1", (4, 6, 9), 8), ("4.1", (1, 2, 6), 4)):
        for value in wrong:
            with pytest.raises(ValueError, match="4 processes share each batch"):
                settings.check_settings(stage, defaults(stage) | {"batch_size": value})
        settings.check_settings(stage, defaults(stage) | {"batch_size": right})


@pytest.mark.parametrize(
    ("stage", "setting", "reason"),
    [
        ("1.4", "BATCH_SIZE=1", "batch normalisation"),
        ("all", "LEARNING_RATE=-1", "learning_rate=-1.0"),
        ("2.1", "short_epochs=0", "short_epochs=0"),
        ("4.2", "size=30", "multiple of 4"),
        ("3.2", "table_size=100", "multiple of 32"),
        ("1.5", "DEVICE=gpu", "DEVICE=gpu is not available here"),
        ("2.1", "alignment=4", "'none', '2', '3' or '5'"),
        ("2.1", "EPOCHS=ten", "a whole number is expected, like 40"),
        ("2.1", "use_spare=perhaps", "True or False is expected"),
    ],
)
def test_the_command_line_refuses_before_anything_runs(
    tmp_path, monkeypatch, stage, setting, reason
):
    """1.5 asks for DEVICE on behalf of 1.4, which it needs."""
    arguments = ["run.py", stage, "--set", f"OUTPUT={tmp_path}", setting]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=re.escape(reason)) as refused:
        run.main()
    assert "\n" not in str(refused.value)
    assert list(tmp_path.rglob("*.ipynb")) == []


def test_a_profile_of_ones_own_is_checked_too(tmp_path, monkeypatch):
    """YAML takes 1e-3 for text."""
    profile = {"2.1": yaml.safe_load("learning_rate: 1e-3")}
    monkeypatch.setattr(run, "profile_of", lambda dataset, name: profile)
    monkeypatch.setattr(sys, "argv", ["run.py", "2.1", "--set", f"OUTPUT={tmp_path}"])
    with pytest.raises(SystemExit, match="learning_rate='1e-3' is not valid"):
        run.main()


# ------------------------------------------------------- the limits are those of the networks


def trains(network, images, *more):
    """Whether a network takes a batch in training."""
    try:
        network.train()(images, *more)
    except (RuntimeError, ValueError):
        return False
    return True


def test_the_hourglass_takes_the_sizes_that_are_allowed():
    for stride, allowed, refused in (
        (4, (64, 128, 192), (32, 100, 126)),
        (2, (32, 96), (16, 48)),
    ):
        network = landmarks.StackedHourglass(1, 8, 5, stride)
        for size in allowed:
            assert trains(network, torch.zeros(2, 3, size, size)), size
            settings.check_settings("1.4", {"stride": stride, "input_size": size})
        for size in refused:
            assert not trains(network, torch.zeros(2, 3, size, size)), size
    network = landmarks.StackedHourglass(1, 8, 5, 4)
    assert not trains(network, torch.zeros(1, 3, 64, 64)), "batch normalisation"
    assert trains(landmarks.StackedHourglass(1, 4, 5, 4), torch.zeros(2, 3, 64, 64))


def test_recognisers_take_the_sizes_that_are_allowed():
    for kind in (recognition.Recogniser, arcface.ArcFaceRecogniser):
        network = kind([1, 2, 3], attributes=4, face_size=32)
        assert trains(network, torch.zeros(2, 3, 32, 32))
        assert not trains(network, torch.zeros(1, 3, 32, 32))
        assert not trains(network, torch.zeros(1, 3, 112, 112)), "at any size"


def test_segmentation_takes_the_sizes_that_are_allowed():
    """Without memory: every usual network in training, at the smallest size."""
    with torch.device("meta"):
        for architecture, encoder in itertools.product(
            settings.ARCHITECTURES, ("resnet18", "mobilenet_v2")
        ):
            network = segmentation.build(architecture, encoder, 19)
            least = 128 if architecture == "PAN" else 32
            assert trains(network, torch.zeros(2, 3, least, least)), architecture
        assert not trains(segmentation.build("PAN", "resnet18", 19), torch.zeros(2, 3, 96, 96))
        assert not trains(
            segmentation.build("FPN", "resnet18", 19), torch.zeros(2, 3, 100, 100)
        )
        deeplab = focal.DeepLab(19, "mobilenet_v2")
        assert trains(deeplab, torch.zeros(2, 3, 40, 40))
        assert not trains(deeplab, torch.zeros(2, 3, 100, 100))
        assert not trains(deeplab, torch.zeros(1, 3, 64, 64)), "batch normalisation"


def test_cyclegan_takes_the_sizes_that_are_allowed():
    generator, discriminator = cyclegan.Generator(2, 1), cyclegan.Discriminator(2)
    for size in (24, 28, 64):
        images = torch.zeros(1, 3, size, size)
        assert generator.train()(images).shape == images.shape
        assert trains(discriminator, images)
    assert not trains(generator, torch.zeros(1, 3, 30, 30))
    assert not trains(discriminator, torch.zeros(1, 3, 20, 20))


def test_a_network_that_needs_memory_is_tried_with_memory():
    settings.try_network("Unet", "mit_b0", 64)


def test_a_batch_of_two_has_images_without_a_face():
    """In 1.4 they are a third of the batch, and one at least."""
    cells = {cell.id: cell.source for cell in nbformat.read(run.notebook_of("1.4"), 4).cells}
    assert "without_a_face(max(1, len(images) // 3), images)" in cells["1c369509"]
    windows = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    scope = {"torch": torch, "COLOUR": landmarks.COLOUR, "no_faces": windows}
    exec(cells["noface05"], scope)
    for count in (1, 2, 3, 8):
        views = torch.rand(3 * count, 3, 64, 64)
        assert scope["without_a_face"](count, views).shape == (count, 3, 64, 64)


def test_a_single_training_photograph_is_refused():
    split = pd.DataFrame({"image_id": ["1", "2", "3"], "split": ["train", "val", "test"]})
    with pytest.raises(ValueError, match="one training photograph, and batch normalisation"):
        segmentation.split_rows(split)


# ------------------------------------------------------- another device or precision, a kernel


def test_a_kernel_can_change_precision_and_device(tmp_path):
    """accelerate keeps its state for the whole process: a second call would be refused."""
    folders = SimpleNamespace(runs=tmp_path)
    for device, precision in (
        ("cpu", "bf16"),
        ("cpu", "no"),
        ("auto", "auto"),
        (torch.device("cpu"), "bf16"),
        ("cpu:0", "no"),
    ):
        accelerator = helpers.set_up("test", folders, 0, device, precision)
        if precision != "auto":
            assert accelerator.mixed_precision == precision
        layer, optimizer = nn.Linear(2, 2), None
        layer = accelerator.prepare(layer)
        optimizer = accelerator.prepare(torch.optim.SGD(layer.parameters(), 0.1))
        with accelerator.autocast():
            found = nn.functional.linear(torch.zeros(1, 2), torch.zeros(2, 2)).dtype
        assert found == (
            torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        )
        accelerator.backward(layer(torch.ones(1, 2)).sum())
        optimizer.step()


@pytest.mark.parametrize(
    ("device", "precision", "reason"),
    [
        ("cpu", "fp16", "precision=fp16 needs a GPU"),
        ("cpu", "fp8", "precision=fp8 is not known"),
        ("cpu", "float16", "precision=float16 is not known"),
        ("cuda:7", "no", "DEVICE=cuda:7 is not available here"),
        ("CPU", "no", "DEVICE=CPU is not available here"),
        ("", "no", "DEVICE= is not available here"),
    ],
)
def test_a_precision_or_device_that_is_not_here_is_named(tmp_path, device, precision, reason):
    with pytest.raises(ValueError, match=reason):
        helpers.set_up("test", SimpleNamespace(runs=tmp_path), 0, device, precision)


def test_a_kernel_named_python3_of_another_environment_is_not_used(tmp_path, monkeypatch):
    for place in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        spec = tmp_path / place / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        other = ["/bin/false", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": other, "display_name": "x", "language": "python"}))
        monkeypatch.setenv(place, str(tmp_path / place))
    code = nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")
    about = {"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}}
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[code], metadata=about), path)
    series = run.Series("sample", {"output": str(tmp_path)}, {})
    assert series.execute(path, {}, "test")
    executed = nbformat.read(series.folder / "tiny.ipynb", 4)
    assert executed.cells[-1].outputs[0].text.strip() == sys.executable


# ----------------------------------------------------------------------- Python, make, packages

OLD = "import runpy, sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; "


@pytest.mark.parametrize("script", ["run.py", "install_missing.py", "demo.py"])
def test_an_old_python_is_refused_in_one_sentence(script):
    path = str(ROOT / "notebooks" / script)
    code = f"{OLD}runpy.run_path({path!r}, run_name='__main__')"
    commands = [[sys.executable, "-c", code]]
    versions = Path.home().glob(".pyenv/versions/3.10*/bin/python3.10")
    commands += [
        [str(python), path] for python in [*versions, shutil.which("python3.10")] if python
    ]
    done = [subprocess.run(command, capture_output=True, text=True) for command in commands]
    done = [one for one in done if "command not found" not in one.stderr]  # a shim
    for one in done:
        assert (one.returncode, one.stdout) == (1, "")
        assert re.fullmatch(r"Python 3.11 or newer is needed; .* is 3\.10\.\d+\.\n", one.stderr)


def test_a_notebook_says_that_its_python_is_old(monkeypatch):
    cell = nbformat.read(run.notebook_of("2.1"), 4).cells
    cell = next(one.source for one in cell if one.cell_type == "code")
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(
        AssertionError, match=r"^Python 3.11 or newer is needed: choose another"
    ):
        exec(cell, {})


@pytest.fixture
def copied_makefile(tmp_path):
    """The Makefile in a folder of its own, and a folder for commands that come first."""
    names = ["Makefile", "requirements.txt", "tests/colab_constraints.txt"]
    names += ["tests/requirements.txt", run.notebook_of("1.4").relative_to(ROOT)]
    names += [path.relative_to(ROOT) for path in ROOT.glob("notebooks/*_requirements.txt")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    return tmp_path


def fake_python(path, version):
    """A command that says it is Python of that version, and notes what it was asked."""
    enough = int(tuple(map(int, version.split("."))) < (3, 11))
    path.write_text(
        '#!/bin/sh\necho "$0 $@" >> "$CALLS"\n'
        f'[ "$1" = --version ] && echo "Python {version}"\n'
        f'[ "$1" = -c ] && exit {enough}\n[ "$2" = venv ] && exit 7\nexit 0\n'
    )
    path.chmod(0o755)


def make(folder, *arguments):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON")  # of make test
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {"PATH": path, "CALLS": str(folder / "calls"), "HOME": str(folder)}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_make_says_that_python_is_old_and_takes_a_newer_one(copied_makefile):
    folder, names = (
        copied_makefile,
        ("python3", *(f"python3.{minor}" for minor in range(11, 15))),
    )
    for name in names:
        fake_python(folder / "bin" / name, "3.10.13")
    for target in ("run", "photo", "demo", "test", "1.4"):
        done = make(folder, target)
        assert done.returncode != 0
        assert done.stdout == "Python 3.11 or newer is needed; python3 is Python 3.10.13.\n"
    assert not (folder / ".venv").exists()
    for target in ("run", "photo", "demo", "bench", "onnx"):
        done = make(folder, target, f"PYTHON={folder / 'bin' / 'python3'}")
        assert done.returncode != 0
        assert done.stdout.startswith("Python 3.11 or newer is needed; ")
        assert done.stdout.endswith("/bin/python3 is Python 3.10.13.\n")
    (folder / "calls").unlink()
    fake_python(folder / "bin" / "python3.12", "3.12.1")
    assert make(folder, "run").returncode != 0, "the stand-in makes no environment"
    assert "bin/python3.12 -m venv --clear .venv" in (folder / "calls").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_several_stages_are_one_run(copied_makefile):
    folder = copied_makefile
    for name in ("3.1_one.ipynb", "3.2_two.ipynb"):
        (folder / "notebooks" / name).touch()
    fake_python(folder / "bin" / "python", "3.12.1")
    python = f"PYTHON={folder / 'bin' / 'python'}"
    for stages in (("3.1",), ("3.2", "3.1"), ("1.4", "3.1", "3.2")):
        (folder / "calls").unlink(missing_ok=True)
        assert make(folder, *stages, python).returncode == 0
        calls = (folder / "calls").read_text().splitlines()
        runs = [call for call in calls if "notebooks/run.py" in call]
        assert [set(call.partition(" -- ")[2].split()) for call in runs] == [set(stages)]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_colab_needs_its_python(copied_makefile):
    fake_python(copied_makefile / "bin" / "python3.13", "3.10.13")
    for more in ((), ("COLAB_PYTHON=no-such-python",)):
        done = make(copied_makefile, "test-colab", *more)
        assert done.returncode != 0
        assert re.match(
            r"Colab has Python 3\.13, which \S+ is not: make test-colab", done.stdout
        )
    assert not (copied_makefile / ".venv").exists()


def lines_of(path):
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_versions_of_colab_are_those_that_we_allow():
    """ipykernel is as it is there: the kernel runs already."""
    pinned = {
        one.name.replace("_", "-"): one
        for one in lines_of(ROOT / "tests/colab_constraints.txt")
    }
    assert len(pinned) == 15
    for one in lines_of(ROOT / "requirements.txt"):
        if one.name in pinned and one.name != "ipykernel":
            (exactly,) = pinned[one.name].specifier
            assert one.specifier.contains(exactly.version), one
    workflow = (ROOT / ".github/workflows/colab.yml").read_text()
    assert "tests/colab_constraints.txt" in workflow and "make test-colab" in workflow


@pytest.fixture
def bare(tmp_path):
    """Runs install_missing.py with some packages installed: what it says, and asks of pip."""
    place = str(tmp_path / "asked")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__init__.py").touch()
    (tmp_path / "pip/__main__.py").write_text(
        f"import json, sys\nopen({place!r}, 'w').write(json.dumps(sys.argv[1:]))"
    )

    def install(installed: dict[str, str], *arguments: str) -> list[str]:
        for name, version in installed.items():
            about = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info/METADATA"
            about.parent.mkdir(exist_ok=True)
            about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        script = str(ROOT / "notebooks/install_missing.py")
        command = [sys.executable, "-S", script, *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PIP_NO_INDEX": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        asked = tmp_path / "asked"
        found = json.loads(asked.read_text()) if asked.exists() else []
        asked.unlink(missing_ok=True)
        return found

    return install


def test_a_running_kernel_gets_what_it_lacks_and_no_jupyterlab(bare):
    colab = {
        one.name: str(one.specifier)[2:]
        for one in lines_of(ROOT / "tests/colab_constraints.txt")
    }
    asked = bare(colab)
    names = {re.split("[>=]", one)[0] for one in asked}
    assert {"pandera", "torchmetrics", "segmentation-models-pytorch", "pillow-heif"} <= names
    assert not names & {"jupyter", "papermill", "ipykernel", "opencv-python-headless"}
    assert {"torch==2.11.0", "torchvision==0.26.0", "numpy==2.1.3"} <= set(asked), "they stay"
    everything = {one.name: "99.0" for one in lines_of(ROOT / "requirements.txt")}
    for name in ("jupyter", "papermill", "ipykernel"):
        everything.pop(name)
    assert bare(everything) == [], "nothing is missing"
    assert bare({}, "papermill")[:3] == ["install", "--quiet", "papermill>=2.6"]
    assert bare({"papermill": "2.7.0"}, "papermill") == []


def test_what_no_kernel_needs_is_imported_by_no_notebook():
    sources = [path.read_text() for path in (ROOT / "notebooks/faces").glob("*.py")]
    sources += [(ROOT / "helpers.py").read_text()]
    for path in (ROOT / "notebooks").glob("[0-9].[0-9]_*.ipynb"):
        cells = nbformat.read(path, 4).cells
        sources += [cell.source for cell in cells if cell.cell_type == "code"]
    used = re.compile(
        r"^\s*(?:import|from) +(jupyter|papermill|nbclient|nbconvert|notebook)\b", re.M
    )
    assert [found for source in sources for found in used.findall(source)] == []


def test_stages_that_a_notebook_needs_bring_papermill(monkeypatch):
    """As in Colab: it is installed when 5.1, opened alone, runs the stages before it."""
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    helpers.run_stages("1.4", "2.2", OUTPUT="out")
    first, second = [list(map(str, command)) for command in commands]
    assert first[1:] == [str(ROOT / "notebooks/install_missing.py"), "papermill"]
    assert second[1:4] == [str(ROOT / "notebooks/run.py"), "1.4", "2.2"]


def test_run_names_a_package_that_is_missing(tmp_path):
    (tmp_path / "papermill.py").write_text("raise ModuleNotFoundError('x', name='papermill')")
    command = [sys.executable, str(ROOT / "notebooks/run.py"), "1.4"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        "papermill is not installed: .* -m pip install papermill\n", done.stderr
    )


# --------------------------------------------------------------------------------- the demo


@pytest.fixture
def demo(monkeypatch):
    pytest.importorskip("gradio")
    from notebooks import demo

    monkeypatch.setattr(demo.FacePipeline, "from_pretrained", None)  # no model is loaded
    return demo


def test_a_port_that_is_taken(demo, monkeypatch, capsys):
    """By default the next free one, and it is said; one that was asked for is refused."""
    with socket.create_server(("127.0.0.1", 0)) as first:
        taken = first.getsockname()[1]
        monkeypatch.setattr(demo, "PORT", taken)
        assert demo.open_port(None) > taken
        assert f"Port {taken} is taken: the page is on" in capsys.readouterr().out
        monkeypatch.setattr(demo, "NEXT", 1)
        with pytest.raises(ValueError, match=f"The ports {taken} to {taken} are taken"):
            demo.open_port(None)
        monkeypatch.setattr(sys, "argv", ["demo.py", "--port", str(taken)])
        reason = (
            rf"^PORT={taken} cannot be used \(Address already in use\): choose another one.$"
        )
        with pytest.raises(SystemExit, match=reason):
            demo.main()
    assert demo.open_port(None) == demo.open_port(taken) == taken, "it is free again"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("port", [-1, 0, 65536, 99_999])
def test_what_is_no_port_is_refused(demo, port):
    with pytest.raises(ValueError, match=f"PORT={port} cannot be used .there is no such port"):
        demo.open_port(port)


# ------------------------------------------------------------------- a Drive that disconnects


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A mounted Drive; what this process has said is forgotten, and pauses are short."""
    monkeypatch.delenv("FACES_KEEP", raising=False)
    monkeypatch.setattr(files, "DRIVE", str(tmp_path / "drive" / "MyDrive"))
    monkeypatch.setattr(files, "PAUSES", (0.01,))
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    new_kernel()
    yield tmp_path / "drive" / "MyDrive"
    new_kernel()


def new_kernel():
    files._said.clear()
    files._failed.clear()


@pytest.fixture
def folders(tmp_path, drive):
    return helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")


def write(folders, name, text="one"):
    path = folders.csv / f"{name}.csv"
    return helpers.keep(helpers.write_atomically(path, lambda file: file.write_text(text)))


def write_folder(folders, name, text="one"):
    def fill(folder):
        folder.mkdir()
        (folder / "config.json").write_text(text)
        (folder / "model.safetensors").write_text(text)

    return helpers.keep(helpers.write_atomically(folders.runs / name, fill))


def copies(drive):
    """The files in the second place, without folders and texts."""
    paths = [path for path in drive.rglob("*") if path.is_file()]
    return {
        path.relative_to(drive / "faces/here").as_posix(): path.read_text() for path in paths
    }


class Disconnected:
    """Reading, writing and looking at what lies in a place fail with an error of the system."""

    def __init__(self, monkeypatch, place, number):
        self.patch, self.place, self.number = monkeypatch, str(place), number

    def __enter__(self):
        def failing(function):
            def call(path, *more, **options):
                paths = [one for one in (path, *more) if isinstance(one, str | os.PathLike)]
                if any(os.fspath(one).startswith(self.place) for one in paths):
                    raise OSError(self.number, os.strerror(self.number), str(path))
                return function(path, *more, **options)

            return call

        for name in (
            "stat",
            "lstat",
            "mkdir",
            "listdir",
            "scandir",
            "rename",
            "replace",
            "unlink",
        ):
            self.patch.setattr(os, name, failing(getattr(os, name)))
        self.patch.setattr("builtins.open", failing(open))
        self.patch.setattr(shutil, "copyfile", failing(shutil.copyfile))

    def __exit__(self, *_):
        self.patch.undo()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.ENODEV])
def test_a_drive_that_disconnects_is_said_once_and_caught_up(
    folders, drive, capsys, number, tmp_path
):
    write(folders, "before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "DRIVE", str(drive))
        patch.delenv("FACES_KEEP", raising=False)
        with Disconnected(patch, drive, number):
            for name in ("first", "second", "third"):
                assert write(folders, name).read_text() == "one"
            write(folders, "before", "two")
            write_folder(folders, "model")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1, "once, not for each file"
    assert "first.csv could not be copied to mine/ of the second place" in printed
    assert f"[Errno {number}]" in printed and "it is safe here, and is copied once" in printed
    assert copies(drive) == {"csv/mine/before.csv": "one"}
    write(folders, "later")
    expected = {f"csv/mine/{name}.csv": "one" for name in ("first", "second", "third", "later")}
    expected |= {"csv/mine/before.csv": "two"}
    expected |= {
        f"runs/mine/model/{name}": "one" for name in ("config.json", "model.safetensors")
    }
    assert copies(drive) == expected
    assert capsys.readouterr().out == "The second place, here/, has what it had missed: 5.\n"
    write(folders, "last")
    assert capsys.readouterr().out == "", "all is well again"


@pytest.mark.parametrize("by", ["Drive", "FACES_KEEP"])
def test_a_place_that_vanishes_is_caught_up_by_the_next_notebook(
    folders, drive, capsys, monkeypatch, tmp_path, by
):
    """As when Drive is unmounted: nothing may be written where it was mounted."""
    if by == "FACES_KEEP":
        monkeypatch.setenv("FACES_KEEP", str(drive / "faces"))
    write(folders, "before")
    place = drive if by == "Drive" else drive / "faces"
    place.rename(tmp_path / "elsewhere")
    for name in ("first", "second"):
        write(folders, name)
    assert capsys.readouterr().out.count("\n") == 1
    new_kernel()
    again = helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")
    write(again, "third")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1, "each notebook says it once"
    assert "What an earlier session copied to here/ cannot be fetched" in printed
    assert not place.exists()
    (tmp_path / "elsewhere").rename(place)
    new_kernel()
    helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")
    names = ("before", "first", "second", "third")
    assert copies(drive) == {f"csv/mine/{name}.csv": "one" for name in names}
    assert "has what it had missed: 3." in capsys.readouterr().out


def test_a_session_without_a_drive_notes_nothing(folders, drive, capsys, tmp_path):
    shutil.rmtree(drive)
    other = helpers.open_dataset("mine", tmp_path / "data", tmp_path / "other", needs="")
    write(other, "first")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "other/runs" / files.NOTES).exists()


def test_what_was_removed_meanwhile_is_removed_there_and_does_not_come_back(
    folders, drive, capsys, tmp_path
):
    state = write_folder(folders, "checkpoints/run")
    drive.rename(tmp_path / "elsewhere")
    helpers.forget(state)
    assert "run of the second place could not be removed" in capsys.readouterr().out
    (tmp_path / "elsewhere").rename(drive)
    new_kernel()
    helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")
    assert not state.exists() and copies(drive) == {}
    write_folder(folders, "checkpoints/run", "anew")
    assert set(copies(drive).values()) == {"anew"}


def test_a_file_that_was_deleted_by_hand_keeps_its_copy(folders, drive, tmp_path):
    write(folders, "first")
    drive.rename(tmp_path / "elsewhere")
    write(folders, "first", "two").unlink()
    (tmp_path / "elsewhere").rename(drive)
    write(folders, "second")
    assert copies(drive)["csv/mine/first.csv"] == "one"


def test_a_full_drive_takes_what_fits_and_the_rest_later(folders, drive, capsys, monkeypatch):
    copytree, full = shutil.copytree, [True]

    def no_space(source, target):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copytree(source, target)

    monkeypatch.setattr(files.shutil, "copytree", no_space)
    for name in ("one", "two", "three"):
        write_folder(folders, name)
        write(folders, name)
    printed = capsys.readouterr().out
    assert printed.count("No space left") == printed.count("\n") == 1
    assert set(copies(drive)) == {f"csv/mine/{name}.csv" for name in ("one", "two", "three")}
    full[0] = False
    new_kernel()
    write(folders, "four")
    assert len(copies(drive)) == 4 + 3 * 2
    assert "has what it had missed: 3." in capsys.readouterr().out


def test_a_folder_whose_files_fail_one_by_one_is_one_error(folders, drive, capsys, monkeypatch):
    """copytree gathers the errors of all files in a list without a number."""

    def broken(source, target, **options):
        raise OSError(errno.EIO, "Input/output error", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", broken)
        write_folder(folders, "model")
        write_folder(folders, "other")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "model could not be copied to mine/ of the second place ([Errno 5]" in printed
    assert len(printed) < 200
    write(folders, "after")
    assert len(copies(drive)) == 5


def test_a_fetch_that_breaks_off_is_tried_again(folders, drive, capsys, monkeypatch, tmp_path):
    for name in ("first", "second", "third"):
        write(folders, name)
    (tmp_path / "here").rename(tmp_path / "yesterday")
    copyfile, calls = shutil.copyfile, []

    def hiccup(source, target):
        calls.append(target)
        if len(calls) == 2:
            target.write_text("half")
            raise OSError(errno.EIO, "Input/output error")
        return copyfile(source, target)

    monkeypatch.setattr(files.shutil, "copyfile", hiccup)
    again = helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")
    assert {path.name: path.read_text() for path in again.csv.iterdir()} == {
        f"{name}.csv": "one" for name in ("first", "second", "third")
    }
    printed = capsys.readouterr().out
    assert printed.startswith("3 files of an earlier session came back from here/")
    assert printed.count("\n") == 1


def test_only_the_first_process_catches_up(folders, drive, monkeypatch, tmp_path):
    write(folders, "before")
    drive.rename(tmp_path / "elsewhere")
    write(folders, "first")
    (tmp_path / "elsewhere").rename(drive)
    monkeypatch.setenv("RANK", "1")
    helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")
    assert set(copies(drive)) == {"csv/mine/before.csv"}
    monkeypatch.setenv("RANK", "0")
    helpers.open_dataset("mine", tmp_path / "data", tmp_path / "here", needs="")
    assert set(copies(drive)) == {"csv/mine/before.csv", "csv/mine/first.csv"}
