"""What hangs on an organ by a thin bridge is cut off, and nothing else is."""

import numpy as np
import pytest
from scripts.data.bridges import bridged


def ball(shape, centre, radius, spacing=(1.0, 1.0, 1.0)):
    places = np.indices(shape).T * spacing
    return (np.linalg.norm(places - centre, axis=-1) <= radius).T


def dumbbell(bridge, small, *, shape=(60, 40, 120), spacing=(1.0, 1.0, 1.0)):
    """A ball of 18 mm, a smaller one 60 mm away, and a bar between them; and which voxels are nearer the smaller."""
    sizes = np.round(np.divide(shape, spacing)).astype(int)
    x, y, z = np.indices(sizes) * np.reshape(spacing, (3, 1, 1, 1))
    organ = ball(sizes, (30, 20, 25), 18, spacing) | ball(sizes, (30, 20, 85), small, spacing)
    return organ | ((np.hypot(x - 30, y - 20) <= bridge) & (z > 25) & (z < 85)), z > 55


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.7, 4.0), (4.0, 1.0, 0.6), (2.0, 2.0, 2.0)])
def test_what_hangs_on_an_organ_by_a_thin_bridge_is_cut_off(spacing):
    organ, beyond = dumbbell(4.5, 11, spacing=spacing)

    cut = bridged(organ, spacing)

    assert not (cut & ~organ).any()
    assert cut[ball(organ.shape, (30, 20, 85), 9, spacing)].all()
    assert not cut[ball(organ.shape, (30, 20, 25), 17, spacing)].any()
    assert (cut & ~beyond).sum() < 0.25 * cut.sum()  # of the bridge at most some goes with it


@pytest.mark.parametrize(("bridge", "small"), [(9, 11), (4.5, 15), (4.5, 5), (0, 1)])
def test_thick_bridges_large_pieces_and_thin_tails_stay(bridge, small):
    """9 mm beside 11 mm is no bridge; 15 mm is over 0.4 of the organ; a ball of 5 mm is as thin as its bridge."""
    organ, _ = dumbbell(bridge, small) if bridge else (ball((40, 40, 40), (20, 20, 20), 15), None)

    assert not bridged(organ, (1, 1, 1)).any()


def test_it_does_not_depend_on_how_the_volume_lies():
    organ, _ = dumbbell(4.5, 11)

    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        turned = bridged(np.ascontiguousarray(organ.transpose(axes)), (1, 1, 1))
        assert (turned.transpose(np.argsort(axes)) == bridged(organ, (1, 1, 1))).mean() > 0.999


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 9), (3, 1, 1), (2, 2, 400)])
def test_organs_of_any_extent(shape):
    assert not bridged(np.ones(shape, bool), (0.5, 3.0, 1.0)).any()
    assert not bridged(np.zeros(shape, bool), (0.5, 3.0, 1.0)).any()
