"""The L2 norm layer under its module name of 2015."""

from tripletloss.layers import Norm2Layer  # noqa: F401
