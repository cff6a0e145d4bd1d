"""The rows of Table 2 beside DiffuSAM: a source model, and what adapts it to target images without source and labels.

``run.py`` has the commands. Both published methods have public code, which settles most details:
github.com/cchen-cc/SFDA-DPL and github.com/xmed-lab/DFG.
"""
