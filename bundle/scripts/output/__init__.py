"""What is made of results: metrics and tables, pictures, DICOM SEG, and the report of a run."""
