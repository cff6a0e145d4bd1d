"""Corrections: what the file may say, where its points come to lie, and that the results obey it and change no more."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Resize
from nibabel.affines import apply_affine
from scripts.data.grids import oriented_grid
from scripts.data.volumes import VolumeReader
from scripts.errors import DatasetError, user_error
from scripts.inference.case_records import CaseRecords
from scripts.inference.corrections import Corrections
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import Decoded
from scripts.segmentation.corrected_slices import Corrector, SlicePrompt, corrected_mask
from scripts.segmentation.propagation import VolumetricInferer

from benchmarks import corrections as benchmark
from benchmarks.corrections import Simulation, dice, simulated_prompt, summarise
from tests.helpers.results import write_label_map
from tests.helpers.workflows import ORGANS, SIZE, new_workflow, run, write_overlay

SHAPE = (6, 7, 5)
TILT = nib.eulerangles.euler2mat(z=0.3, y=0.2, x=-0.25)
AXCODES = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]


def corrections_file(folder: Path, cases: dict, **content) -> Path:
    path = folder / "corrections.json"
    path.write_text(json.dumps({"cases": cases, **content}))
    return path


def correct(organ: int, index: int, positive=(), negative=(), box=()) -> SlicePrompt:
    return SlicePrompt(organ, index, *(np.array(each, int).reshape(-1, 2) for each in (positive, negative, box)))


# ---- the file


@pytest.mark.parametrize(
    "entry, found",
    [
        ({"organ": "heart", "positive": [[1, 1, 1]]}, "organ 'heart', expected one of spleen"),
        ({"organ": "liver"}, "no points"),
        ({"organ": "liver", "positive": [[1, 1]]}, "three whole numbers"),
        ({"organ": "liver", "positive": [1, 1, 1]}, "three whole numbers"),
        ({"organ": "liver", "positive": [[1.5, 1, 1]]}, "three whole numbers"),
        ({"organ": "liver", "positive": [["1", 1, 1]]}, "three whole numbers"),
        ({"organ": "liver", "negative": [[True, 1, 1]]}, "three whole numbers"),
        *(({"organ": "liver", "box": [[10**n, 1, 1], [2, 2, -(10**n)]]}, "all below 1000000000") for n in (9, 20, 400)),
        ({"organ": "liver", "box": [[1, 1, 1]]}, "two opposite corners"),
        ({"organ": "liver", "clicks": [[1, 1, 1]], "box": [[1, 1, 1], [2, 2, 1]]}, "unknown keys clicks"),
        ("liver", "expected an object"),
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_refused(tmp_path, entry, found):
    path = corrections_file(tmp_path, {"a": [{"organ": "liver", "positive": [[1, 1, 1]]}, entry]})
    with pytest.raises(DatasetError, match="case 'a', entry 2: ") as caught:
        Corrections(path, ORGANS)
    assert found in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text, found",
    [
        ("{", "no JSON"),
        ("[]", "expected"),
        ('{"cases": []}', "expected"),
        ('{"cases": {"a": {}}}', "list of entries"),
        ('{"cases": {}, "coordinates": "mm"}', "one of voxel, LPS, RAS"),
        ('{"cases": {}, "space": "RAS"}', "unknown keys space"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, found):
    path = tmp_path / "corrections.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=found):
        Corrections(path, ORGANS)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="--corrections"):
        Corrections(tmp_path / "none.json", ORGANS)


@pytest.mark.parametrize(
    "entries, found",
    [
        ([{"organ": "liver", "positive": [[40, 0, 0]]}], r"\[40, 0, 0\] is outside the image of 40 x 36 x 8 voxels"),
        ([{"organ": "liver", "negative": [[0, 0, -1]]}], "is outside the image"),
        ([{"organ": "liver", "positive": [[1, 1, 1], [1, 1, 2]]}], "points on 2 slices, expected one; the third voxel"),
        ([{"organ": "liver", "positive": [[1, 1, 1]], "negative": [[1, 1, 1]]}], "inside and outside"),
        ([{"organ": organ, "positive": [[1, 1, 1]]} for organ in ORGANS[:2]], "inside spleen and inside right kidney"),
        ([{"organ": "liver", "box": [[1, 1, 1], [3, 3, 1]]}] * 2, "several boxes"),
        ([{"organ": "liver", "box": [[1, 1, 1], [3, 3, 1]], "positive": [[4, 1, 1]]}], "outside its box"),
    ],
    ids=str,
)
def test_points_that_do_not_fit_the_image_are_refused(tmp_path, tiny_dataset, entries, found):
    corrections = Corrections(corrections_file(tmp_path, {"a": entries}), ORGANS)
    with pytest.raises(DatasetError, match=found):
        corrections.check([{"case": "a", "image": str(tiny_dataset / "image_a.nii.gz")}], VolumeReader())


def test_every_problem_is_said_at_once(tmp_path, tiny_dataset):
    far = [{"organ": "liver", "positive": [[99, 0, 0]]}]
    corrections = Corrections(corrections_file(tmp_path, {"a": far, "b": far, "x": far}), ORGANS)
    items = [{"case": case, "image": str(tiny_dataset / f"image_{case}.nii.gz")} for case in "ab"]
    with pytest.raises(DatasetError) as caught:
        corrections.check(items, VolumeReader())
    for case, problem in (("a", "outside"), ("b", "outside"), ("x", "no such image; the input has a, b")):
        assert any(case in line and problem in line for line in str(caught.value).splitlines())


# ---- where points come to lie


@pytest.mark.parametrize("coordinates", ["voxel", "LPS", "RAS"])
@pytest.mark.parametrize("rotation", [np.eye(3), TILT], ids=["straight", "oblique"])
def test_a_point_marks_the_same_voxel_in_all_48_orientations(tmp_path, coordinates, rotation):
    """The voxel is told from all others by its intensity, in the file and in the slices that the network gets."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * (0.7, 0.9, 4.0), (-30, 12, 5)
    canonical = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine)
    marked = 3 * 7 * 5 + 1 * 5 + 4
    for axcodes in AXCODES:
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(canonical.affine), nib.orientations.axcodes2ornt(axcodes)
        )
        image = canonical.as_reoriented(turn)
        voxels = np.ascontiguousarray(image.dataobj)
        (point,) = np.argwhere(voxels == marked)
        if coordinates != "voxel":
            point = apply_affine(image.affine, point + 0.2) * ((-1, -1, 1) if coordinates == "LPS" else 1)
        entry = {"organ": "liver", "positive": [point.tolist()]}
        path = corrections_file(tmp_path, {"a": [entry]}, coordinates=coordinates)
        oriented = Orientation(axcodes="PLS")(MetaTensor(voxels[None], affine=image.affine))
        grid = oriented_grid(image.affine, image.shape)
        np.testing.assert_allclose(grid[0], oriented.affine, atol=1e-5)
        assert grid[1] == tuple(oriented.shape[1:])
        (prompt,) = Corrections(path, ORGANS).prompts("a", image.affine, *grid)
        row, column = prompt.positive[0]
        assert oriented[0, row, column, prompt.slice] == marked and prompt.organ == ORGANS.index("liver")


