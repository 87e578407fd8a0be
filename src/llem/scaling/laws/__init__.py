"""Laws: what they predict, given by formulas or kernels, bound to data."""
