"""Descriptions: equal for what is built alike, however it was used since; different for what is built differently."""

from __future__ import annotations

import inspect
import json
from copy import deepcopy
from functools import partial
from pathlib import Path

import monai.transforms
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss
from monai.transforms import Compose, Lambda, LoadImaged, RandLambdad, Randomizable, ScaleIntensityRanged, Transform
from scripts.data.volumes import VolumeReader
from scripts.descriptions import Described, describe, differences

SIDE = 24


def random_transforms() -> list[type]:
    """Every transform of MONAI's random families, each once, whatever names it has."""
    classes = {value for name, value in vars(monai.transforms).items() if name.startswith("Rand")}
    classes |= {monai.transforms.OneOf, monai.transforms.SomeOf, monai.transforms.RandomOrder}
    kinds = [each for each in classes if inspect.isclass(each) and issubclass(each, Transform)]
    kinds = [each for each in kinds if issubclass(each, Randomizable) and not inspect.isabstract(each)]
    return sorted(kinds, key=lambda each: each.__name__)


def neighbours(image):
    return image + 1


# arguments that constructors cannot do without
NEEDED = {
    "RandShiftIntensity": {"offsets": 0.3},
    "RandScaleIntensity": {"factors": 0.3},
    "RandScaleIntensityFixedMean": {"factors": 0.3},
    "RandStdShiftIntensity": {"factors": 0.3},
    "RandSpatialCrop": {"roi_size": 8},
    "RandScaleCrop": {"roi_scale": 0.5},
    "RandSpatialCropSamples": {"roi_size": 8, "num_samples": 2},
    "RandWeightedCrop": {"spatial_size": (8, 8, 8), "num_samples": 2},
    "RandCropByPosNegLabel": {"spatial_size": 8},
    "RandCropByLabelClasses": {"spatial_size": 8, "ratios": [1, 2], "num_classes": 2},
    "RandGridPatch": {"patch_size": 8},
    "RandCoarseDropout": {"holes": 2, "spatial_size": 3},
    "RandCoarseShuffle": {"holes": 2, "spatial_size": 3},
    "RandSmoothFieldAdjustContrast": {"spatial_size": (SIDE,) * 3, "rand_size": (4,) * 3},
    "RandSmoothFieldAdjustIntensity": {"spatial_size": (SIDE,) * 3, "rand_size": (4,) * 3},
    "RandSmoothDeform": {"spatial_size": (SIDE,) * 3, "rand_size": (4,) * 3},
    "Rand2DElastic": {"spacing": (8, 8), "magnitude_range": (1, 2)},
    "Rand3DElastic": {"sigma_range": (1, 2), "magnitude_range": (1, 2)},
    "RandKSpaceSpikeNoise": {"intensity_range": (9, 10)},
    "RandSimulateLowResolution": {"zoom_range": (0.5, 0.9)},
    "RandLambda": {"func": neighbours},
    "RandImageFilter": {"filter": "mean", "filter_size": 3},
    "RandTorchVision": {"name": "ColorJitter", "brightness": 0.4},
    "RandTorchIO": {"name": "RandomFlip"},
    "RandRotate": {"range_x": 0.3},
    "RandDeformGrid": {"spacing": (8, 8), "magnitude_range": (1, 2)},
    "RandImageFilterd": {"kernel": "mean", "kernel_size": 3},
    "RandCrop": {"cropper": monai.transforms.RandSpatialCrop(8)},
}
DICTIONARY = {
    "RandCropByPosNegLabel": {"label_key": "label"},
    "RandCropByLabelClasses": {"label_key": "label"},
    "RandWeightedCrop": {"w_key": "label"},
}


def build(kind: type, **changes):
    """A random transform that is applied whenever it is used."""
    name = kind.__name__
    parameters = inspect.signature(kind.__init__).parameters
    options = NEEDED.get(name, NEEDED.get(name.removesuffix("d"), {}))
    if "transforms" in parameters:
        options = {"transforms": [monai.transforms.RandFlip(prob=1.0), monai.transforms.RandZoom(prob=1.0)]}
    if "keys" in parameters:
        options = {"keys": ["image"], **options, **DICTIONARY.get(name.removesuffix("d"), {})}
    if "prob" in parameters:
        options = {**options, "prob": 1.0}
    return kind(**{**options, **changes})


