"""The UNet row: MONAI's 2D UNet, trained on the same volumes with the same augmentation and evaluated alike.

Everything but the network comes from the bundle's configuration: cases, label map, intensity, slice size, augmented
variants, inversion to the file's own grid and Dice. Run from the bundle's folder:

    python ../benchmarks/unet.py --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']"
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import fire
import torch
from configuration import parse
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.inferers import Inferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, SaveImaged
from monai.utils import convert_to_dst_type
from tqdm import tqdm, trange


def main(
    config_file,
    output: str | None = None,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 1e-3,
    channels: tuple[int, ...] = (16, 32, 64, 128, 256),
    **overrides,
) -> None:
    """
    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        output: JSON file to write the numbers to.
        steps: optimiser steps (AdamW, learning rate falling to zero along a cosine).
        slices_per_step: slices in a step, drawn from all volumes and variants.
        learning_rate: at the start.
        channels: widths of the UNet's levels; two residual units in each.
        overrides: values of the configuration to change, such as ``--variants``.
    """
    parser = parse(config_file, overrides)
    seed, device = parser.get_parsed_content("seed"), parser.get_parsed_content("device")
    torch.manual_seed(seed)
    images, labels = augmented_slices(parser)
    network = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=len(parser.get_parsed_content("organs")) + 1,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
        dropout=0.1,
    ).to(device)
    start = time.perf_counter()
    train(network, images, labels, steps, slices_per_step, learning_rate, device)
    seconds = time.perf_counter() - start
    evaluate(network, parser, seconds, output)


def augmented_slices(parser: ConfigParser) -> tuple[torch.Tensor, torch.Tensor]:
    """All slices of all variants: images ``(N, 1, S, S)`` float16 and labels ``(N, 1, S, S)`` uint8."""
    from scripts.transforms import AugmentedVariant

    transform = parser.get_parsed_content("train#preprocessing")
    augment = AugmentedVariant(parser.get_parsed_content("train#augmentation"), parser.get_parsed_content("seed"))
    images, labels = [], []
    for item in tqdm(parser.get_parsed_content("train_data"), desc="augmenting"):
        volume = transform(dict(item))
        for variant in range(parser.get_parsed_content("variants") + 1):
            drawn = augment(volume, item["case"], variant)
            images.append(drawn["image"].as_tensor().permute(3, 0, 1, 2).half())
            labels.append(drawn["label"].as_tensor().round().permute(3, 0, 1, 2).to(torch.uint8))
    return torch.cat(images), torch.cat(labels)


def train(network, images, labels, steps, slices_per_step, learning_rate, device) -> None:
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in (progress := trange(steps, desc="training")):
        index = torch.randint(0, len(images), (slices_per_step,))
        optimizer.zero_grad()
        loss = loss_function(network(images[index].float().to(device)), labels[index].to(device))
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


class SliceInferer(Inferer):
    """A volume ``(1, 1, S, S, slices)`` through a 2D network, eight slices at a time."""

    def __call__(self, inputs, network, *args, **kwargs):
        volume = inputs[0, 0].permute(2, 0, 1)[:, None]
        logits = torch.cat([network(chunk) for chunk in volume.split(8)]).permute(1, 2, 3, 0)[None]
        return convert_to_dst_type(logits, inputs)[0]


def evaluate(network, parser: ConfigParser, seconds: float, output: str | None) -> None:
    from scripts.metrics import OrganDiceHandler, format_table

    network.eval()

    postprocessing = parser.get_parsed_content("validate#postprocessing")
    kept = Compose([each for each in postprocessing.transforms if not isinstance(each, SaveImaged)])
    evaluator = SupervisedEvaluator(
        device=parser.get_parsed_content("device"),
        val_data_loader=parser.get_parsed_content("validate#dataloader"),
        network=network,
        inferer=SliceInferer(),
        postprocessing=kept,
        key_val_metric={"dice": OrganDiceHandler(output_transform=from_engine(["pred", "label"]))},
    )
    evaluator.run()
    organs = parser.get_parsed_content("organs")
    cases = [item["case"] for item in parser.get_parsed_content("test_data")]
    values = evaluator.state.metric_details["dice"]
    print(f"\nUNet, native Dice, {seconds:.0f} s of training\n{format_table(values, cases, organs)}")
    if output:
        content = {
            "organs": organs,
            "cases": cases,
            "values": values.tolist(),
            "organ_means": values.nanmean(0).tolist(),
            "mean": values.nanmean(0).nanmean().item(),
            "training_seconds": seconds,
        }
        Path(output).write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