@pytest.mark.parametrize("shape", [(50, 70), (128, 96), (SIZE, SIZE)], ids=str)
@pytest.mark.parametrize("point", [(20, 31), (41, 9)], ids=str)
def test_prompt_tokens_lie_where_resizing_puts_the_voxel(shape, point):
    image = torch.zeros(1, *shape)
    image[0, point[0] - 2 : point[0] + 3, point[1] - 2 : point[1] + 3] = 1
    resized = Resize((SIZE, SIZE), mode="bilinear", anti_aliasing=False)(image).as_tensor()[0].double()
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centre = [(resized * each).sum().item() / resized.sum().item() for each in (columns, rows)]
    points, labels = correct(0, 0, positive=[point]).tokens(shape, SIZE)
    np.testing.assert_allclose(points[0, 0], centre, atol=0.15)
    assert labels.tolist() == [[1]]


def test_prompt_tokens_are_labelled_as_sam_does():
    prompt = correct(0, 0, positive=[(3, 3)], negative=[(9, 9)], box=[(8, 2), (1, 7)])
    points, labels = prompt.tokens((SIZE, SIZE), SIZE)
    assert labels.tolist() == [[2, 3, 1, 0]]
    assert points[0].tolist() == [[2, 1], [7, 8], [3, 3], [9, 9]]


