"""Volumes as they are stored, from the file to the network and back: seen in another orientation, copied nowhere.

A scan of 1500 slices is large, and each copy of it, or of it in float32, would be most of the memory that inference
takes. So the voxels that were read stay where they are and of the type they are; axes are exchanged by looking at them
in another order, and reversed in place. What becomes of the header is left to MONAI's own transforms, which are
shown a volume without voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import InvertibleTransform, LoadImage, MapTransform, Orientation, ScaleIntensityRange
from monai.transforms import ScaleIntensityRanged as Window
from monai.utils.type_conversion import UNSUPPORTED_TYPES
from torch import Tensor

from .intensity import chosen
from .transforms import InSlabsd
from .volumes import VolumeReader

WINDOW = "window"  # in the meta of an image that is not scaled yet: what :func:`scaled` does

_SLICES = 16  # reversed at a time


class LoadOrientedd(MapTransform, InvertibleTransform):
    """MONAI's ``LoadImaged`` with ``dtype`` None, and ``Orientationd``, in one and without copies of the volume.

    Where the results are inverted, label maps are turned in place as well: what is inverted is used up.

    Args:
        keys: paths; become MetaTensors ``(1, H, W, slices)`` of the type that is stored, with the record of one
            ``Orientation``. They need not lie in memory in the order of their axes.
        reader: of the files.
        axcodes: of the result, see ``monai.transforms.Orientation``.
    """

    def __init__(self, keys: KeysCollection, *, reader: VolumeReader, axcodes: str) -> None:
        super().__init__(keys)
        self.headers = _HeadersAlone(reader)
        self.load = LoadImage(reader=self.headers, dtype=None, ensure_channel_first=True)
        self.orientation = Orientation(axcodes=axcodes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            stand_in = self.load(result[key])
            voxels = as_stored(self.headers.take())
            stored = MetaTensor(voxels[None]).copy_meta_from(stand_in)
            result[key] = turned(stored, self.orientation)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = turned(result[key], self.orientation.inverse)
        return result


class _HeadersAlone(ImageReader):
    """Gives ``LoadImage``, which would copy them, tensors of the right shape without voxels, and keeps the voxels."""

    def __init__(self, reader: VolumeReader) -> None:
        super().__init__()
        self.reader = reader
        self._voxels: np.ndarray | None = None

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return self.reader.verify_suffix(filename)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[PathLike, ...]:
        return self.reader.read(data, **kwargs)

    def get_data(self, img: Sequence[PathLike]) -> tuple[Tensor, dict[str, Any]]:
        self._voxels, meta = self.reader.stored(img)
        return torch.empty(self._voxels.shape, device="meta"), meta

    def take(self) -> np.ndarray:
        """The voxels of the file read last, once."""
        voxels, self._voxels = self._voxels, None
        assert voxels is not None
        return voxels


def as_stored(voxels: np.ndarray) -> Tensor:
    """An array as a tensor over the same memory, unless it is of a type or a kind of memory that PyTorch has not."""
    if not voxels.flags.writeable or min(voxels.strides, default=0) < 0:
        voxels = voxels.copy(order="K")
    if not voxels.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(voxels.dtype.newbyteorder("="))
    return torch.from_numpy(voxels.astype(UNSUPPORTED_TYPES.get(voxels.dtype, voxels.dtype), copy=False))


def turned(volume: MetaTensor, turn: Callable[[MetaTensor], MetaTensor]) -> MetaTensor:
    """What a transform that exchanges and reverses axes makes of a volume ``(C, I, J, K)``, over the same memory.

    Args:
        volume: on the CPU; where axes are reversed, its voxels are.
        turn: such as ``monai.transforms.Orientation``.
    """
    stand_in = turn(MetaTensor(torch.empty(volume.shape, device="meta")).copy_meta_from(volume))
    # each axis of the result along an axis of the volume: one number in each column, 1 or -1
    axes = np.linalg.solve(np.asarray(volume.affine, float), np.asarray(stand_in.affine, float))[:3, :3].round()
    order = np.abs(axes).argmax(0)
    voxels = volume.as_tensor()
    for channel in voxels.numpy():
        flip_in_place(channel, [axis for axis in range(3) if axes[axis].sum() < 0])
    return MetaTensor(voxels.permute(0, *(order + 1).tolist())).copy_meta_from(stand_in)


def flip_in_place(voxels: np.ndarray, axes: Sequence[int]) -> None:
    """Reverses axes of an array ``(I, J, K)``, with memory for a few slices."""
    if not axes:
        return
    slowest = int(np.argmax(np.abs(voxels.strides)))
    planes = np.moveaxis(voxels, slowest, 0)
    others = [axis for axis in range(voxels.ndim) if axis != slowest]
    turn = tuple(slice(None, None, -1 if axis in axes else 1) for axis in others)
    if slowest not in axes:
        for start in range(0, len(planes), _SLICES):
            slab = planes[start : start + _SLICES]
            slab[...] = slab[(slice(None), *turn)].copy()
        return
    for first in range((len(planes) + 1) // 2):
        last = len(planes) - 1 - first
        plane = planes[first][turn].copy()
        planes[first] = planes[last][turn].copy()
        planes[last] = plane


class ScaleLaterd(MapTransform):
    """Leaves images that are scaled in a window as they are stored, and notes the window for whoever reads them.

    Scaled, a volume would take twice to four times its memory; :func:`scaled` does it for some slices at a time.

    Args:
        transform: over a dictionary. Any but MONAI's ``ScaleIntensityRanged`` looks at the whole volume, and is
            applied, see :class:`~scripts.data.transforms.InSlabsd`.
    """

    def __init__(self, transform: MapTransform) -> None:
        super().__init__(transform.keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            transform = chosen(self.transform, result[key])
            if isinstance(transform, Window) and None not in (transform.scaler.b_min, transform.scaler.b_max):
                of = transform.scaler
                result[key].meta[WINDOW] = torch.tensor([of.a_min, of.a_max, of.b_min, of.b_max, of.clip]).double()
            else:
                result[key] = InSlabsd(transform)({**result})[key]
        return result


def scaled(voxels: Tensor, image: Any) -> Tensor:
    """Some voxels of an image in float32, scaled as is noted in its meta, if it is.

    Args:
        voxels: any part of the image.
        image: the image, alone or in a batch of one.
    """
    noted = getattr(image, "meta", {}).get(WINDOW)
    if noted is None:
        return voxels.float()
    *window, clip = torch.as_tensor(noted).flatten().tolist()
    return ScaleIntensityRange(*window, clip=bool(clip))(voxels.float())
