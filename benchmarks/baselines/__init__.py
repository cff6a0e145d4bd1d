"""The rows of Table 1 beside DiffuSAM, on any data set that a configuration describes; ``run.py`` has the commands."""
