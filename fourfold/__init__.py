"""The engine: how any network is trained, exported and proved. Importing it is light, on purpose."""

import os

# From 1.29 on, the official builds of onnxruntime make a device id and send usage events, unless this is set before
# they are loaded; their own API only stops what comes later. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
