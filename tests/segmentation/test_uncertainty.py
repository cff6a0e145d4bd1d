"""Uncertainty: where samples of the memory disagree, what Dice they predict, and whether the benchmark can tell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.errors import DatasetError
from scripts.inference.calibration import Calibration
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import Decoded
from scripts.segmentation.propagation import VolumetricInferer
from scripts.segmentation.uncertainty import (
    SampleAgreement,
    SplitUncertaintyd,
    UncertaintyInferer,
    _Sample,
    uncertainty_of_samples,
)
from scripts.segmentation.walked_slices import VolumeSlices

from benchmarks import uncertainty as benchmark
from benchmarks.configuration import parse
from tests.helpers.workflows import BUNDLE, run, write_overlay, write_prior

SIZE = 64
ORGANS = ["spleen", "liver"]


@pytest.fixture(scope="module")
def network():
    """Without the object gate, which random weights may close everywhere."""
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", SIZE)
    options = {"condition_channels": 16, "block_out_channels": (16, 32), "attention_levels": 1}
    prior = MemoryPrior(backbone.memory_channels, backbone.embedding_channels, organs=len(ORGANS), **options)
    prior.fitted.fill_(True)
    return DiffuSAM(backbone, prior, organs=ORGANS, object_gate=False).eval()


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.rand(1, 1, 40, 48, 5, generator=torch.Generator().manual_seed(0))


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# ---- samples


def test_uncertainty_is_the_mean_probability_that_the_label_is_another():
    """One organ: the first sample says it is there with 0.9, the second with 0.3."""
    logits = [torch.full((1, 1, 4, 4), logit(p)) for p in (0.9, 0.3)]
    uncertainty, labels = uncertainty_of_samples(logits, (8, 6))

    torch.testing.assert_close(uncertainty, torch.full((1, 8, 6), 1 - (0.9 + 0.3) / 2))
    assert labels.shape == (2, 1, 8, 6)
    assert labels[0].unique().tolist() == [1] and labels[1].unique().tolist() == [0]


def test_background_is_uncertain_as_well():
    uncertainty, labels = uncertainty_of_samples([torch.full((1, 1, 4, 4), logit(0.2))], (4, 4))

    torch.testing.assert_close(uncertainty, torch.full((1, 4, 4), 0.2))
    assert not labels.any()


def test_agreement_is_dice_with_the_first_sample_over_all_slices():
    """Organ 1: 4 voxels, of which the second sample has 2 and 2 others, the third all and nothing else."""
    first = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 0, 0]]])
    second = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 1]]])
    agreement = SampleAgreement(2)
    for index in range(2):  # slice by slice
        agreement.add(torch.stack([first, second, first])[:, [index]])

    assert agreement.dice() == [pytest.approx((0.5 + 1.0) / 2), None]


def test_two_samples_without_an_organ_agree_though_a_third_has_it():
    empty, full = torch.zeros(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.long)
    agreement = SampleAgreement(1)
    agreement.add(torch.stack([empty, empty, full]))

    assert agreement.dice() == [0.5]


@pytest.mark.parametrize("output, channels", [("labels", 1), ("logits", 3)])
@pytest.mark.parametrize("options", [{}, {"no_3d": True}, {"ended_after": 1}, {"views": [[0, 1], [9, 1.1]]}], ids=str)
def test_the_result_is_that_without_uncertainty(network, volume, output, channels, options):
    plain = VolumetricInferer(output=output, batch_size=2, **options)(volume, network)
    uncertain = UncertaintyInferer(3, output=output, batch_size=2, **options)(volume, network)

    assert uncertain.shape == (1, channels + 1, *volume.shape[2:]) and uncertain.dtype == plain.dtype
    torch.testing.assert_close(uncertain[:, :channels], plain)


def test_without_samples_nothing_is_added(network, volume):
    inferer = UncertaintyInferer(0, no_3d=True)

    torch.testing.assert_close(inferer(volume, network), VolumetricInferer(no_3d=True)(volume, network))
    assert inferer.predicted_dice == []


def test_samples_share_the_image_features(network, volume, monkeypatch):
    encode, encoded = network.backbone.encode_image, []

    def counted(image):
        encoded.append(len(image))
        return encode(image)

    monkeypatch.setattr(network.backbone, "encode_image", counted)
    UncertaintyInferer(3, batch_size=2)(volume, network)

    assert sum(encoded) == volume.shape[-1]


@pytest.mark.parametrize("own_encoder", [False, True])
def test_samples_share_what_is_named(network, volume, monkeypatch, own_encoder):
    names = naming(network.backbone, ORGANS, own_encoder=own_encoder)
    torch.nn.init.normal_(names.fine.weight, std=30.0)  # so that there is something of every organ
    names.fine.bias.data[: len(ORGANS)] += 100.0
    named = DiffuSAM(network.backbone, network.prior, organs=ORGANS, object_gate=False, names=names).eval()
    monkeypatch.setattr(_Sample, "name", VolumeSlices.name)
    expected = UncertaintyInferer(3, batch_size=2)(volume, named)  # each sample by itself
    monkeypatch.undo()
    shown: list[int] = []
    names.register_forward_hook(lambda module, inputs, output: shown.append(len(inputs[0])))

    result = UncertaintyInferer(3, batch_size=2)(volume, named)

    assert torch.equal(result, expected) and result[:, :-1].any()
    assert sum(shown) == volume.shape[-1]


def test_samples_have_the_seeds_that_follow(network, volume, monkeypatch):
    inferer = UncertaintyInferer(2, no_3d=True, output="logits")
    inferer(volume, network)
    with monkeypatch.context() as patch:
        patch.setattr(network, "seed", network.seed + 1)
        second = VolumetricInferer(no_3d=True)(volume, network)
    first = VolumetricInferer(no_3d=True)(volume, network)
    expected = [
        2 * ((first == organ) & (second == organ)).sum() / ((first == organ).sum() + (second == organ).sum())
        for organ in (1, 2)
    ]

    assert not torch.equal(first, second)
    assert inferer.predicted_dice == pytest.approx([float(each) for each in expected if each == each], abs=1e-6)


def test_samples_that_disagree_leave_uncertainty(network, volume, monkeypatch):
    """Each sample's mask is everything or nothing, by the sign of its memory; logits of 20 are sure."""
    signs = {0: 20.0, 1: 20.0, 2: -20.0, 3: -20.0}

    def synthesise(features, sample=0, organs=None, masks=None):
        return torch.full((len(features) * 2, 1, 4, 4), signs[sample])

    def decode(conditioned, features, windows=None):
        ones = torch.ones(len(conditioned), 1)
        organ = torch.tensor([1.0, 0.5]).repeat(len(conditioned) // 2).view(-1, 1, 1, 1)  # the first is the stronger
        return Decoded(conditioned.expand(-1, 1, SIZE // 4, SIZE // 4) * organ, ones, ones, ones)

    monkeypatch.setattr(network, "synthesise", synthesise)
    monkeypatch.setattr(
        network.backbone, "condition", lambda features, memories, windows=None: memories[0].features[:, :, :1, :1]
    )
    monkeypatch.setattr(network.backbone, "decode", decode)
    inferer = UncertaintyInferer(4, no_3d=True)

    result = inferer(volume, network)

    assert result[:, 0].unique().tolist() == [1]
    assert result[:, 1].unique().tolist() == [round(0.5 * 255)]
    assert inferer.predicted_dice == [pytest.approx(1 / 3), None]


@pytest.mark.parametrize("samples", [-1, 1])
def test_fewer_than_two_samples_are_refused(samples):
    with pytest.raises(ValueError, match="uncertainty needs at least 2 samples"):
        UncertaintyInferer(samples)


def test_the_last_channel_is_split_off():
    result = SplitUncertaintyd("pred")({"pred": torch.tensor([3.0, 4.0, 200.0]).view(3, 1, 1, 1)})

    assert result["pred"].flatten().tolist() == [3, 4]
    assert result["uncertainty"].dtype == torch.uint8 and result["uncertainty"].flatten().tolist() == [200]


# ---- calibration


def test_a_line_is_found_and_clipped():
    line = Calibration.fit([0.2, 0.4, 0.6, 0.4], [-0.1, 0.3, 0.7, 0.3])

    assert [line(x) for x in (0.1, 0.5, 0.9)] == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("kind", ["linear", "isotonic"])
def test_predictions_that_are_repeated_count_as_often(kind):
    predicted, dice = [0.2, 0.4, 0.4, 0.4, 0.8, 0.8], [0.1, 0.7, 0.6, 0.5, 0.4, 0.6]
    found = Calibration.fit(predicted, dice, kind)

    line = np.polyfit(predicted, dice, 1)
    expected = np.polyval(line, predicted) if kind == "linear" else [0.1, *[0.56] * 5]
    assert [found(x) for x in predicted] == pytest.approx(expected)


def test_a_line_never_falls():
    line = Calibration.fit([0.2, 0.8], [0.9, 0.3])
    assert line(0.1) == line(0.9) == pytest.approx(0.6)


def test_an_isotonic_map_joins_what_is_out_of_order():
    steps = Calibration.fit([0.1, 0.2, 0.3, 0.4], [0.0, 0.6, 0.2, 0.8], "isotonic")
    assert [steps(x) for x in (0.1, 0.2, 0.3, 0.35, 0.9)] == pytest.approx([0.0, 0.4, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("arguments, message", [(([0.1], [0.2]), "two pairs"), (([1, 2], [1, 2], "cubic"), "cubic")])
def test_what_cannot_be_fitted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Calibration.fit(*arguments)


def test_a_calibration_survives_its_file(tmp_path):
    fitted = Calibration.fit([0.2, 0.4], [0.1, 0.3], about={"samples": 4})
    fitted.save(tmp_path / "new" / "calibration.json")
    assert Calibration.load(tmp_path / "new" / "calibration.json") == fitted


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is not there"),
        ("{", "is no calibration"),
        ('{"predicted": [0.1]}', "is no calibration .*dice"),
        ('{"predicted": [0.1, 0.2], "dice": [0.1]}', "as many ascending numbers"),
        ('{"predicted": [0.2, 0.1], "dice": [0.1, 0.2]}', "as many ascending numbers"),
    ],
)
def test_a_file_that_is_no_calibration_is_named(tmp_path, content, message):
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=f"calibration.json.*{message}.*uncertainty_calibration"):
        Calibration.load(path)


# ---- inference


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, write_dataset, backbone_file) -> Path:
    folder = tmp_path_factory.mktemp("uncertainty")
    path = write_overlay(folder, write_dataset(folder / "dataset"), backbone_file, test_cases=["c", "d"])
    write_prior(path)
    return path


def infer(overlay: Path, output: Path, **options) -> dict:
    """The record of the case image_c."""
    run("inferring", overlay, input=str(overlay.parent / "dataset" / "image_c.nii.gz"), output=str(output), **options)
    return json.loads((output / "results.json").read_text())["cases"]["image_c"]


def test_inference_writes_uncertainty_beside_the_same_label_map(overlay, tmp_path):
    plain = infer(overlay, tmp_path)
    labels = np.asarray(nib.load(tmp_path / "image_c_seg.nii.gz").dataobj)
    assert not (tmp_path / "image_c_uncertainty.nii.gz").exists()
    assert "uncertainty" not in plain["files"]

    record = infer(overlay, tmp_path, uncertainty=3)

    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "image_c_seg.nii.gz").dataobj), labels)
    saved, image = (nib.load(path) for path in (tmp_path / "image_c_uncertainty.nii.gz", record["image"]))
    assert saved.shape == image.shape and saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, image.affine)
    uncertainty = saved.get_fdata()
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    assert record["files"]["uncertainty"] == "image_c_uncertainty.nii.gz"
    predicted = [organ["predicted_dice"] for organ in record["quality"]["organs"].values()]
    assert all(dice is None or 0 <= dice <= 1 for dice in predicted) and any(dice is not None for dice in predicted)


