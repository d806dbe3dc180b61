"""Organs: anatomy, measurements, and the methods that segment them."""
