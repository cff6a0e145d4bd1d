"""Many cases one after another: what is done, what has failed, how far to trust it, and what a user has corrected."""
