"""Networks of other libraries in the bundle's pipeline: its images, splits, augmentation and evaluation."""
