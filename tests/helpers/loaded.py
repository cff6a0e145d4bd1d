"""What commands import by themselves, for the server of :mod:`tests.helpers.killed`; nobody else imports this."""

# ruff: noqa: F401
import diffusers
import highdicom
import itk
import jinja2
import matplotlib.figure
import monai.bundle
import monai.engines
import monai.handlers
import scripts.data.intensity
import scripts.inference.cases
import scripts.inference.corrections
import scripts.inference.trained_with
import scripts.networks.diffusam
import scripts.output.dicom_seg
import scripts.output.html_report
import scripts.output.metrics
import scripts.output.previews
import scripts.prepare.folder
import scripts.segmentation.uncertainty
import scripts.training.encoded_slices
import scripts.training.starting_prior
import scripts.training.trainer
import skimage.measure
import torch.utils.tensorboard

from tests.helpers import workflows

itk.imread  # noqa: B018 - ITK loads what it needs when it is first asked
