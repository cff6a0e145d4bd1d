"""A volume slice by slice: Equation 3, several views, slices that a user has corrected, and how sure the result is."""
