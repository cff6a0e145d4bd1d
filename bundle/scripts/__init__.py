"""Python behind the DiffuSAM bundle: the configs declare, these modules compute."""
