"""Augmentation of training images on the device: whole uint8 batches, each sample with parameters of its own, which are
a function of (seed, epoch, sample key) alone."""
