"""Pictures with boxes: a file a dataset, records, proposals, augmentation, batches."""
