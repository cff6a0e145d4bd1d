"""The paper's Figures 2 and 3 for any data set that a configuration describes, each with its numbers beside it."""
