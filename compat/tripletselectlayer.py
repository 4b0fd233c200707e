"""The triplet selection layer under its module name of 2015."""

from tripletloss.layers import TripletSelectLayer  # noqa: F401
