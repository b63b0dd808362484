"""Charts, drawings and pages that the commands write."""
