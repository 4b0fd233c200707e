"""The data layer under its module name of 2015."""

from tripletloss.layers import DataLayer  # noqa: F401
