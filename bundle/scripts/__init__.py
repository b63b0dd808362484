"""The bundle's Python: what JSON cannot say. Configs address it as ``scripts.<module>.<name>``."""
