"""Parts of the MONAI Label app: labels, inference, training, the choice of the next picture, a guarded server."""
