"""What remakes the project's own numbers: functions alone, called by study/dodo.py."""

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"

# External test sets by the name of their results: what tables call them, and their layout (scripts/prepare.py).
# A set that is added here is prepared, evaluated, reported and shown.
EXTERNAL = {"external": {"title": "BrEaST (not trained on)", "layout": "breast_published"}}
# Leave one site out: results, what tables call them, the site trained on, the set tested on
UNSEEN = {
    "busi_unseen": ("BUSI, trained on BUS-BRA alone", "bus_bra", "clean"),
    "bus_bra_unseen": ("BUS-BRA, trained on BUSI alone", "clean", "bus_bra"),
    "external_bus_bra_only": ("BrEaST, trained on BUS-BRA alone", "bus_bra", "external"),
    "external_busi_only": ("BrEaST, trained on BUSI alone", "clean", "external"),
}
# Whose difference a sentence of the documents tells: an evaluation, and what it is compared with on the same images
COMPARISONS = (
    ("external", "external_bus_bra_only"),
    ("external", "external_busi_only"),
    ("cross_validation", "busi_unseen"),
    ("bus_bra", "bus_bra_unseen"),
)
# What a datalist says of an image by which subgroups are told, where it does
SUBGROUP_COLUMNS = ("split", "device", "birads")
# The metrics of short tables
BRIEF = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "auroc_malignant")
# What a result says of how it was made: weights, images with their labels, options that matter, code
SIGNATURE = ("weights_sha256", "images_sha256", "image_size")
SIGNATURE += ("mask_threshold", "smallest_fraction", "component_threshold", "commit")
# The columns of the evidence, in order
EVALUATIONS = {
    "cross_validation": "BUSI, cross-validation",
    "testing": "BUSI, testing split",
    "bus_bra": "BUS-BRA, testing split",
    **{name: found["title"] for name, found in EXTERNAL.items()},
    **{name: title for name, (title, _, _) in UNSEEN.items()},
}
