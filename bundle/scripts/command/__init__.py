"""The console command ``diffusam``: each of its commands says which commands of the bundle it stands for, and runs
these. Nothing here imports torch before that, so that help and mistakes are there at once.
"""
