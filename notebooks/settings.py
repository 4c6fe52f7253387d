"""What the parameters of the notebooks may be: refused in one sentence before anything runs.

run.py checks all stages before it starts one; a training notebook checks its own parameters,
as they may have been edited in Jupyter or Colab. Light: torch is imported where it is needed.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Whole:
    """Whole numbers from `least` to `most`, multiples of `step`."""

    least: int = 1
    most: float = math.inf
    step: int = 1
    why: str = ""

    def allows(self, value: object) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.least <= value <= self.most and value % self.step == 0

    def __str__(self) -> str:
        kind = f"a multiple of {self.step}" if self.step > 1 else "a whole number"
        end = "up" if self.most == math.inf else f"to {self.most}"
        return f"{kind} from {self.least} {end} is expected" + self.why


@dataclass(frozen=True)
class Number:
    """Numbers above `over`, or from it where `included`, up to `most`."""

    over: float = 0
    most: float = math.inf
    included: bool = False

    def allows(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        above = value >= self.over if self.included else value > self.over
        return math.isfinite(value) and above and value <= self.most

    def __str__(self) -> str:
        end = "" if self.most == math.inf else f", at most {self.most:g},"
        return f"a number {'from' if self.included else 'above'} {self.over:g}{end} is expected"


@dataclass(frozen=True)
class Choice:
    """One of some values; where `files`, or the path of a file that is there."""

    names: tuple
    files: bool = False

    def allows(self, value: object) -> bool:
        is_file = self.files and isinstance(value, str | Path) and Path(value).is_file()
        return value in self.names or is_file

    def __str__(self) -> str:
        shown = [repr(name) for name in self.names] + ["the path of a file"] * self.files
        return f"choose {', '.join(shown[:-1])} or {shown[-1]}"


class Names:
    """A list of names."""

    def allows(self, value: object) -> bool:
        return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)

    def __str__(self) -> str:
        return "a list of names is expected"


SEED = Whole(0, 4_000_000_000)
SHARE, PROBABILITY = Number(0, 1), Number(0, 1, included=True)
HALVED = ", since the encoder halves an image five times"
POINTS = dict(alignment=Choice(("none", "2", "3", "5")), face_size=Whole(32))
PRECISION = Choice(("auto", "no", "bf16", "fp16"))
START = Choice(("scratch", "imagenet", "pretrained"))
BACKBONE = dict(
    backbone=Choice(("resnet18", "mobilenet_v2")), start=Choice(START.names, files=True)
)
WEIGHTS = Choice(("imagenet", "pretrained", ""), files=True)
TRAINING = dict(
    seed=SEED, precision=PRECISION, epochs=Whole(), batch_size=Whole(), learning_rate=Number()
)
TRANSLATION = TRAINING | dict(
    size=Whole(24, step=4, why=", since the generator halves an image twice"),
    channels=Whole(),
    blocks=Whole(),
    upsampling=Choice(("resize", "bilinear", "transposed")),
    features=Choice(("inception", "pretrained", "classifier"), files=True),
    cycle_weight=Number(),
    identity_weight=Number(included=True),
    noise=Number(included=True),
    gradient_penalty=Number(included=True),
    discriminator_features=Choice(("", "imagenet", "pretrained"), files=True),
    classifier_steps=Whole(),
    pool_size=Whole(0),
)
# stage -> its parameters that have limits
RULES = {
    "0.1": dict(seed=SEED, share=SHARE, images_each=Whole(), frames=Whole()),
    "1.1": dict(
        seed=SEED,
        identities=Whole(),
        images_each=Whole(2),
        val_each=Whole(),
        extra_photographs=Whole(0),
        further_criteria=Choice(("auto", "yes", "no")),
    ),
    "1.2": dict(seed=SEED, input_size=Whole(), cells=Whole(), sigma=Number()),
    "1.3": dict(seed=SEED, box_scale=Number(), smallest_face=Whole(0)),
    "1.4": TRAINING
    | dict(
        start=Choice(("scratch", "pretrained")),
        stacks=Whole(),
        channels=Whole(4, step=4),
        stride=Choice((2, 4)),
        crop_fraction=Number(0, 4),
        sigma=Number(),
    ),
    "1.5": dict(seed=SEED, landmarks=Choice(("predicted", "annotated"))),
    "2.1": TRAINING
    | POINTS
    | BACKBONE
    | dict(
        short_epochs=Whole(), crop_fraction=Number(0, 4), attribute_weight=Number(included=True)
    ),
    "2.2": TRAINING
    | POINTS
    | BACKBONE
    | dict(
        crop_fraction=Number(0, 4),
        attribute_weight=Number(included=True),
        scale=Number(),
        margin=Number(0, 1.5, included=True),
        margin_warm_up=PROBABILITY,
    ),
    "3.1": dict(seed=SEED, train_count=Whole(0), val_count=Whole(0), test_count=Whole(0)),
    "3.2": TRAINING
    | dict(
        encoder_weights=WEIGHTS,
        architectures=Names(),
        encoders=Names(),
        table_size=Whole(32, step=32, why=HALVED),
        table_epochs=Whole(),
        plain_epochs=Whole(),
        best_size=Whole(32, step=32, why=HALVED),
        best_crop=Whole(32, step=32, why=HALVED),
        paste_share=PROBABILITY,
    ),
    "3.3": TRAINING
    | dict(
        backbone=Choice(("resnet50", "mobilenet_v2")),
        start=Choice(START.names, files=True),
        size=Whole(32, step=8, why=", since the backbone halves an image three times"),
        first_epochs=Whole(),
        gamma=Number(included=True),
        beta=Number(0, 0.999999, included=True),
    ),
    "3.4": TRAINING
    | dict(
        occluders=Choice(("",), files=True),
        occluder_sources=Choice(("none", "even", "odd", "all")),
        encoder_weights=WEIGHTS,
        size=Whole(32, step=32, why=HALVED),
        final_epochs=Whole(),
    ),
    "4.1": TRANSLATION,
    "4.2": TRANSLATION
    | dict(
        short_epochs=Whole(),
        crop_fraction=Number(0, 4),
        keep_sharpest=SHARE,
        max_misfit=Number(),
        min_eye_distance=Number(included=True),
    ),
    "5.1": dict(seed=SEED, recogniser=Choice(("arcface", "ce")), false_accepts=Number(0, 1)),
}
NORMALISED = {"1.4", "2.1", "2.2", "3.2", "3.3", "3.4"}  # by batch normalisation
# Networks that are known to run at 32 px and more; others are tried when they are asked for.
ARCHITECTURES = {"Unet", "FPN", "PAN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "Segformer"}
ENCODERS = {"resnet18", "resnet34", "resnet50", "mobilenet_v2"}
TRACKERS = {"tensorboard", "wandb", "trackio", "aim", "comet_ml", "mlflow", "clearml"}


def batch_rule(stage: str) -> Whole:
    """The size of a batch, which the processes of torchrun share."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    each, why = 1, []
    if processes > 1:
        why.append(f"{processes} processes share each batch")
    if stage in NORMALISED:
        each = 2
        why.append("batch normalisation needs two images or more")
    since = f", since {' and '.join(why)}" if why else ""
    return Whole(each * processes, step=processes, why=since)


