"""From whatever ImageNet a user has to a dataset directory: sources, images, and a conversion that can be resumed."""
