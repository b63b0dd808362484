"""Parts of the MONAI Label app: labels on disk, inference, training, the choice of the next picture, a guarded server."""
