"""AutoMedSAM, the method's relative, as a second network: prompts of SAM2 instead of memories."""