def check_settings(stage: str, values: Mapping[str, object]) -> None:
    """Raises ValueError with one sentence where a parameter of a stage cannot work.

    `values`: name -> value. Names that are no parameters of the stage are passed over, so that
    a notebook can give its globals().
    """
    rules = dict(RULES.get(stage, {}))
    if "batch_size" in rules:
        rules["batch_size"] = batch_rule(stage)
    if stage == "1.4" and rules["stride"].allows(values.get("stride")):
        step = 16 * values["stride"]
        why = ", since the hourglass halves its heatmaps four times"
        rules["input_size"] = Whole(step, step=step, why=why)
        if rules["input_size"].allows(values.get("input_size")):
            cells = values["input_size"] // values["stride"]
            rules["sigma"] = Number(0, (cells - 2) / 8)  # the whole Gaussian lies in the map
    for name, rule in rules.items():
        if name in values and not rule.allows(values[name]):
            raise ValueError(f"{name}={values[name]!r} is not valid in {stage}: {rule}.")
    each, of_val = (values.get(name) for name in ("images_each", "val_each"))
    if stage == "1.1" and each and of_val and of_val >= each:
        raise ValueError(f"val_each={of_val} of images_each={each} leaves none for training.")
    check_start(stage, values)
    check_networks(stage, values)
    check_tracker(values.get("tracker", ""))
    device = values.get("device", "auto")
    if str(device) not in ("auto", "cpu"):
        device_here(device)
    if values.get("precision") == "fp16":
        precision_here("fp16", device)


