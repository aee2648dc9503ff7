"""The engine: how any network is trained, exported and proved. Importing it is light, on purpose."""
