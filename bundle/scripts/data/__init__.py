"""Volumes of any format and orientation, lists of them, what is checked before they are used, and the phantoms."""
