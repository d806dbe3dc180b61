"""Rectified flow as pure functions.

Convention: t in [0, 1] is the noise fraction, x_t = (1 - t) z + t eps, velocity v = z - eps.
"""
