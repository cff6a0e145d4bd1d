"""What the rows that work slice by slice share: a volume in, logits of slices, a label map out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Pad, Resize, SpatialCrop
from monai.utils import convert_to_tensor
from nibabel.orientations import aff2axcodes
from scripts.data.grids import beyond, place_within
from scripts.data.transforms import ResizeLabeld
from scripts.networks.naming_head import smoothed
from scripts.networks.sam2_backbone import SAM2
from scripts.networks.sam2_types import ImageFeatures
from scripts.segmentation.label_maps import LabelMapInferer
from scripts.segmentation.walked_slices import with_neighbours
from torch import Tensor, nn


class SlicewiseInferer(LabelMapInferer):
    """Base of inferers that yield organ logits of slices, in any order and at any resolution.

    Args:
        organs: K.
    """

    def __init__(self, organs: int) -> None:
        super().__init__("labels_and_organs")
        self.organs = organs

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module, *args, **kwargs) -> Tensor:
        """Segments a volume.

        Args:
            inputs: ``(1, 1, H, W, slices)`` in [0, 1], slices along the last axis.
            network: see the subclass.
            args: for :meth:`segment`.

        Returns:
            ``(1, 2, H, W, slices)`` on the device of ``inputs``: the label map, each voxel with the organ of highest
            logit, or 0 where none is positive; and a map whose bit i - 1 is set where organ i's own logit is positive.

        Raises:
            ValueError: another shape.
        """
        output = self._empty_output(self._volume(inputs), self.organs).zero_()
        for indices, logits in self.segment(inputs, network, *args):
            self._write(output, indices, logits.float())
        return self._result(output, inputs)

    @abstractmethod
    def segment(self, inputs: Tensor, network: nn.Module, *args) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yields indices of n slices and their organ logits ``(n, K, h, w)``; slices that never come are background."""


def smoothed_along(named: Iterable[tuple[list[int], Tensor]], weight: float) -> Iterator[tuple[list[int], Tensor]]:
    """What a network says of all slices of a volume, each together with the slices on both sides: for networks of
    single slices what ``names_smoothing`` is for DiffuSAM.

    Args:
        named: indices of slices in their order, and logits ``(n, classes, h, w)`` of all classes.
        weight: of the log-probabilities on either side beside a slice's own; 0 leaves all as it is.
    """
    if not weight:
        yield from named
        return
    indices, logits = zip(*named)
    own = torch.cat(logits).log_softmax(1)
    before, after = torch.cat([own[:1], own[:-1]]), torch.cat([own[1:], own[-1:]])
    yield [index for part in indices for index in part], smoothed(before, own, after, weight)


def network_slices(inputs: Tensor, indices: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Some slices of a volume ``(1, 1, H, W, slices)`` as a network takes them: ``(n, 1, size, size)``.

    In plane this is what the training's `Resized` does to a volume.
    """
    slices = convert_to_tensor(inputs[0, 0][..., list(indices)], track_meta=False).permute(2, 0, 1).float()
    resized = Resize((size, size), mode="bilinear", anti_aliasing=True)(slices)
    return convert_to_tensor(resized, track_meta=False)[:, None].to(device)


def encoded_slices(inputs: Tensor, indices: Sequence[int], network: SAM2) -> ImageFeatures:
    """Image features of some slices of a volume ``(1, 1, H, W, slices)``, shown as training shows them."""
    return network.encode_image(shown_slices(inputs, indices, network))


def shown_slices(inputs: Tensor, indices: Sequence[int], network: SAM2) -> Tensor:
    """Some slices ``(n, 1, S, S)`` by themselves, or ``(n, 3, S, S)`` between their neighbours where the backbone's
    ``slice_context`` says so.
    """
    device = next(network.parameters()).device
    if not network.slice_context:
        return network_slices(inputs, indices, network.image_size, device)
    around = [near for triple in with_neighbours(indices, inputs.shape[-1]) for near in triple]
    planes = network_slices(inputs, around, network.image_size, device)
    return planes[:, 0].unflatten(0, (-1, 3))


def oriented_like(label: Tensor, image: Tensor) -> Tensor:
    """A label map on the file's grid, ``(1, 1, ...)`` with its affine, along the axes of the image and as far as the
    image reaches, which may be cropped, or have air added in plane: ``(H, W, slices)``.

    Raises:
        ValueError: the two differ by more than that.
    """
    target, own = (each.affine.reshape(-1, 4, 4)[0].cpu() for each in (image, label))
    plain = MetaTensor(convert_to_tensor(label[0], track_meta=False), affine=own)
    turned = Orientation(axcodes="".join(aff2axcodes(target.numpy())))(plain)
    shape = image.shape[2:]
    place = place_within(target.double().numpy(), shape, turned.affine.double().numpy())
    air = beyond(place, turned.shape[1:])  # that was added to the image in plane, where there is no label
    turned = Pad([(0, 0), *air])(turned)
    shown = [slice(each.start + before, each.stop + before) for each, (before, _) in zip(place, air)]
    turned = SpatialCrop(roi_slices=shown)(turned)
    if (
        any(air[2])
        or turned.shape[1:] != shape
        or not torch.allclose(turned.affine[:3, :3], target[:3, :3].to(turned.affine))
    ):
        raise ValueError(
            "The label map is on the file's grid, but after preprocessing the image has shape "
            f"{tuple(shape)} and the label, along the same axes and as far as the image reaches, "
            f"{tuple(turned.shape[1:])}."
        )
    return convert_to_tensor(turned, track_meta=False)[0].round().long().cpu()


def network_labels(truth: Tensor, image: Tensor, size: int) -> Tensor:
    """A label map on the file's grid as the network sees the image's slices: ``(slices, size, size)``.

    Args:
        truth: ``(1, 1, ...)`` with its affine.
        image: ``(1, 1, H, W, slices)``; see :func:`oriented_like`.
        size: of the network.
    """
    labels = oriented_like(truth, image)[None]
    resized = ResizeLabeld("label", (size, size, -1))({"label": labels.float()})["label"]
    return convert_to_tensor(resized, track_meta=False)[0].permute(2, 0, 1)
