"""What tasks of images are built from: the way in which a model sees an image, and synthetic shifts between clients."""
