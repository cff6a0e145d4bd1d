"""Each metric against values worked out by hand, and against SciPy, NumPy or MONAI doing the same another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.metrics import DiceMetric, compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.networks import one_hot
from monai.transforms import Orientation
from nibabel.eulerangles import euler2mat
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from scripts.data.dataset_check import CaseSummary
from scripts.output.metrics import DfgDice, FateDice, OrganDice, OrganMetricHandler, SurfaceMetrics
from scripts.segmentation.label_maps import LabelMapInferer
from torch.nn.functional import interpolate

SHAPE = (24, 20, 12)
SPACING = (0.8, 1.3, 4.0)
AFFINE = np.diag([*SPACING, 1])
EVERYWHERE = ((0, 24), (0, 20), (0, 12))
CENTRE = ((6, 18), (5, 15), (3, 9))


def label_map(boxes: dict[int, tuple], shape=SHAPE, affine=AFFINE) -> MetaTensor:
    """``(1, H, W, D)`` with a box of voxels for each label value."""
    labels = torch.zeros(1, *shape)
    for value, box in boxes.items():
        labels[(0, *(slice(*side) for side in box))] = value
    return MetaTensor(labels, affine=affine)


def blobs(seed: int, threshold: float = 0.1) -> MetaTensor:
    """Three organs of random shape that meet each other and the edges of the volume."""
    noise = np.random.default_rng(seed).normal(size=(3, *SHAPE))
    smooth = np.stack([gaussian_filter(each, 2) for each in noise])
    labels = np.where(smooth.max(0) > threshold * smooth.max(), 1 + smooth.argmax(0), 0)
    return MetaTensor(torch.tensor(labels)[None].float(), affine=np.diag([*SPACING, 1]))


def packed(*organs: MetaTensor) -> MetaTensor:
    """Masks of organs 1, 2, ... to bits."""
    bits = sum((organ > 0).as_tensor().to(torch.uint8) << index for index, organ in enumerate(organs))
    return MetaTensor(bits, affine=organs[0].affine)


def unmerged(labels: MetaTensor, organs: int = 3) -> MetaTensor:
    return packed(*((labels == value) for value in range(1, organs + 1)))


def found(metric, prediction: MetaTensor, truth: MetaTensor) -> dict[str, list[float]]:
    """The numbers of one volume, a list over organs for each name."""
    metric([prediction], [truth])
    return {name: values[0].tolist() for name, values in metric.details().items()}


def close(expected) -> object:
    return pytest.approx(expected, abs=1e-5, nan_ok=True)


class Written(LabelMapInferer):
    """Writes given logits, as all inferers do."""

    def __call__(self, inputs: torch.Tensor, network: torch.Tensor) -> torch.Tensor:
        output = self._empty_output(self._volume(inputs), network.shape[1])
        self._write(output, range(len(network)), network)
        return output


PREDICTION, TRUTH = blobs(0), blobs(1)
PREDICTION[PREDICTION == 3] = 0
TRUTH[TRUTH == 3] = 0  # the third organ is in neither


# ---- Dice of volumes


def test_dice_is_that_of_one_hot_volumes():
    reference = DiceMetric(include_background=False, reduction="none")
    expected = reference([one_hot(PREDICTION, 4, dim=0)], [one_hot(TRUTH, 4, dim=0)])[0].tolist()

    assert found(OrganDice(3), PREDICTION, TRUTH)["dice"] == close(expected)
    assert math.isnan(expected[2])


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ({1: ((0, 4), (0, 2), (0, 2))}, {1: ((3, 5), (0, 2), (0, 2))}, 2 * 4 / (16 + 8)),
        ({}, {1: CENTRE}, 0),
        ({1: CENTRE}, {}, 0),  # invented
        ({}, {2: CENTRE}, math.nan),
        ({1: CENTRE}, {1: CENTRE}, 1),
    ],
)
@pytest.mark.parametrize("metric", [OrganDice(2), DfgDice(2, size=24)])
def test_dice_by_hand(metric, predicted, true, expected):
    # the second organ, alike in both, is in every slice, so that the DFG Dice counts all of them
    everywhere = {2: ((20, 24), (16, 20), (0, 12))}
    metric.reset()

    dice = found(metric, label_map(everywhere | predicted), label_map(everywhere | true))

    assert dice[metric.names[0]][0] == close(expected)


def test_dice_takes_batches_of_label_maps_without_an_affine():
    metric = OrganDice(2)
    metric(torch.cat([TRUTH, PREDICTION])[:, None].as_tensor(), torch.cat([TRUTH, TRUTH])[:, None].as_tensor())

    assert metric.get_buffer().shape == (2, 2)
    assert metric.get_buffer()[0].tolist() == [1, 1]


def test_the_mean_is_over_organs_of_means_over_volumes():
    metric = OrganDice(2)
    first, second = label_map({1: CENTRE}), label_map({2: CENTRE})
    metric([first, first, first], [first, first, label_map({})])  # 1, 1, 0; the second organ undefined
    metric([second], [second])

    # 2/3 and 1, not the mean of the four values, nor of the volumes' means
    assert metric.aggregate()["dice"].item() == close((2 / 3 + 1) / 2)


@pytest.mark.parametrize("shape", [(1, 24, 20, 11), (2, *SHAPE)])
def test_maps_of_different_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="two label maps of the same shape"):
        OrganDice(3)([torch.zeros(shape)], [TRUTH])


# ---- Dice at 256 x 256


def test_dfg_dice_ignores_slices_beyond_the_true_organs():
    true = label_map({1: CENTRE})
    more = label_map({1: (*CENTRE[:2], (0, 9))})

    assert found(DfgDice(1), more, true)["dice_dfg"] == [1]
    assert found(OrganDice(1), more, true)["dice"] == close([2 * 6 / (6 + 9)])


def test_dfg_dice_keeps_slices_between_organs():
    true = label_map({1: (*CENTRE[:2], (0, 2)), 2: (*CENTRE[:2], (10, 12))})
    more = label_map({1: (*CENTRE[:2], (0, 4)), 2: (*CENTRE[:2], (10, 12))})

    assert found(DfgDice(2), more, true)["dice_dfg"] == close([2 * 2 / (2 + 4), 1])


@pytest.mark.parametrize("size", [256, 24, 10])
def test_dfg_dice_resizes_to_the_nearest_voxel(size):
    def slices(labels: MetaTensor) -> np.ndarray:
        resized = interpolate(labels.as_tensor().permute(0, 3, 1, 2), (size, size), mode="nearest-exact")
        return resized[0].numpy()

    prediction, true = slices(PREDICTION), slices(TRUTH)
    expected = [
        2 * ((prediction == value) & (true == value)).sum() / ((prediction == value).sum() + (true == value).sum())
        for value in (1, 2)
    ]

    assert found(DfgDice(2, size), PREDICTION, TRUTH)["dice_dfg"] == close(expected)


def test_dfg_dice_of_a_volume_without_organs_is_undefined():
    assert found(DfgDice(1), label_map({1: CENTRE}), label_map({}))["dice_dfg"] == close([math.nan])


# ---- Dice of slices


def test_fate_dice_by_hand():
    # slices 2...8 predicted, half of it in slice 2; slices 0...5 true: Dice 2/3, 1, 1, 1, and 0 in 0, 1, 6, 7, 8
    predicted = label_map({1: (*CENTRE[:2], (2, 9))})
    predicted[:, 6:12, :, 2] = 0
    result = found(FateDice(1), packed(predicted), label_map({1: (*CENTRE[:2], (0, 6))}))

    assert result == {"dice_fate": close([(2 / 3 + 3) / 4]), "fate_slices_kept": [4], "fate_slices_dropped": [5]}


def test_fate_dice_lets_two_organs_claim_a_voxel():
    true = label_map({1: CENTRE, 2: ((6, 12), *CENTRE[1:])})  # the second takes half of the first
    result = found(FateDice(2), packed(label_map({1: CENTRE}), label_map({1: ((6, 12), *CENTRE[1:])})), true)

    assert result["dice_fate"] == close([2 / 3, 1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_fate_dice_is_the_mean_over_slices_that_are_not_zero(dtype):
    third = blobs(2, 0.5)
    bits = packed(PREDICTION == 1, third > 0)
    expected = []
    for mask, true in ((PREDICTION == 1, TRUTH == 1), (third > 0, TRUTH == 2)):
        mask, true = mask.numpy().astype(bool), true.numpy().astype(bool)
        with np.errstate(invalid="ignore"):
            dice = 2 * (mask & true).sum((0, 1, 2)) / (mask.sum((0, 1, 2)) + true.sum((0, 1, 2)))
        expected.append(np.mean([each for each in dice if each > 0]))

    assert found(FateDice(2), bits.to(dtype), TRUTH)["dice_fate"] == close(expected)


def test_fate_dice_knows_more_organs_than_a_byte_has_bits():
    bits = (label_map({1: CENTRE}) > 0).int() << 8

    assert found(FateDice(9), bits, label_map({9: CENTRE}))["dice_fate"] == close([math.nan] * 8 + [1])


@pytest.mark.parametrize("organs, organ", [(40, 32), (40, 36), (64, 64), (70, 64)])
def test_fate_dice_tells_organs_apart_whose_bit_is_or_lies_behind_a_sign(organs, organ):
    logits = torch.full((2, organs, 4, 4), -1.0)
    logits[:, organ - 1] = 1
    output = Written("labels_and_organs")(torch.zeros(1, 1, 8, 8, 2), logits)
    truth = MetaTensor(torch.full((1, 8, 8, 2), organ))

    dice = found(FateDice(organs), MetaTensor(output[0, 1:]), truth)["dice_fate"]
    assert [number for number, value in enumerate(dice, 1) if value == 1] == [organ]
    assert all(math.isnan(value) for number, value in enumerate(dice, 1) if number != organ)


def test_fate_dice_is_undefined_where_there_are_no_bits():
    truth = MetaTensor(torch.full((1, 3, 4, 5), 66))
    dice = found(FateDice(70), torch.ones_like(truth), truth)
    assert math.isnan(dice["dice_fate"][65]) and dice["fate_slices_dropped"][65] == 0


# ---- surfaces


@pytest.mark.parametrize(
    ("axis", "distance", "within"),
    [(0, 2 * 1.0, 1), (1, 2 * 1.5, 0), (2, 2 * 4.0, 0)],  # a distance of the tolerance itself is within
)
def test_distances_of_parallel_sheets(axis, distance, within):
    def sheet(position: int) -> MetaTensor:
        box = list(EVERYWHERE)
        box[axis] = (position, position + 1)
        return label_map({1: box}, affine=np.diag([1.0, 1.5, 4.0, 1]))

    result = found(SurfaceMetrics(1), sheet(3), sheet(5))

    assert result == {
        "hd95_mm": [distance],
        "asd_mm": [distance],
        "surface_dice_2mm": [within],
        "missed": [0],
        "invented": [0],
    }


def surfaces_by_distance_transform(prediction: np.ndarray, true: np.ndarray, tolerance: float) -> list[float]:
    edges = [mask & ~binary_erosion(mask) for mask in (prediction, true)]
    to_prediction, to_true = (distance_transform_edt(~edge, sampling=SPACING) for edge in edges)
    directed = [to_true[edges[0]], to_prediction[edges[1]]]
    both = np.concatenate(directed)
    return [max(np.percentile(each, 95) for each in directed), both.mean(), (both <= tolerance).mean()]


def surfaces_by_monai(prediction: np.ndarray, true: np.ndarray, tolerance: float) -> list[float]:
    masks = [torch.tensor(mask)[None, None].float() for mask in (prediction, true)]
    common = {"include_background": True, "spacing": SPACING}
    return [
        compute_hausdorff_distance(*masks, percentile=95, **common).item(),
        compute_average_surface_distance(*masks, symmetric=True, **common).item(),
        compute_surface_dice(*masks, class_thresholds=[tolerance], **common).item(),
    ]


@pytest.mark.parametrize("tolerance", [2, 3.5])
@pytest.mark.parametrize("another_way", [surfaces_by_distance_transform, surfaces_by_monai])
def test_distances_of_random_shapes(another_way, tolerance):
    result = found(SurfaceMetrics(3, tolerance), PREDICTION, TRUTH)
    masks = [(PREDICTION[0].numpy() == value, TRUTH[0].numpy() == value) for value in (1, 2)]
    expected = [another_way(*pair, tolerance) for pair in masks]

    assert list(result)[:3] == ["hd95_mm", "asd_mm", f"surface_dice_{tolerance}mm"]
    for column, name in enumerate(list(result)[:3]):
        assert result[name] == close([*(each[column] for each in expected), math.nan])


def test_missed_and_invented_organs_have_no_distance_but_are_counted():
    predicted = label_map({1: CENTRE, 2: ((0, 4), (0, 4), (0, 4))})
    true = label_map({1: CENTRE, 3: ((0, 4), (0, 4), (0, 4))})

    assert found(SurfaceMetrics(4), predicted, true) == {
        "hd95_mm": close([0, math.nan, math.nan, math.nan]),
        "asd_mm": close([0, math.nan, math.nan, math.nan]),
        "surface_dice_2mm": close([1, 0, 0, math.nan]),
        "missed": [0, 0, 1, 0],
        "invented": [0, 1, 0, 0],
    }


def test_distances_in_a_rotated_grid():
    # as scanners' software writes it, in float32: by the affine alone 5 voxels of 0.4 mm would be 2.0000002 mm
    angle = np.float32(math.radians(34))
    affine = np.diag(np.array([0.4, 0.4, 2, 1], np.float32))
    affine[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * np.float32(0.4)
    sheets = [label_map({1: ((first, first + 1), *EVERYWHERE[1:])}, affine=affine) for first in (4, 9)]

    result = found(SurfaceMetrics(1), *sheets)

    assert (result["asd_mm"], result["surface_dice_2mm"]) == (close([2]), [1])


def test_distances_in_a_tilted_gantry():
    tilt = math.radians(25)
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2] = (0, math.cos(tilt), math.sin(tilt)), (0, 0, 5)
    affine[:3, :3] = euler2mat(0.3, 0.2, 0.1) @ affine[:3, :3]  # turned, which changes no distance
    sheets = [label_map({1: (*EVERYWHERE[:2], (at, at + 1))}, affine=affine) for at in (4, 6)]

    result = found(SurfaceMetrics(1, tolerance=9.1), *sheets)

    # across, from one sheet to the other: less than the 10 mm along the step of the slices
    assert np.percentile([result["asd_mm"], result["hd95_mm"]], 0) >= 10 * math.cos(tilt) - 0.01
    assert result["hd95_mm"][0] < 10 and result["surface_dice_9.1mm"][0] > 0.5


def test_distances_in_a_sheared_grid_are_those_between_places():
    affine = np.diag([*SPACING, 1])
    affine[0, 2], affine[1, 2] = 1.5, -1.0
    prediction, truth = (MetaTensor(each.as_tensor(), affine=affine) for each in (PREDICTION, TRUTH))

    result = found(SurfaceMetrics(3), prediction, truth)

    for value in (1, 2):
        edges = [mask & ~binary_erosion(mask) for mask in (each[0].numpy() == value for each in (PREDICTION, TRUTH))]
        places = [np.argwhere(edge) @ affine[:3, :3].T for edge in edges]
        apart = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
        both = np.concatenate([apart.min(1), apart.min(0)])
        assert result["hd95_mm"][value - 1] == pytest.approx(max(np.percentile(apart.min(axis), 95) for axis in (0, 1)))
        assert result["asd_mm"][value - 1] == pytest.approx(both.mean())
        assert result["surface_dice_2mm"][value - 1] == pytest.approx((both <= 2).mean())


# ---- whatever the order in which a file has its axes


@pytest.mark.parametrize("axcodes", ["LPS", "SAR", "PIL", "ILA"])
@pytest.mark.parametrize("metric", [OrganDice(3), DfgDice(3, size=10), FateDice(3), SurfaceMetrics(3)])
def test_numbers_do_not_depend_on_how_a_volume_is_stored(metric, axcodes):
    stored = Orientation(axcodes)
    packing = unmerged if isinstance(metric, FateDice) else lambda labels: labels
    metric.reset()
    upright = found(metric, packing(PREDICTION), TRUTH)
    metric.reset()
    turned = found(metric, packing(stored(PREDICTION)), stored(TRUTH))

    assert stored(TRUTH).shape != TRUTH.shape or axcodes == "LPS"
    for name, values in upright.items():
        assert turned[name] == close(values)


@pytest.mark.parametrize("metric", [DfgDice(1), FateDice(1), SurfaceMetrics(1)])
def test_a_map_without_an_affine_is_refused(metric):
    with pytest.raises(ValueError, match="needs the affine"):
        metric([TRUTH.as_tensor()], [TRUTH.as_tensor()])


# ---- as Ignite metrics


def test_an_engine_keeps_the_numbers_of_every_volume_and_their_means():
    outputs = [[{"pred": PREDICTION, "organs": unmerged(PREDICTION), "label": TRUTH}]] * 2
    engine = Engine(lambda engine, batch: outputs[batch])
    for name, metric in {"dice": OrganDice(3), "surface": SurfaceMetrics(3), "dice_dfg": DfgDice(3)}.items():
        OrganMetricHandler(metric, from_engine(["pred", "label"])).attach(engine, name)
    OrganMetricHandler(FateDice(3), from_engine(["organs", "label"])).attach(engine, "dice_fate")

    for _ in range(2):  # the second run starts afresh
        engine.state.metric_details = {}  # as MONAI's engines have it
        engine.run([0, 1])

    details, metrics = engine.state.metric_details, engine.state.metrics
    assert {name: tuple(values.shape) for name, values in details.items()} == dict.fromkeys(
        ["dice", *SurfaceMetrics(3).names, "dice_dfg", *FateDice.names], (2, 3)
    )
    for name in ("dice", "hd95_mm", "dice_dfg", "dice_fate"):
        assert metrics[name] == close(details[name][0].nanmean().item())


def test_an_organ_that_no_label_holds_is_no_error_and_one_that_some_hold_is():
    """Of the second volume the third organ is invented in every table, of the data set the first in none."""
    boxes = {value: ((8 * value - 8, 8 * value), (5, 15), (3, 9)) for value in (1, 2, 3)}
    labels = [label_map({value: boxes[value] for value in values}) for values in ((2, 3), (2,))]
    predicted = label_map(boxes)
    outputs = [[{"pred": predicted, "organs": unmerged(predicted), "label": label}] for label in labels]
    summaries = [
        CaseSummary("ab"[at], (1, 1, 1), (1, 1, 1), {f"{organ}": int((label == organ).sum()) for organ in (1, 2, 3)})
        for at, label in enumerate(labels)
    ]
    tables = []
    for given in ({}, {"summaries": summaries}):
        engine = Engine(lambda engine, batch: outputs[batch])
        for name, metric in {"dice": OrganDice(3), "surface": SurfaceMetrics(3), "dice_dfg": DfgDice(3)}.items():
            OrganMetricHandler(metric, from_engine(["pred", "label"]), **given).attach(engine, name)
        OrganMetricHandler(FateDice(3), from_engine(["organs", "label"]), **given).attach(engine, "dice_fate")
        engine.state.metric_details = {}
        engine.run([0, 1])
        tables.append((engine.state.metric_details, engine.state.metrics))
    (before, means_before), (after, means) = tables

    assert before["dice"].tolist() == [[0, 1, 1], [0, 1, 0]] and means_before["dice"] == close(0.5)
    assert means["dice"] == close(0.75)
    for name, values in after.items():
        assert torch.equal(values[:, 1:].nan_to_num(-1), before[name][:, 1:].nan_to_num(-1))
        assert values[:, 0].isnan().all() if values.is_floating_point() else not values[:, 0].any()
    assert after["invented"].tolist() == [[0, 0, 0], [0, 0, 1]]
