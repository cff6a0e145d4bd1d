"""How ``sam2_nano`` is made, from procedurally generated clips alone."""
