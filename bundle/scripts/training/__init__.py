"""How the prior is trained: slices encoded once, the iteration, its losses, and what happens between iterations."""
