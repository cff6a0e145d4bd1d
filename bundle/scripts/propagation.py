"""Volumetric consistency: segmenting a volume slice by slice with the neighbours' memories (section 2.2, Equation 3).

    y_i = D{ MA[ z_mem,i , ME(y_adj, z_img,adj) ], z_img,i }

The walk starts at the middle slice, which has its own synthesised memory alone, and goes outward in both directions at
once. Each slice sees its own memory and those of the slices just decoded beside it, made of merged masks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from .diffusam import DiffuSAM
from .sam2_backbone import NO_OBJECT_LOGIT, Decoded, ImageFeatures, Memory


class VolumetricInferer(Inferer):
    """Runs :class:`DiffuSAM` over a volume.

    Memory use does not grow with the number of slices beyond the input and the output: slices are encoded and their
    memories sampled a batch at a time, in the order of the walk, and only the nearest neighbours' memories are kept.

    Args:
        neighbours: memories of previously decoded slices that a slice sees, 0 (the same as ``no_3d``) to 6.
        no_3d: every slice by itself, the paper's "DiffuSAM-no 3D".
        batch_size: slices encoded at a time.
        merge: whether neighbours remember masks in which every voxel belongs to one organ at most.
        use_pointers: whether neighbours' object pointers are attended to as well.
        refine: whether, after the walk, every slice is decoded once more with both of its adjacent slices in memory, as
            they came out of the walk. Twice the time; the index "adj" of Equation 3 does not say on which side.
        own_weight: how the two decodings of a slice are combined: the logits of the volumetric decoding are averaged
            with those from the slice's own memory alone, which get this weight (0: Equation 3 as it stands).

    Raises:
        ValueError: a number of neighbours that SAM2 has no temporal encoding for.
    """

    def __init__(
        self,
        neighbours: int = 1,
        no_3d: bool = False,
        batch_size: int = 8,
        merge: bool = True,
        use_pointers: bool = False,
        refine: bool = False,
        own_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= neighbours <= 6:
            raise ValueError(f"neighbours must lie in 0...6, got {neighbours}.")
        if not 0 <= own_weight <= 1:
            raise ValueError(f"own_weight must lie in [0, 1], got {own_weight}.")
        self.neighbours = 0 if no_3d else neighbours
        self.batch_size = batch_size
        self.merge, self.use_pointers, self.own_weight = merge, use_pointers, own_weight
        self.refine = refine and self.neighbours > 0

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: DiffuSAM, *args, **kwargs) -> Tensor:
        """Logits of a volume.

        Args:
            inputs: ``(1, 1, S, S, slices)`` in [0, 1], slices along the last axis.
            network: the DiffuSAM to run.

        Returns:
            ``(1, 1 + organs, S, S, slices)`` on the device of ``inputs``.

        Raises:
            ValueError: another shape.
            RuntimeError: the network's prior is untrained.
        """
        network = getattr(network, "module", network)
        if not network.prior.fitted:
            raise RuntimeError(
                "The memory prior is untrained: load a trained one (`prior_file`), or run training first."
            )
        size = network.backbone.image_size
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1) or inputs.shape[2:4] != (size, size):
            raise ValueError(f"Expected one volume of shape (1, 1, {size}, {size}, slices), got {tuple(inputs.shape)}.")
        device = next(network.parameters()).device
        volume = convert_to_tensor(inputs[0, 0], track_meta=False)
        output = torch.empty((1, 1 + len(network.organs), *volume.shape), dtype=torch.float32, device=volume.device)
        walk = self._walk_independent if self.neighbours == 0 else self._walk_outward
        for indices, logits in walk(volume, network, device):
            output[0, ..., indices] = logits.permute(1, 2, 3, 0).to(output)
        if self.refine:
            for index, logits in self._second_pass(volume, output, network, device):
                output[0, ..., index] = logits[0].to(output)
        # with the input's record of transforms, by which `Invertd` finds the way back to the file's grid
        return convert_to_dst_type(output, inputs)[0]

    def _encode(self, volume: Tensor, indices: list[int], network: DiffuSAM, device) -> tuple[ImageFeatures, Tensor]:
        image = volume[..., indices].permute(2, 0, 1)[:, None].to(device)
        features = network.backbone.encode_image(image)
        memory = network.synthesise(features)
        return features, memory.unflatten(0, (len(indices), -1))

    def _walk_independent(self, volume: Tensor, network: DiffuSAM, device) -> Iterator[tuple[list[int], Tensor]]:
        for indices in torch.arange(volume.shape[-1]).split(self.batch_size):
            yield indices.tolist(), network(volume[..., indices].permute(2, 0, 1)[:, None].to(device))

    def _walk_outward(self, volume: Tensor, network: DiffuSAM, device) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the slices from the middle outward; both directions advance together in one batch."""
        slices, count = volume.shape[-1], len(network.organs)
        middle = slices // 2
        # one front per direction, each slice's neighbours being those between it and the middle
        fronts = [deque(maxlen=self.neighbours), deque(maxlen=self.neighbours)]
        steps = [[middle]] + [
            [index for index in (middle - step, middle + step) if 0 <= index < slices]
            for step in range(1, max(middle, slices - 1 - middle) + 1)
        ]
        for batch in _batched(steps, self.batch_size):
            indices = [index for step in batch for index in step]
            features, memory = self._encode(volume, indices, network, device)
            for step in batch:
                rows = [indices.index(index) for index in step]
                sides = [0 if index <= middle else 1 for index in step]
                here = features[rows].repeat_interleave(count)
                decoded, logits = self._decode(network, here, memory[rows].flatten(0, 1), [fronts[s] for s in sides])
                merged = network.merge(logits)
                yield step, merged
                remembered = self._remember(network, here, merged)
                for position, side in enumerate(sides):
                    part = slice(position * count, (position + 1) * count)
                    entry = (remembered[part], decoded.pointer[part])
                    fronts[side].appendleft(entry)
                    if step == [middle]:  # both directions leave from the middle slice
                        fronts[1 - side].appendleft(entry)

    def _second_pass(self, volume: Tensor, output: Tensor, network: DiffuSAM, device) -> Iterator[tuple[int, Tensor]]:
        """Yields every slice decoded with the memories of both neighbours' masks of the first pass.

        A slice is yielded only after the next one's first-pass mask has been read, so the caller may overwrite it.
        """
        count, slices = len(network.organs), volume.shape[-1]
        # (features, own memory, remembered mask) of the previous, the present and the next slice
        window: deque = deque(maxlen=3)
        window.append(None)

        def decode_middle() -> Tensor:
            before, (features, own, _), after = window
            adjacent = [Memory(side[2], 1) for side in (before, after) if side is not None]
            backbone = network.backbone
            decoded = backbone.decode(backbone.condition(features, [Memory(own), *adjacent]), features)
            return network.merge(network.organ_logits(decoded))

        for start in range(0, slices, self.batch_size):
            indices = list(range(start, min(start + self.batch_size, slices)))
            features, memory = self._encode(volume, indices, network, device)
            for row, index in enumerate(indices):
                here = features[[row]].repeat_interleave(count)
                first_pass = output[..., index].to(device)
                window.append((here, memory[row], self._remember(network, here, first_pass)))
                if index > 0:
                    yield index - 1, decode_middle()
        window.append(None)
        yield slices - 1, decode_middle()

    def _decode(
        self, network: DiffuSAM, features: ImageFeatures, own: Tensor, fronts: list[deque]
    ) -> tuple[Decoded, Tensor]:
        """Equation 3 for the slices of one step; ``fronts`` hold each slice's neighbours, nearest first."""
        memories = [Memory(own)]
        for distance in range(1, 1 + min(len(front) for front in fronts)):
            entries = [front[distance - 1] for front in fronts]
            pointer = torch.cat([entry[1] for entry in entries]) if self.use_pointers else None
            memories.append(Memory(torch.cat([entry[0] for entry in entries]), distance, pointer))
        backbone = network.backbone
        decoded = backbone.decode(backbone.condition(features, memories), features)
        logits = network.organ_logits(decoded)
        if self.own_weight > 0 and len(memories) > 1:
            alone = network.organ_logits(backbone.decode(backbone.condition(features, memories[:1]), features))
            logits = torch.lerp(logits, alone, self.own_weight)
        return decoded, logits

    def _remember(self, network: DiffuSAM, features: ImageFeatures, merged: Tensor) -> Tensor:
        """ME(y, z_img): memories ``(slices * organs, M, h, w)`` of the masks just decoded."""
        logits = merged[:, 1:]
        if self.merge:
            best = merged.argmax(1, keepdim=True)
            organ = torch.arange(1, merged.shape[1], device=merged.device).view(1, -1, 1, 1)
            logits = torch.where((best != organ) & (logits > 0), NO_OBJECT_LOGIT, logits)
        score = torch.where(logits.flatten(2).amax(2) > 0, 1.0, -1.0).reshape(-1, 1)
        return network.backbone.encode_memory(features, logits.flatten(0, 1)[:, None], score)


def _batched(steps: list[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """Groups the steps of a walk so that each group encodes about ``batch_size`` slices at once."""
    group: list[list[int]] = []
    for step in steps:
        group.append(step)
        if sum(len(each) for each in group) >= batch_size:
            yield group
            group = []
    if group:
        yield group
