"""Fast R-CNN with online hard example mining (OHEM): `train`, `predict_photos`."""