def test_uncertainty_is_not_made_twice_but_with_other_samples(overlay, tmp_path):
    def written() -> int:
        return (tmp_path / "image_c_uncertainty.nii.gz").stat().st_mtime_ns

    infer(overlay, tmp_path, uncertainty=2, probabilities=True)
    first = written()

    infer(overlay, tmp_path, uncertainty=2)
    infer(overlay, tmp_path)  # without uncertainty, it stays as well
    assert written() == first
    (tmp_path / "image_c_uncertainty.nii.gz").unlink()
    assert infer(overlay, tmp_path, uncertainty=2)["uncertainty_samples"] == 2
    second = written()
    assert infer(overlay, tmp_path, uncertainty=3)["uncertainty_samples"] == 3
    assert written() > second


def test_the_predicted_dice_is_calibrated_by_the_file(overlay, tmp_path):
    Calibration([0.0], [0.25]).save(tmp_path / "calibration.json")
    record = infer(overlay, tmp_path / "out", uncertainty=2, uncertainty_calibration=str(tmp_path / "calibration.json"))

    predicted = [organ["predicted_dice"] for organ in record["quality"]["organs"].values()]
    assert {dice for dice in predicted if dice is not None} == {0.25}
    assert "uncertainty" in {flag["flag"] for flag in record["quality"]["flags"]}


