"""What trains many models: comparison, search and the record of a run."""