# ---- one slice


def labels_and_proposal() -> tuple[np.ndarray, np.ndarray]:
    """An organ of two pieces beside another; a proposal that enlarges the first, lacks the second, has a third."""
    labels, proposal = np.zeros((40, 40), int), np.zeros((1, 40, 40), bool)
    labels[5:15, 5:15] = labels[25:35, 25:35] = 1
    labels[5:15, 22:26] = 2
    proposal[0, 5:15, 5:20] = proposal[0, 5:15, 30:38] = True
    return labels, proposal


def after(labels, proposals, usual=100, **points) -> np.ndarray:
    return corrected_mask(labels, proposals, correct(0, 0, **points), usual)


@pytest.mark.parametrize("point, columns", [((10, 17), (15, 20)), ((10, 33), (30, 38))], ids=str)
def test_a_positive_click_adds_the_proposed_piece_that_holds_it(point, columns):
    labels, proposal = labels_and_proposal()
    result = after(labels, proposal, positive=[point])
    assert result[5:15, slice(*columns)].all() and result[labels == 1].all() and not result[20:25].any()


def test_a_negative_click_removes_the_piece_that_the_proposal_lacks():
    labels, proposal = labels_and_proposal()
    result = after(labels, proposal, negative=[(30, 30)])
    assert not result[25:35, 25:35].any() and (result[:20] == (labels[:20] == 1)).all()


def test_a_negative_click_in_the_middle_of_a_compact_piece_removes_it():
    labels, _ = labels_and_proposal()
    result = after(labels, (labels == 1)[None], negative=[(30, 30)])
    assert not result[20:].any() and (result[:20] == (labels[:20] == 1)).all()


def test_of_several_proposals_the_smallest_piece_counts_and_a_much_larger_one_never():
    labels, proposal = labels_and_proposal()
    everywhere = np.ones_like(proposal)
    both = after(labels, np.concatenate([everywhere, proposal]), positive=[(10, 17)])
    assert (both == after(labels, proposal, positive=[(10, 17)])).all()
    assert after(labels, everywhere, positive=[(10, 17)]).sum() < 250


def test_a_click_is_obeyed_against_the_proposal_as_far_as_the_nearest_edge():
    labels, _ = labels_and_proposal()
    proposal = (labels == 1)[None]
    added = after(labels, proposal, positive=[(10, 18)])
    assert added[10, 15:22].all() and not added[10, 22:].any() and added[labels == 1].all()
    removed = after(labels, proposal, negative=[(10, 12)])
    assert not removed[10, 10:].any() and removed[10, 5:10].all() and removed[25:35, 25:35].all()


def test_a_disc_far_from_any_edge_is_no_larger_than_the_organ_nearby():
    labels, proposal = labels_and_proposal()
    added = after(labels, proposal & False, usual=50, positive=[(30, 8)]) & (labels != 1)
    assert added[30, 8] and 30 <= added.sum() <= 50


def test_a_click_far_from_an_organ_that_is_nowhere_near_is_obeyed():
    labels, proposal = np.zeros((20, 20), int), np.zeros((1, 20, 20), bool)
    assert np.argwhere(after(labels, proposal, usual=0, positive=[(3, 4)])).tolist() == [[3, 4]]
    proposal[0, 2:9, 2:9] = True
    assert (after(labels, proposal, usual=0, positive=[(3, 4)]) == proposal[0]).all()