def check_start(stage: str, values: Mapping[str, object]) -> None:
    """Weights that come with the project, and files of weights in 3.3, fit one network."""
    start = values.get("start", "scratch")
    ours, is_file = start == "pretrained", start not in START.names
    shape = {"stacks": 2, "channels": 96, "stride": 4} if stage == "1.4" else {}
    if ours and any(values.get(name, of) != of for name, of in shape.items()):
        needed = "stacks=2, channels=96 and stride=4"
        raise ValueError(f'start="pretrained" needs {needed}, as those weights have.')
    small = values.get("backbone", "mobilenet_v2") == "mobilenet_v2"
    if not small and (ours or (is_file and stage == "3.3")):
        raise ValueError(f'start="{start}" needs backbone="mobilenet_v2".')


def check_networks(stage: str, values: Mapping[str, object]) -> None:
    """The architectures and encoders of 3.2 and 3.4 are known, and take images of that size."""
    if values.get("weights"):
        return
    if stage == "3.2" and {"architectures", "encoders", "table_size"} <= set(values):
        size, names = values["table_size"], values["architectures"]
        pairs = [(name, encoder) for encoder in values["encoders"] for name in names]
        if "PAN" in names and size < 128:
            raise ValueError(f"table_size={size} is too small for PAN, which needs 128.")
    elif stage == "3.4" and {"encoder", "size"} <= set(values):
        size = values["size"]
        pairs = [(name, values["encoder"]) for name in ("Unet", "DeepLabV3")]
    else:
        return
    for architecture, encoder in pairs:
        if architecture not in ARCHITECTURES or encoder not in ENCODERS:
            try_network(architecture, encoder, size)


def try_network(architecture: str, encoder: str, size: int) -> None:
    """Builds a network without memory and sends a batch of two through it.

    Raises ValueError where the names are unknown, or do not go together at that size.
    """
    import segmentation_models_pytorch as smp
    import torch

    architectures = [one.__name__ for one in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    encoders = smp.encoders.get_encoder_names()
    for kind, name, known in (
        ("architecture", architecture, architectures),
        ("encoder", encoder, encoders),
    ):
        there = str(name).lower() in map(str.lower, known) or str(name).startswith("tu-")
        if not there:
            near = difflib.get_close_matches(str(name), known, 3, 0.5) or known[:10]
            near = ", ".join(near)
            raise ValueError(f"There is no {kind} {name!r}: choose for instance {near}.")
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.no_grad():
                network = smp.create_model(architecture, encoder, None)
                network(torch.zeros(2, 3, size, size))
            return
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".!")
            if "meta tensors" not in reason or device == "cpu":  # those need memory
                what = f"{architecture} with {encoder} cannot be used at {size} px"
                raise ValueError(f"{what}: {reason}.") from None


def check_tracker(tracker: str) -> None:
    """The tracker is known to accelerate, and installed."""
    if not tracker or tracker == "all":
        return
    if tracker not in TRACKERS:
        from accelerate.utils import LoggerType

        if tracker not in (known := LoggerType.list()):
            raise ValueError(f"There is no tracker {tracker!r}: choose {', '.join(known[1:])}.")
    if importlib.util.find_spec(tracker) is None:
        raise ValueError(f"TRACKER={tracker} is not installed: pip install {tracker}")


# ------------------------------------------------------------------------ device and precision


def best_precision(device: str) -> str:
    """bfloat16 where the matrix units have it, float16 on older GPUs (a T4), else float32."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    amx = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16")
    capable = amx or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device == "cpu" and capable else "no"


def device_here(device: object = "auto") -> str:
    """The parameter `device` as cpu, cuda or mps; "auto" is the best one of this machine."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    best = "cuda" if cuda else "mps" if mps else "cpu"
    name = str(device).removesuffix(":0")
    if name not in ("auto", best, "cpu"):
        there = best if best == "cpu" else f"{best} and cpu"
        raise ValueError(f"DEVICE={device} is not available here; there is {there}.")
    return best if name == "auto" else name


def precision_here(precision: str, device: object) -> str:
    """The parameter `precision` as no, bf16 or fp16; "auto" is the best one of the device."""
    if not PRECISION.allows(precision):
        raise ValueError(f"precision={precision} is not known: {PRECISION}.")
    if precision == "fp16" and device_here(device) == "cpu":
        raise ValueError(
            "precision=fp16 needs a GPU: choose auto, no or bf16 on the processor."
        )
    return best_precision(device_here(device)) if precision == "auto" else precision
