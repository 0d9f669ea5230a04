"""A trained model for serving: its history encoder and generation as ONNX, its items as a table and an index."""
