"""What DiffuSAM is compared with, and what its choices are worth: tables, baselines, adaptation, figures, speed.

Commands run from the bundle's folder once the project is installed (``pip install -e "..[benchmarks]"``), such as
``python -m benchmarks.tables phantoms``.
"""
