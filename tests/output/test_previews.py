"""Previews: readable files, and the same preview however a volume is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor
from monai.transforms import Orientation, SpatialCrop
from scripts.output.previews import COLOURS, DPI, PreviewSaver, draw_preview, draw_slice, save_figure

ORGANS = ["spleen", "liver"]


@pytest.fixture
def volume():
    """Image, prediction and truth stored RAS, with nothing symmetric about them."""
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0], dtype=torch.float64))
    image = torch.linspace(0, 1, 30 * 24 * 4).reshape(1, 30, 24, 4)
    truth = torch.zeros(1, 30, 24, 4)
    truth[:, 4:12, 3:9, 1:3] = 1
    truth[:, 16:27, 12:20, 1:4] = 2
    prediction = truth.roll(1, 1)
    return tuple(MetaTensor(values, affine=affine) for values in (image, prediction, truth))


def pixels(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def draw(image, prediction, truth=None, **options):
    return draw_preview(image, prediction, ORGANS, truth=truth, **options)


@pytest.mark.parametrize("axcodes", ["RAS", "PLS", "SLA"])
def test_of_an_image_that_is_a_part_of_the_grid_the_organs_are_drawn_where_they_are(volume, axcodes):
    image, prediction, truth = volume
    rows, columns = slice(2, 29), slice(1, 22)
    part = (SpatialCrop(roi_slices=[rows, columns])(each) for each in (image, prediction, truth))
    expected = draw(*part, window=(0, 1))
    turn = Orientation(axcodes=axcodes)

    shown = SpatialCrop(roi_slices=[rows, columns])(image)
    found = draw(turn(shown), turn(prediction), truth, window=(0, 1))

    assert (pixels(found) == pixels(expected)).all()


@pytest.mark.parametrize("with_truth", [True, False])
def test_a_saved_figure_is_a_readable_png(tmp_path, volume, with_truth):
    image, prediction, truth = volume

    save_figure(draw(image, prediction, truth if with_truth else None), tmp_path / "new" / "case.png")

    assert imread(tmp_path / "new" / "case.png").ndim == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["case.png"]


@pytest.mark.parametrize("stored", ["LAS", "LPS", "PLS", "SAR"])
def test_the_picture_does_not_depend_on_how_the_volume_is_stored(volume, stored):
    reordered = [Orientation(axcodes=stored)(values) for values in volume]

    picture = pixels(draw(*reordered))

    np.testing.assert_array_equal(picture, pixels(draw(*volume)))


def test_anterior_is_up_and_the_patients_right_on_the_left():
    image = torch.zeros(1, 20, 20, 1)
    image[:, 17:, 17:] = 1  # stored RAS: the far corner is right and anterior
    image = MetaTensor(image, affine=torch.eye(4, dtype=torch.float64))

    figure = draw(image, torch.zeros_like(image), window=(0, 1))

    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.argwhere(shown)[:, 0], np.repeat([0, 1, 2], 3))
    np.testing.assert_array_equal(np.argwhere(shown)[:, 1], np.tile([0, 1, 2], 3))


def test_truth_adds_to_the_preview(volume):
    image, prediction, truth = volume

    assert not np.array_equal(pixels(draw(image, prediction, truth)), pixels(draw(image, prediction)))


def test_only_slices_that_hold_an_organ_are_shown(volume):
    image, prediction, truth = volume

    figure = draw(image, prediction, truth, columns=3)

    assert [axis.get_title() for axis in figure.axes] == ["slice 1", "slice 2", "slice 3"]


def test_a_volume_without_any_organ_is_drawn_all_the_same(volume):
    image, prediction, _ = volume

    figure = draw(image, torch.zeros_like(prediction), columns=2)

    assert len(figure.axes) == 2


def test_the_handler_names_a_picture_after_its_case(tmp_path, volume):
    image, prediction, truth = volume
    image.meta["filename_or_obj"] = "/somewhere/img0007.nii.gz"
    engine = Engine(lambda engine, batch: [{"image": image, "pred_labels": prediction, "label": truth}])
    PreviewSaver(tmp_path, ORGANS, prediction_key="pred_labels").attach(engine)

    engine.run([0])

    assert [path.name for path in tmp_path.iterdir()] == ["img0007.png"]
    save_figure(draw(image, prediction, truth), tmp_path / "expected.png")
    np.testing.assert_array_equal(imread(tmp_path / "img0007.png"), imread(tmp_path / "expected.png"))


def test_image_and_prediction_may_be_stored_differently(volume):
    """Preprocessing turns the image; the prediction comes back as the file is stored."""
    image, prediction, _ = volume

    picture = pixels(draw(Orientation(axcodes="PLS")(image), Orientation(axcodes="SAR")(prediction)))

    np.testing.assert_array_equal(picture, pixels(draw(image, prediction)))


@pytest.mark.parametrize("with_truth", [True, False])
@pytest.mark.parametrize("shape", [(21, 17), (21, 1), (2, 2)])
def test_outlines_are_those_that_matplotlib_draws(shape, with_truth):
    random = np.random.default_rng(0)
    image, predicted, true = random.random(shape), random.integers(0, 3, shape), random.integers(0, 3, shape)
    figures = [Figure(), Figure()]
    here, expected = (figure.add_subplot() for figure in figures)

    draw_slice(here, image, predicted, true=true if with_truth else None, organs=2, window=(0, 1))

    expected.imshow(image, cmap="gray", vmin=0, vmax=1)
    for value, colour in ((1, COLOURS[0]), (2, COLOURS[1])):
        if min(shape) > 1 and (predicted == value).any():
            expected.contourf(predicted == value, levels=[0.5, 1.5], colors=[colour], alpha=0.35)
            expected.contour(predicted == value, levels=[0.5], colors=[colour], linewidths=1.2)
        if min(shape) > 1 and with_truth and (true == value).any():
            expected.contour(true == value, levels=[0.5], colors="white", linewidths=0.7, linestyles="dashed")
    expected.axis("off")
    for figure in figures:
        FigureCanvasAgg(figure)
    np.testing.assert_array_equal(pixels(figures[0]), pixels(figures[1]))


def test_an_organ_that_fills_the_slice_has_no_outline(volume):
    image, prediction, _ = volume

    drawn, empty = (pixels(draw(image, torch.full_like(prediction, value))) for value in (1, 0))

    assert not np.array_equal(drawn, empty)


def test_a_saved_figure_is_the_picture_that_matplotlib_saves(tmp_path, volume):
    image, prediction, truth = volume
    figure = draw(image, prediction, truth)
    figure.savefig(tmp_path / "expected.png", dpi=DPI, facecolor=figure.get_facecolor())

    save_figure(figure, tmp_path / "case.png")

    np.testing.assert_array_equal(imread(tmp_path / "case.png"), imread(tmp_path / "expected.png"))


MANY = ["spleen", "right kidney", "left kidney", "liver", "right adrenal gland", "left adrenal gland", "oesophagus"]


@pytest.mark.parametrize("organs", [ORGANS, MANY[:4], MANY, [*MANY, *(f"{name} too" for name in MANY)]], ids=len)
@pytest.mark.parametrize("slices", [1, 3, 20])
def test_every_name_of_the_legend_is_within_the_picture_and_below_the_slices(volume, organs, slices):
    image, _, truth = volume
    stacked = (
        MetaTensor(torch.cat([each[..., 1:2]] * slices, -1), affine=each.affine) for each in (image, truth, truth)
    )

    figure = draw_preview(next(stacked), next(stacked), organs, truth=next(stacked))

    figure.dpi = DPI
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= -1
    assert all(box.y1 <= axis.get_window_extent().y0 + 1 for axis in figure.axes)
    assert [text.get_text() for text in legend.get_texts()] == [*organs, "true outline"]
