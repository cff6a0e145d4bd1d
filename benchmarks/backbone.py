"""What a backbone can do without a prior: the upper bound of DiffuSAM, and propagation of one true slice.

* ``bound``: the memory of the true mask, decoded on its own slice. No prior can do better without its neighbours.
* ``click``, ``box``: SAM2's own prompts, one click at the most interior point or the bounding box of the true mask, on
  every slice that holds the organ, without any memory.
* ``propagated``: the true mask of the volume's middle slice (of those that hold the organ) alone, carried through the
  volume by memories of the masks decoded on the way.

All are volumetric Dice on the files' own grid. Run from the bundle's folder, with the configuration of an evaluation:

    python ../benchmarks/backbone.py --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']"
"""

from __future__ import annotations

import json
from collections import deque
from functools import partial
from pathlib import Path

import fire
import torch
from baselines.prompts import prompt_points
from configuration import parse
from monai.data import MetaTensor
from monai.transforms import Invertd
from tqdm import tqdm


def main(config_file, output: str | None = None, **overrides) -> None:
    """
    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        output: JSON file to write the numbers to.
        overrides: values of the configuration to change, such as ``--backbone_checkpoint``.
    """
    parser = parse(config_file, overrides)
    from scripts.metrics import OrganDice, mean_of_means
    from scripts.reports import format_table

    backbone = parser.get_parsed_content("backbone")
    organs = parser.get_parsed_content("organs")
    items = parser.get_parsed_content("test_data")
    resized = parser.get_parsed_content("train#preprocessing")
    native = parser.get_parsed_content("validate#preprocessing")
    invert = Invertd("pred", resized, orig_keys="image", nearest_interp=False)
    rows = {
        "bound": decode_true_memories,
        "click": partial(decode_prompts, prompt="click"),
        "box": partial(decode_prompts, prompt="box"),
        "propagated": propagate_middle_slice,
    }
    metrics = {name: OrganDice(len(organs)) for name in rows}
    for item in tqdm(items):
        data = resized(dict(item))
        truth = native(dict(item))["label"]
        for name, run in rows.items():
            logits = run(backbone, data["image"].as_tensor(), data["label"].as_tensor(), len(organs))
            inverted = invert({**data, "pred": MetaTensor(logits, meta=data["image"].meta)})["pred"]
            metrics[name](y_pred=[inverted.argmax(0, keepdim=True)], y=[truth])
    result = {}
    for name, metric in metrics.items():
        values = metric.details()["dice"]
        print(f"\n{name}\n{format_table(values, [item['case'] for item in items], organs)}")
        result[name] = {"organs": values.nanmean(0).tolist(), "mean": mean_of_means(values).item()}
    if output:
        Path(output).write_text(json.dumps({"organs": organs, **result}, indent=4) + "\n")


@torch.no_grad()
def decode_true_memories(
    backbone, image: torch.Tensor, label: torch.Tensor, organs: int, batch: int = 8
) -> torch.Tensor:
    """Logits ``(1 + organs, S, S, slices)`` of every slice from the memory of its own true masks."""
    from baselines import true_memory
    from scripts.sam2_backbone import resize_logits

    output = torch.zeros(1 + organs, *image.shape[1:])
    for start in range(0, image.shape[-1], batch):
        index = slice(start, min(start + batch, image.shape[-1]))
        features = backbone.encode_image(image[0, ..., index].permute(2, 0, 1)[:, None])
        logits = true_memory.decode_true_memories(backbone, features, label[0, ..., index].permute(2, 0, 1), organs)
        output[1:, ..., index] = resize_logits(logits, backbone.image_size).permute(1, 2, 3, 0)
    return output


@torch.no_grad()
def decode_prompts(backbone, image: torch.Tensor, label: torch.Tensor, organs: int, prompt: str) -> torch.Tensor:
    """Logits ``(1 + organs, S, S, slices)`` from one click or one box on every slice that holds the organ."""
    from scripts.sam2_backbone import resize_logits

    output = torch.full((1 + organs, *image.shape[1:]), -10.0)
    output[0] = 0
    for index in range(image.shape[-1]):
        held = [organ for organ in range(1, organs + 1) if (label[..., index] == organ).any()]
        if not held:
            continue
        features = backbone.encode_image(image[..., index][None]).repeat_interleave(len(held))
        points = []
        for organ in held:
            mask = (label[0, ..., index] == organ).numpy()
            drawn, _ = prompt_points(mask, prompt)
            points.append(drawn if prompt == "box" else [*drawn, [0, 0]])
        labels = torch.tensor([[2, 3] if prompt == "box" else [1, -1]] * len(held), dtype=torch.int32)
        decoded = backbone.decode(backbone.condition(features), features, (torch.tensor(points).float(), labels))
        output[held, ..., index] = resize_logits(decoded.mask_logits, backbone.image_size)[:, 0]
    return output


@torch.no_grad()
def propagate_middle_slice(
    backbone, image: torch.Tensor, label: torch.Tensor, organs: int, neighbours: int = 6
) -> torch.Tensor:
    """Logits ``(1 + organs, S, S, slices)`` from one true slice an organ, as SAM2's video predictor propagates a
    mask.
    """
    from scripts.sam2_backbone import Memory, mask_to_logits, resize_logits

    slices = image.shape[-1]
    output = torch.full((1 + organs, *image.shape[1:]), -10.0)
    output[0] = 0
    encoded = [backbone.encode_image(image[..., index][None]) for index in range(slices)]
    for organ in range(1, organs + 1):
        held = (label[0] == organ).flatten(0, 1).any(0).nonzero()[:, 0]
        if not len(held):
            continue
        middle = int(held[len(held) // 2])
        mask = (label[..., middle] == organ)[None]
        shown = Memory(backbone.encode_memory(encoded[middle], mask_to_logits(mask)))
        output[organ, ..., middle] = mask_to_logits(mask)[0, 0]
        for direction in (-1, 1):
            past: deque = deque(maxlen=neighbours)
            index = middle + direction
            while 0 <= index < slices:
                memories = [shown] + [Memory(features, 1 + distance) for distance, features in enumerate(past)]
                decoded = backbone.decode(backbone.condition(encoded[index], memories), encoded[index])
                logits = decoded.gated()
                past.appendleft(backbone.encode_memory(encoded[index], logits, decoded.object_score))
                output[organ, ..., index] = resize_logits(logits, backbone.image_size)[0, 0]
                index += direction
    return output


if __name__ == "__main__":
    fire.Fire(main)
