"""People (animals, hands) with keypoints: a file a dataset, records, augmentation, batches of crops."""
