"""The UNet row, as ``baselines/run.py unet``. Run from the bundle's folder:

python ../benchmarks/unet.py --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']"
"""

from __future__ import annotations

import fire
from baselines.run import unet

if __name__ == "__main__":
    fire.Fire(unet, serialize=lambda result: None)