def image_of(sides: int, channels: int = 1) -> MetaTensor:
    return MetaTensor(torch.rand((channels, *[SIDE] * sides), generator=torch.Generator().manual_seed(0)) + 0.1)


def use(transform) -> None:
    """Applies a transform to data of the first kind that it takes."""
    problems = []
    for sides, channels in ((3, 1), (2, 1), (2, 3)):
        image = image_of(sides, channels)
        label = MetaTensor((image[:1] > 0.5).float())
        data: dict | MetaTensor = {"image": image, "label": label}
        calls = [lambda data=data: transform(data), lambda image=image: transform(image)]
        calls += [lambda image=image, label=label: transform(image, label), lambda: transform((SIDE, SIDE))]
        calls += [lambda image=image, label=label: transform(image, weight_map=label)]
        for call in calls if hasattr(transform, "keys") else calls[1:]:
            try:
                for seed in range(3):
                    transform.set_random_state(seed)
                    call()
                return
            except Exception as error:
                problems.append(repr(error))
    raise AssertionError(f"{type(transform).__name__} takes none of the data: {problems}")


KINDS = random_transforms()


def test_all_random_families_are_there():
    assert len(KINDS) > 80


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_use_changes_no_description(kind):
    transform = build(kind)
    before = describe(transform)

    use(transform)

    assert describe(transform) == before == describe(build(kind)) == describe(deepcopy(transform))
    assert json.loads(json.dumps(before)) == before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_number_that_a_random_transform_is_given_shows(kind):
    before = describe(build(kind))
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if type(parameter.default) in (int, float):
            changed = 0.25 if name == "prob" else parameter.default + 2
            try:
                transform = build(kind, **{name: changed})
            except Exception:  # not every number is one of its settings
                continue
            assert describe(transform) != before, name


@pytest.mark.parametrize(
    "one, other",
    [
        (RandLambdad("image", lambda x: x + 1), RandLambdad("image", lambda x: x + 2)),
        (Lambda(partial(neighbours)), Lambda(neighbours)),
        (Compose([Lambda(np.sin)]), Compose([Lambda(np.cos)])),
        (ScaleIntensityRanged("image", 0, 1, dtype=np.float32), ScaleIntensityRanged("image", 0, 1, dtype=np.float16)),
        (LoadImaged("image", reader=VolumeReader()), LoadImaged("image", reader=VolumeReader("portal"))),
        ({1: "a"}, {"1": "a"}),
        (torch.float32, torch.float16),
        (Path("a"), Path("b")),
        (lambda x, y=1: x, lambda x, y=2: x),
        ([lambda x, n=n: x for n in range(2)][0], [lambda x, n=n: x for n in range(2)][1]),
        (np.array([1, 2]), np.array([2, 1])),
        (DiceLoss(sigmoid=True), DiceLoss(sigmoid=False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_two_settings_have_two_descriptions(one, other):
    assert describe(one) != describe(other)


def test_what_a_function_closes_over_shows():
    def adder(number):
        return lambda x: x + number

    assert describe(adder(1)) == describe(adder(1)) != describe(adder(2))


def test_arguments_by_place_by_name_and_by_default_are_the_same():
    by_place = ScaleIntensityRanged("image", 0, 1, None)
    by_name = ScaleIntensityRanged(keys="image", a_max=1, a_min=0)

    assert describe(by_place) == describe(by_name)
    assert describe(by_name)["ScaleIntensityRanged"]["clip"] is False


def test_what_was_given_is_kept_as_it_was_then():
    class Summed(Described):
        def __init__(self, values):
            self.values = values

    values = [1, 2]
    summed = Summed(values)
    before = describe(summed)
    values.append(3)

    assert describe(summed) == before


def test_an_object_that_nothing_tells_from_others_is_refused():
    with pytest.raises(TypeError, match="cannot be told from others"):
        describe(object())


def test_differences_name_the_place():
    then = {"loss": {"DiffuSAMLoss": {"lambda_seg": 1.0, "weights": [1, 2]}}, "seed": 0}
    now = {"loss": {"DiffuSAMLoss": {"lambda_seg": 0.5, "weights": [1, 3]}}, "rate": 1}

    assert differences(then, now) == [
        "loss.DiffuSAMLoss.lambda_seg: 1.0 then, 0.5 now",
        "loss.DiffuSAMLoss.weights.1: 2 then, 3 now",
        "seed: 0 then, nothing now",
        "rate: nothing then, 1 now",
    ]
