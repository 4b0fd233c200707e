"""The triplet loss layer under its module and class name of 2015."""

from tripletloss.layers import TripletLossLayer as TripletLayer  # noqa: F401