# ---- the benchmark


def test_the_calibration_error_is_of_means_over_bins():
    found = benchmark.calibration_error([0.9, 0.1, 0.3, 0.7], [0.5, 0.2, 0.2, 0.7], bins=2)

    # bins {0.1, 0.3} against {0.2, 0.2}, and {0.7, 0.9} against {0.7, 0.5}
    assert found == {"ece": pytest.approx((0.0 + 0.2) / 2), "mae": pytest.approx((0.4 + 0.1 + 0.1 + 0.0) / 4)}


def test_voxels_are_counted_by_their_uncertainty():
    right, wrong = np.zeros(256, int), np.zeros(256, int)
    right[0], wrong[0] = 80, 5
    right[51], wrong[51] = 9, 1  # an uncertainty of 0.2, errors of 0.1
    wrong[255] = 5
    found = benchmark.voxel_calibration(right, wrong, bins=5)

    assert found["uncertain"] == pytest.approx(15 / 100)
    assert found["wrong_and_certain"] == pytest.approx(5 / 11)
    assert [(each["uncertainty"], each["error"], each["voxels"]) for each in found["bins"]] == [
        *((pytest.approx(0.2), pytest.approx(0.1), 10), (pytest.approx(1.0), 1.0, 5))
    ]
    assert found["ece"] == pytest.approx(10 / 15 * 0.1)
    # a wrong voxel beats a right one: 5 with ties alone against 80, 1 against 80 and ties, 5 against all
    assert found["auroc"] == pytest.approx((5 * 40 + (80 + 4.5) + 5 * 89) / (11 * 89))


