"""The data path: from images at rest to uint8 batches on the device. README.md in this folder maps it."""
