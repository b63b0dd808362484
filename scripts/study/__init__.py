"""What remakes the project's own numbers: functions alone, called by scripts/reproduce.py."""

# External test sets by the name of their results: what tables call them, and their layout (scripts/prepare_dataset.py).
# A set that is added here is prepared, evaluated, reported and shown.
EXTERNAL = {"external": {"title": "BrEaST (never trained on)", "layout": "breast"}}
# Leave one site out: results, what tables call them, the site trained on, the set tested on
UNSEEN = {
    "busi_unseen": ("BUSI, trained on BUS-BRA alone", "bus_bra", "clean"),
    "bus_bra_unseen": ("BUS-BRA, trained on BUSI alone", "clean", "bus_bra"),
    "external_bus_bra_only": ("BrEaST, trained on BUS-BRA alone", "bus_bra", "external"),
    "external_busi_only": ("BrEaST, trained on BUSI alone", "clean", "external"),
}
# Metrics of short tables
BRIEF = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "auroc_malignant")
# The columns of the evidence, in order
EVALUATIONS = {
    "cross_validation": "BUSI, cross-validation",
    "testing": "BUSI, testing split",
    "bus_bra": "BUS-BRA, testing split",
    **{name: found["title"] for name, found in EXTERNAL.items()},
    **{name: title for name, (title, _, _) in UNSEEN.items()},
}
