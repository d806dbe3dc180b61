"""DiffuSAM (Grossman et al. 2026, arXiv 2604.24719): SAM2 without prompts.

A small diffusion prior draws the memory that SAM2 would have of an organ in a slice, and SAM2, frozen, decodes the mask
from it.
"""
