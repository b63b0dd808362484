"""The two names that monailabel.transform.post imports."""


def make_grid(*args, **kwargs):
    """Not available.

    Raises:
        NotImplementedError: always; install torchvision for MONAI Label's MergeAllPreds.
    """
    raise NotImplementedError("this environment has no torchvision; install the version that matches torch")


save_image = make_grid
