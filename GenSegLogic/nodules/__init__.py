"""Method (a): weakly supervised lung nodules by training-free guidance of a 3D rectified flow."""
