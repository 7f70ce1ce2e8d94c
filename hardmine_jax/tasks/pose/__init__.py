"""Top-down pose with online hard keypoint mining (OHKM): `train`, `predict_photos`, `export`."""