def test_a_click_that_is_obeyed_already_changes_nothing():
    labels, proposal = labels_and_proposal()
    assert (after(labels, proposal, positive=[(7, 7)], negative=[(20, 20)]) == (labels == 1)).all()


def test_nothing_is_left_outside_a_box_and_the_proposal_is_added_inside():
    labels, proposal = labels_and_proposal()
    result = after(labels, proposal, box=[(16, 18), (4, 2)])
    expected = np.zeros_like(result)
    expected[5:15, 5:19] = True
    assert (result == expected).all()


def test_a_mask_that_spans_its_box_is_only_clipped():
    labels, proposal = labels_and_proposal()
    expected = np.zeros((40, 40), bool)
    expected[5:15, 5:14] = True
    assert (after(labels, proposal | True, box=[(5, 5), (15, 13)]) == expected).all()


def test_a_click_outside_is_shown_with_the_middle_of_what_it_leaves():
    mask = labels_and_proposal()[0] == 1
    mask[5:15, 3:15] = True
    seen = correct(0, 0, negative=[(30, 30)]).seen(mask)
    assert 8 <= seen.positive[0][0] <= 11 and 7 <= seen.positive[0][1] <= 10
    inside = correct(0, 0, negative=[(30, 30)], positive=[(6, 6)])
    assert inside.seen(mask) is inside


# ---- a volume


@pytest.fixture(scope="module")
def network():
    """Without the object gate, which random weights may close everywhere."""
    torch.manual_seed(0)
    prior = MemoryPrior(32, 128, organs=2, condition_channels=16, block_out_channels=(16, 32), attention_levels=1)
    prior.fitted.fill_(True)
    return DiffuSAM(FrozenSAM2("sam2_nano", SIZE), prior, organs=("spleen", "liver"), object_gate=False).eval()