def fake_case(predicted, dice, **measures) -> dict:
    fine = {"volume_ml": 9.0, "components": 1, "outside": 0.0, "largest_jump": 0.0, "touches_edge": False}
    return {
        **{"organs": ORGANS, "predicted": predicted, "dice": dice, "seconds": 1.0, "training_volumes": {}},
        **{"right": [9] + [0] * 255, "wrong": [0] * 255 + [1]},
        "measures": {organ: {**fine, **measures} for organ in ORGANS},
    }


def test_a_case_is_calibrated_by_the_others():
    """Real Dice lies 0.2 below the predicted one, but not in case c, which must not learn of itself."""
    cases = {
        "a": fake_case([0.5, 0.9], [0.3, 0.7]),
        "b": fake_case([0.6, 0.8], [0.4, 0.6]),
        "c": fake_case([0.7, None], [0.9, None]),
    }
    result = benchmark.summarise(cases, "linear", 5, {})
    rows = {(row["case"], row["organ"]): row for row in result["organs"]}

    assert len(rows) == 5
    assert rows["c", "spleen"]["calibrated"] == pytest.approx(0.5)
    assert rows["a", "spleen"]["calibrated"] > 0.4  # case c draws it up
    assert result["fitted"](0.7) == pytest.approx(np.mean([0.3, 0.7, 0.4, 0.6, 0.9]))


