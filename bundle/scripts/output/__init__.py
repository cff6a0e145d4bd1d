"""What is made of results: metrics and tables, previews, DICOM SEG, and the report of a run."""
