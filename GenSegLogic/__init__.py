"""GenSegLogic: generative segmentation of medical volumes, without Slicer and without Qt."""