@pytest.fixture(scope="module")
def volume():
    return torch.rand(1, 1, 50, 70, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def before(network, volume):
    return logits_with(network, volume, None)


def corrected(network, volume, prompts, reach=0, **options):
    return logits_with(network, volume, Corrector(prompts, reach), **options)


def logits_with(network, volume, corrector: Corrector | None, **options):
    return VolumetricInferer(output="logits", batch_size=4, **options)(volume, network, corrector=corrector)


@pytest.mark.parametrize("organ, point", [(0, (0, 0)), (1, (25, 40)), (1, (49, 69))], ids=str)
def test_the_result_obeys_clicks(network, volume, organ, point):
    inside = corrected(network, volume, [correct(organ, 2, positive=[point])]).argmax(1)
    outside = corrected(network, volume, [correct(organ, 2, negative=[point])]).argmax(1)
    assert inside[(0, *point, 2)] == organ + 1 and outside[(0, *point, 2)] != organ + 1


def test_clicks_on_neighbouring_voxels_and_organs_are_all_obeyed(network, volume):
    """Though they are nearer to one another than the decoder's mask can tell apart."""
    prompts = [correct(0, 3, positive=[(20, 20)], negative=[(20, 21)]), correct(1, 3, positive=[(21, 20)])]
    labels = corrected(network, volume, prompts).argmax(1)[0, ..., 3]
    assert labels[20, 20] == 1 and labels[20, 21] != 1 and labels[21, 20] == 2


@pytest.mark.parametrize("options", [{}, {"no_3d": True}, {"views": [[0, 1], [9, 1.1]]}], ids=str)
def test_other_organs_and_slices_out_of_reach_stay_bit_for_bit(network, volume, options):
    before = logits_with(network, volume, None, **options)
    inside = before[0].argmax(0)[25, 40, 2] == 2
    click = {"negative" if inside else "positive": [(25, 40)]}
    after = corrected(network, volume, [correct(1, 2, **click)], reach=1, **options)
    assert torch.equal(after[:, :2], before[:, :2])
    assert torch.equal(after[..., [0, 4, 5, 6]], before[..., [0, 4, 5, 6]])
    assert not torch.equal(after[:, 2, ..., 2], before[:, 2, ..., 2])


def test_no_prompt_changes_nothing(network, volume, before):
    assert torch.equal(corrected(network, volume, [], reach=2), before)


@pytest.mark.parametrize(
    "corrected, expected",
    [
        ((1, 4), {1: [], 0: [0, 0], 2: [0, 0], 4: [], 3: [0, 0], 5: [0, 0], 6: [0, 0, 1]}),
        ((1, 3), {1: [], 0: [0, 0], 3: [], 4: [0, 0], 5: [0, 0, 1]}),
    ],
)
def test_neighbours_see_the_corrected_slice_and_the_nearer_of_two(network, volume, monkeypatch, corrected, expected):
    """From slices 1 and 4, two slices on: 0 and 2 belong to the first, 3, 5 and 6 to the second. From 1 and 3, the one
    in the middle belongs to neither.
    """
    seen, present = [], []

    def condition(features, memories=()):
        seen.append((present[-1], [memory.distance for memory in memories]))
        return features.embedding

    # every slice has something to learn, here a voxel to lose
    monkeypatch.setattr("scripts.segmentation.corrected_slices.touching", lambda regions, seeds: np.ones_like(regions))
    monkeypatch.setattr(
        "scripts.segmentation.corrected_slices._mask", lambda logits, *_: np.ones(logits.shape[1:], bool)
    )
    monkeypatch.setattr(
        "scripts.segmentation.corrected_slices.corrected_mask", lambda labels, *_: np.eye(*labels.shape, dtype=bool)
    )

    class Watched(Corrector):
        def __call__(self, source, decoded):
            features = source.features
            monkeypatch.setattr(source, "features", lambda indices: (present.append(indices[0]), features(indices))[1])
            monkeypatch.setattr(network.backbone, "condition", condition)
            return super().__call__(source, decoded)

    logits_with(network, volume, Watched([correct(0, index, positive=[(5, 5)]) for index in corrected], 2))
    assert dict(seen) == expected


def test_a_slice_that_loses_all_of_an_organ_changes_no_neighbour(network, volume, before, monkeypatch):
    monkeypatch.setattr(
        "scripts.segmentation.corrected_slices.corrected_mask", lambda labels, *_: np.zeros(labels.shape, bool)
    )
    after = corrected(network, volume, [correct(1, 3, negative=[(5, 5)])], reach=3)
    assert not (after.argmax(1)[..., 3] == 2).any()
    assert torch.equal(after[..., [0, 1, 2, 4, 5, 6]], before[..., [0, 1, 2, 4, 5, 6]])


@pytest.mark.parametrize("kind, says", [("positive", -20.0), ("negative", 20.0)])
def test_neighbours_do_not_lose_by_a_click_inside_nor_gain_by_one_outside(network, volume, monkeypatch, kind, says):
    """Whatever the decoder makes of the conditioning memory: here, all or nothing."""
    before = logits_with(network, volume, None)
    # a voxel that disobeys the click, on a slice where it does
    wrong = (before.argmax(1)[0] == 2) == (kind == "negative")
    row, column, index = wrong.nonzero()[len(wrong.nonzero()) // 2].tolist()

    def decode(conditioned, features):
        ones = torch.ones(len(conditioned), 1)
        return Decoded(torch.full((len(conditioned), 1, SIZE // 4, SIZE // 4), says), ones, ones, ones)

    class Watched(Corrector):
        def __call__(self, source, decoded):
            monkeypatch.setattr(network.backbone, "decode", decode)
            return super().__call__(source, decoded)

    after = logits_with(network, volume, Watched([correct(1, index, **{kind: [(row, column)]})], 2))
    neighbours = [each for each in range(7) if each != index]
    assert torch.equal(after[..., neighbours], before[..., neighbours])
    assert not torch.equal(after[..., index], before[..., index])


def test_reach_must_not_be_negative():
    with pytest.raises(ValueError, match="correction_reach"):
        Corrector([], -1)


# ---- benchmarks/corrections.py


def test_the_simulated_click_is_in_the_middle_of_the_largest_error_of_the_worst_slice():
    true, before = np.zeros((2, 30, 30, 3), bool)
    true[5:14, 5:20, :] = before[5:14, 5:20, :] = True
    before[20:27, 20:27, 0] = True  # invented, 49 voxels
    before[5:14, 13:20, 1] = False  # missed, 63 voxels, and a few more elsewhere
    before[20:23, 20:23, 1] = True
    prompt, told = simulated_prompt(true, before, 2, "click")
    assert (prompt.slice, prompt.organ, told["sign"], told["voxels"]) == (1, 2, "positive", 63)
    assert prompt.positive.tolist()[0][1] == 16 and 8 <= prompt.positive[0][0] <= 10 and not len(prompt.negative)
    prompt, told = simulated_prompt(true[..., :1], before[..., :1], 2, "click")
    assert (told["sign"], prompt.negative.tolist()) == ("negative", [[23, 23]])
    assert simulated_prompt(true, before, 2, "box")[0].box.tolist() == [[5, 5], [13, 19]]


def test_no_prompt_is_simulated_where_nothing_is_wrong_or_there_is_nothing_to_box():
    mask = np.zeros((9, 9, 2), bool)
    assert simulated_prompt(mask, mask, 0, "click")[0] is None
    assert simulated_prompt(mask, mask, 0, "box")[0] is None


def test_a_mean_is_of_the_same_trials_before_and_after():
    """A piece where there is no organ is none: it would count 0 before the click takes it away, and nothing after."""
    trials = [
        {"kind": "click", "organ": "spleen", "dice": [0.8, 0.9], "slice_dice": [0.6, 0.7]},
        {"kind": "click", "organ": "spleen", "dice": [0.9, 0.91], "slice_dice": [0.0, None]},
    ]
    (of_organ, of_all) = summarise(trials, ["spleen"])
    assert of_organ["dice"] == [0.85, 0.905] and of_organ["slice_dice"] == [0.6, 0.7]
    assert (of_all["trials"], of_all["slices"]) == (2, 1)
    assert summarise(trials[1:], ["spleen"])[0]["slice_dice"] is None

    nothing, piece = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert dice(piece, nothing) is None and dice(nothing, nothing) is None
    assert (dice(nothing, piece), dice(piece, piece)) == (0, 1)


def test_corrections_are_measured_on_label_maps_as_they_are_written(monkeypatch):
    """What is done to them at the end, here taking the first slice away, happens before and after the correction."""

    class AllOfIt:
        def __init__(self, prompts, reach):
            pass

        def needs(self, index: int) -> bool:
            return True

        def __call__(self, source, decoded):
            return {index: torch.full((1, 1, 16, 16), 9.0) for index in decoded}

    monkeypatch.setattr(benchmark, "Corrector", AllOfIt)
    truth = np.ones((16, 16, 3), int)
    trials: list[dict] = []

    def without_first(labels: np.ndarray) -> np.ndarray:
        return np.concatenate([labels[..., :1] * 0, labels[..., 1:]], -1)

    simulation = Simulation("a", truth, organs=["spleen"], reaches=[3], trials=trials, finish=without_first)
    source = SimpleNamespace(device=torch.device("cpu"))
    simulation(source, {index: torch.full((1, 4, 4), 9.0 if index < 2 else -9.0) for index in range(3)})

    click = trials[0]
    assert click["dice"] == [pytest.approx(2 / 4), pytest.approx(4 / 5)] and click["slice"] == 0


# ---- `run inferring --corrections`


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, backbone_file, write_dataset) -> Path:
    folder = tmp_path_factory.mktemp("project")
    path = write_overlay(folder, write_dataset(folder / "dataset"), backbone_file, input=str(folder / "scans"))
    torch.manual_seed(0)
    network = new_workflow("inferring", path).parser.get_parsed_content("network_def")
    network.prior.fitted.fill_(True)
    torch.save({"model": network.state_dict()}, folder / "model.pt")
    (folder / "scans").mkdir()
    for case, axcodes in (("a", "RAS"), ("b", "SLA")):
        image = nib.load(folder / "dataset" / f"image_{case}.nii.gz")
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes))
        nib.save(image.as_reoriented(turn), folder / "scans" / f"{case}.nii.gz")
    return path


def test_corrected_cases_are_segmented_again_and_no_others(overlay, tmp_path):
    output = tmp_path / "output"

    def segment(cases: dict | None) -> tuple[dict, dict, dict]:
        path = None if cases is None else str(corrections_file(tmp_path, cases))
        before = {file.name: file.stat().st_mtime_ns for file in output.glob("*_seg.nii.gz")}
        run("inferring", overlay, output=str(output), corrections=path, handlers=overlay_handlers())
        maps = {file.name[0]: np.asarray(nib.load(file).dataobj) for file in output.glob("*_seg.nii.gz")}
        again = {
            file.name[0] for file in output.glob("*_seg.nii.gz") if file.stat().st_mtime_ns != before.get(file.name)
        }
        return maps, again, json.loads((output / "results.json").read_text())["cases"]

    plain, again, _ = segment(None)
    assert again == {"a", "b"}
    point = [5, 30, 20]  # of a file whose first axis runs upwards
    organ = ORGANS[int(plain["b"][tuple(point)]) % len(ORGANS)]  # another one than is there
    entries = {"b": [{"organ": organ, "positive": [point]}]}
    maps, again, records = segment(entries)
    assert again == {"b"} and maps["b"][tuple(point)] == ORGANS.index(organ) + 1
    assert records["b"]["corrections"]["entries"] == entries["b"] and "corrections" not in records["a"]
    assert segment(entries)[1] == set()
    maps, again, records = segment(None)
    assert again == {"b"} and (maps["b"] == plain["b"]).all() and "corrections" not in records["b"]


@pytest.fixture(scope="module")
def wide_scan(overlay, tmp_path_factory) -> tuple[Path, int]:
    """A scan with as much air on all sides in plane as there is body, and how many voxels of it."""
    image = nib.load(overlay.parent / "scans" / "a.nii.gz")
    voxels = np.asarray(image.dataobj)
    air = min(voxels.shape[:2])
    path = tmp_path_factory.mktemp("wide") / "w.nii.gz"
    padded = np.pad(voxels, ((air, air), (air, air), (0, 0)), constant_values=-1024)
    nib.save(nib.Nifti1Image(padded, image.affine), path)
    return path, air


def test_corrections_are_obeyed_in_a_scan_that_is_cropped_to_the_body(overlay, wide_scan, tmp_path):
    scan, air = wide_scan
    output = tmp_path / "output"

    def segment(cases: dict) -> np.ndarray:
        path = corrections_file(tmp_path, cases)
        places = {"input": str(scan), "output": str(output), "corrections": path}
        run("inferring", overlay, **places, body_fill=0.8, handlers=overlay_handlers())
        return np.asarray(nib.load(output / "w_seg.nii.gz").dataobj)

    plain = segment({})
    point = [air + 20, air + 30, 5]
    organ = ORGANS[int(plain[tuple(point)]) % len(ORGANS)]
    corner = [0, 0, 5]  # of the image: no news
    corrected = segment({"w": [{"organ": organ, "positive": [point], "negative": [corner]}]})

    assert corrected.shape == nib.load(scan).shape and corrected[tuple(point)] == ORGANS.index(organ) + 1
    body = np.zeros(plain.shape, bool)
    body[air - 3 : 3 - air, air - 3 : 3 - air] = True
    assert plain.any() and not plain[~body].any() and not corrected[~body].any()


@pytest.mark.parametrize("points", [{"positive": [[0, 0, 5]]}, {"box": [[0, 0, 5], [3, 3, 5]]}], ids=str)
def test_an_organ_is_not_said_to_be_outside_the_body(overlay, wide_scan, tmp_path, points):
    path = corrections_file(tmp_path, {"w": [{"organ": "liver", **points}]})
    with pytest.raises(Exception) as caught:
        places = {"input": str(wide_scan[0]), "output": str(tmp_path / "output"), "corrections": str(path)}
        run("inferring", overlay, **places, body_fill=0.8)
    record = json.loads((tmp_path / "output" / "results.json").read_text())["cases"]["w"]
    assert "points of liver lie outside the body" in record["error"], caught


def test_a_prompt_on_a_part_of_its_slice_is_where_it_was():
    prompt = correct(0, 2, positive=[(7, 9)], negative=[(6, 8), (0, 9)], box=[(9, 12), (2, 3)])

    part = prompt.within((slice(5, 10), slice(6, 11)))

    assert (part.organ, part.slice) == (0, 2)
    assert part.positive.tolist() == [[2, 3]] and part.negative.tolist() == [[1, 2]]
    assert part.box.tolist() == [[4, 4], [0, 0]]
    assert correct(0, 2, positive=[(4, 9)]).within((slice(5, 10), slice(6, 11))) is None


@pytest.mark.parametrize(
    "case, said",
    [
        ("p2_scan", None),
        ("scan", "results of another image bear this name; those of '{}' are called 'p2_scan'. Correct the name."),
        ("other", "no such image; the input has p2_scan"),
    ],
)
def test_a_case_is_corrected_by_the_name_of_its_results(tmp_path, tiny_dataset, case, said):
    """Results of two patients whose files are called alike are told apart, and so are their corrections."""
    for folder, name in (("p1", "a"), ("p2", "b")):
        (tmp_path / folder).mkdir()
        shutil.copy(tiny_dataset / f"image_{name}.nii.gz", tmp_path / folder / "scan.nii.gz")
    (tmp_path / "prior.pt").touch()
    images = {folder: str(tmp_path / folder / "scan.nii.gz") for folder in ("p1", "p2")}
    entries = [{"organ": ORGANS[0], "positive": [[1, 1, 1]]}]
    corrections = Corrections(corrections_file(tmp_path, {case: entries}), ORGANS)

    def records() -> CaseRecords:
        return CaseRecords(tmp_path / "out", tmp_path / "prior.pt", settings={}, corrections=corrections.recorded())

    for folder, called in (("p1", "scan"), ("p2", "p2_scan")):
        run_of = records()
        (item,) = run_of.pending([{"image": images[folder], "case": "scan"}])
        assert item["case"] == called
        run_of.begin(item)
        write_label_map(tmp_path / "out" / f"{called}_seg.nii.gz")
        run_of.complete(item, seconds=1.0, shape=(4, 5, 6))
    recorded = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert {name for name, record in recorded.items() if "corrections" in record} == {case} - {"other"}

    items = records().called([{"image": images["p2"], "case": "scan"}])
    if said is None:
        corrections.check(items, VolumeReader())
    else:
        with pytest.raises(DatasetError, match=re.escape(said.format(images["p2"]))):
            corrections.check(items, VolumeReader())


def test_corrections_of_an_unknown_case_end_the_run_before_anything_is_segmented(overlay, tmp_path):
    path = corrections_file(tmp_path, {"z": [{"organ": "liver", "positive": [[0, 0, 0]]}]})
    with pytest.raises(Exception) as caught:
        run("inferring", overlay, output=str(tmp_path / "output"), corrections=str(path))
    assert "case 'z': no such image" in str(user_error(caught.value))
    assert not (tmp_path / "output").exists()


def overlay_handlers() -> list[dict]:
    """No previews."""
    return [{"_target_": "CheckpointLoader", "load_path": "@prior_file", "load_dict": "$dict(model=@network)"}]
