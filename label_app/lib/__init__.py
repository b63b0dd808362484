"""Parts of the MONAI Label app: labels, inference, training, the choice of the next image, a guarded server."""

import logging

logging.getLogger("monailabel").setLevel(logging.WARNING)  # it has a dozen lines for each image, at the level of ours
logging.getLogger("timeloop").disabled = True