def test_flags_are_counted_among_good_and_bad_organs():
    cases = {
        "a": fake_case([0.9, 0.9], [0.9, 0.9]),
        "b": fake_case([0.9, 0.3], [0.9, 0.3]),
        "c": fake_case([0.9, 0.9], [0.85, 0.75], largest_jump=1.0),  # 0.75 is neither
    }
    flags = benchmark.summarise(cases, "linear", 5, {})["flags"]

    assert flags["good"] == {"organs": 4, "flagged": 1, "flagged_without_uncertainty": 1, "flags": {"jump": 1}}
    assert flags["bad"]["organs"] == 1 and flags["bad"]["flagged_without_uncertainty"] == 0


def test_the_benchmark_goes_on_where_it_was(overlay, tmp_path, monkeypatch, capsys):
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
    options = {"config_file": [*configs, str(overlay)], "samples": 2, "output": str(tmp_path)}
    measure, measured = benchmark.measure_case, []

    def killed_at_d(item, *args):
        measured.append(item["case"])
        if measured == ["c", "d"]:
            raise KeyboardInterrupt
        return measure(item, *args)

    monkeypatch.setattr(benchmark, "measure_case", killed_at_d)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(**options, bundle_root=str(BUNDLE))
    benchmark.main(**options, bundle_root=str(BUNDLE))

    assert measured == ["c", "d", "d"]
    result = json.loads((tmp_path / "uncertainty.json").read_text())
    assert {row["case"] for row in result["organs"]} == {"c", "d"}
    assert all(0 <= row["predicted"] <= 1 and 0 <= row["dice"] <= 1 for row in result["organs"])
    assert (tmp_path / "uncertainty.png").stat().st_size > 10_000
    assert Calibration.load(tmp_path / "uncertainty_calibration.json").about["samples"] == 2
    assert "Spearman correlation" in capsys.readouterr().out


OTHER = {
    "named_memories": {"named_memories": True},
    "decoder_token": {"decoder_token": "single"},
    "largest_component": {"largest_component": True},
    "solid_organs": {"solid_organs": ["liver"]},
    "intensity": {"intensity#a_max": 250},
    "image": {},
}


@pytest.mark.parametrize("setting", OTHER)
def test_a_case_is_measured_again_with_other_settings(overlay, tmp_path, write_dataset, monkeypatch, setting):
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
    measured = []
    monkeypatch.setattr(benchmark, "measure_case", lambda item, *_: measured.append(item["case"]) or {"organs": []})
    monkeypatch.setattr(benchmark, "_both_dice", lambda case: {})
    monkeypatch.setattr(benchmark, "load_prior", lambda parser: parser.get_parsed_content("network"))
    dataset = write_dataset(tmp_path / "dataset")

    def measure(**changes) -> None:
        given = {"bundle_root": str(BUNDLE), "test_cases": ["c"], "dataset_dir": str(dataset), **changes}
        benchmark.measure_cases(parse([*configs, str(overlay)], given), 2, tmp_path / "cases", False)

    measure()
    measure()
    assert measured == ["c"]
    if setting == "image":
        image = nib.load(dataset / "image_c.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), dataset / "image_c.nii.gz")
    measure(**OTHER[setting])
    assert measured == ["c", "c"]


def test_what_is_measured_is_the_label_map_as_it_is_written(overlay, tmp_path):
    """With the largest component of each organ alone."""
    configs = [str(BUNDLE / "configs" / name) for name in ("train.json", "evaluate.json")]
    given = {"test_cases": ["c"], "largest_component": True}
    run("evaluating", overlay, **given, evaluation_dir=str(tmp_path))
    evaluated = json.loads((tmp_path / "metrics.json").read_text())["dice"]["values"][0]

    found = {}
    for largest in (True, False):
        parser = parse([*configs, str(overlay)], {"bundle_root": str(BUNDLE), **given, "largest_component": largest})
        found[largest] = benchmark.measure_cases(parser, 2, tmp_path / f"cases{largest}", False)["c"]

    assert found[True]["dice"] == pytest.approx(evaluated, abs=1e-4) != found[False]["dice"]
    assert {each["components"] for each in found[True]["measures"].values()} <= {0, 1}


def test_too_few_organs_to_calibrate_say_so():
    with pytest.raises(DatasetError, match="without case 'a' leaves 0 organs.*test_cases"):
        benchmark.summarise({"a": fake_case([0.5, 0.9], [0.3, 0.7])}, "linear", 5, {})
