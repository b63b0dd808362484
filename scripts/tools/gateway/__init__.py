"""The parts of `scripts/gateway.py`: Orthanc's REST API, the child that predicts, what is kept, and the health page."""
